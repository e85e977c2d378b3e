"""Desired state, observed state, and how the two differ. Writes nothing and sends no request."""
