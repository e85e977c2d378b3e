"""Adoption: what a business has at the providers already is found, proposed, and handed over to billing-sync."""
