"""Builds what a process runs from the settings."""
