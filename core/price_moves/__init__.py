"""Moves of organizations to another price of their plan: listed, applied, noticed, started, and followed to the end."""
