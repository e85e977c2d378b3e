"""Sends email by SMTP, or writes it into a folder."""
