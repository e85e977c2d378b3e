"""Lago behind ``ports.provider.BillingProvider``."""
