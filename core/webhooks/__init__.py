"""Webhooks to other services: endpoints, signed payloads, and deliveries that are retried."""
