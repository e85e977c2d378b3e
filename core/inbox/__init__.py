"""The inbox: service events and provider webhooks, each stored once and then handled."""
