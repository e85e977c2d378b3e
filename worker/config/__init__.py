"""Settings, read from the environment once; no other module reads it."""
