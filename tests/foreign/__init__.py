"""The whole story against providers that are not ours: stand-ins written by others, and a user's own test accounts."""
