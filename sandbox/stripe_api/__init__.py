"""Stripe's part: forms in, documents and errors out as Stripe shapes them (stripe.md 2, 4, 5, 6)."""
