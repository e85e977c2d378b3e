"""Sends webhooks to the servers of other services."""
