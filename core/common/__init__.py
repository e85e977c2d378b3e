"""Helpers for every package: time, JSON types, email addresses and value checks."""
