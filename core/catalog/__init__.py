"""The plan catalog: which tiers there are, what they cost, and what the providers sell of it."""
