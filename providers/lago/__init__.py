"""Lago behind ``core.ports.provider.BillingProvider``."""
