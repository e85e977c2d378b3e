"""Drift: compares the providers with the desired state, stores a report, and repairs it by the usual reconciling."""
