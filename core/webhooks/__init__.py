"""Outbound webhooks: endpoints, signed payloads, and deliveries that are retried."""
