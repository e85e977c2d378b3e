"""Stripe's list of webhook endpoints: the one that the sandbox sends to, if it is set (stripe.md 7)."""

import hashlib

from sandbox.http import JsonDocument
from sandbox.stripe_api import forms
from sandbox.stripe_api.serializers import API_VERSION, StripeTables


class StripeWebhookEndpointsApi:
    def __init__(self, tables: StripeTables) -> None:
        self._tables = tables

    def list_endpoints(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.PAGINATION_FIELDS)
        endpoint = self._tables.state.webhooks.endpoints.get("stripe")
        rows: list[JsonDocument] = []
        if endpoint is not None:
            rows.append(
                {
                    "id": f"we_{hashlib.sha256(endpoint.url.encode()).hexdigest()[:24]}",
                    "object": "webhook_endpoint",
                    "api_version": API_VERSION,
                    "application": None,
                    "created": 1_767_225_600,
                    "description": None,
                    "enabled_events": ["*"] if endpoint.events is None else list(endpoint.events),
                    "livemode": False,
                    "metadata": {},
                    "status": "disabled" if endpoint.disabled else "enabled",
                    "url": endpoint.url,
                }
            )
        return self._tables.page(rows, sent, "/v1/webhook_endpoints")
