"""Redis implementations of the rate limiters and the cache. Each falls back to its own process if Redis is down."""
