"""The webhook endpoints that are registered in Lago, at most ten in an organization (lago.md 8). Reads only."""

from __future__ import annotations

from typing import Final

from lago_python_client.base_model import BaseResponseModel

from core.ports.registered_endpoints import RegisteredEndpoint
from providers.lago.client import LagoClient, LagoRequest
from providers.transport.permits import READ_ONLY

LAGO_ALL_EVENTS: Final = "*"


class LagoWebhookEndpoint(BaseResponseModel):
    """The SDK's model is a list of its own; here it is one row of any list."""

    webhook_url: str
    signature_algo: str | None
    event_types: list[str] | None


def list_endpoints(client: LagoClient) -> list[RegisteredEndpoint]:
    """Raises ``ProviderError``."""
    request = LagoRequest(
        context="the webhook endpoints",
        method="GET",
        path=("webhook_endpoints",),
        root="webhook_endpoints",
        response_type=LagoWebhookEndpoint,
        params={"per_page": "100"},
    )
    found, _ = client.list_page(request, READ_ONLY)
    return [
        RegisteredEndpoint(
            url=each.webhook_url,
            events=None
            if each.event_types is None or LAGO_ALL_EVENTS in each.event_types
            else frozenset(each.event_types),
            signature="hmac" if each.signature_algo == "hmac" else "jwt",
        )
        for each in found
    ]


def _event_types(endpoint: LagoWebhookEndpoint) -> frozenset[str] | None:
    types = endpoint.event_types
    return None if types is None or LAGO_ALL_EVENTS in types else frozenset(types)
