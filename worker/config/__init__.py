"""Settings, read once from the environment. No other package reads the environment."""
