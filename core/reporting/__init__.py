"""Reads for operators, the API and metrics; nothing here locks a row or calls a provider."""
