"""How often and how many requests reach a provider: rate limiter, request gate and circuit breaker."""
