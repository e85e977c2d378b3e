"""Simulated Stripe: form requests, with documents and errors in Stripe's format (stripe.md 2, 4, 5, 6)."""
