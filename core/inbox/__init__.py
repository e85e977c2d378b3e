"""What arrives from outside: events of other services and webhooks of the providers, stored once, then applied."""
