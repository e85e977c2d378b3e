"""The plan catalog: the tiers, what they cost, and their prices at the providers."""
