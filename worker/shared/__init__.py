"""What the processes share through Redis, each with a local fallback while Redis is away."""
