"""What the domain asks of a provider: protocols, specs, observed state and errors; no code of a provider."""
