"""Stripe behind ``ports.provider.BillingProvider``."""
