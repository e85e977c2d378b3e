"""Ports to the billing providers: protocols, specs, observed state and errors. No code of a provider is in here."""
