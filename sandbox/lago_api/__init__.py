"""Simulated Lago: upserts, plan changes by yearly amount, error bodies as its server sends them (lago.md 1 to 6)."""
