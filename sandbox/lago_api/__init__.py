"""Lago's part: upserts, plan changes by yearly amount and error bodies as its server makes them (lago.md 1 to 6)."""
