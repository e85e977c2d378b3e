"""Stripe behind ``core.ports.provider.BillingProvider``."""
