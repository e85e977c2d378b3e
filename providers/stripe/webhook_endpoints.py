"""The webhook endpoints that are registered in Stripe, and the events that each gets. Reads only."""

from __future__ import annotations

from typing import Final

from stripe.params import WebhookEndpointListParams

from core.ports.registered_endpoints import RegisteredEndpoint
from providers.stripe.client import STRIPE_PAGE_SIZE, StripeClient
from providers.stripe.responses import StripePage, StripeResource
from providers.transport.permits import READ_ONLY

MAX_ENDPOINT_PAGES: Final = 2
STRIPE_ALL_EVENTS: Final = "*"


class StripeWebhookEndpoint(StripeResource):
    url: str
    status: str
    enabled_events: list[str]


def list_endpoints(client: StripeClient) -> list[RegisteredEndpoint]:
    """Raises ``ProviderError``; a restricted key may lack the right to list them."""
    found = client.list_all(
        READ_ONLY,
        "GET /v1/webhook_endpoints",
        "list the webhook endpoints",
        lambda last_id: client.v1.webhook_endpoints.list(_page_params(last_id)),
        StripePage[StripeWebhookEndpoint],
        MAX_ENDPOINT_PAGES,
    )
    return [
        RegisteredEndpoint(
            url=each.url,
            events=None if STRIPE_ALL_EVENTS in each.enabled_events else frozenset(each.enabled_events),
            is_enabled=each.status == "enabled",
        )
        for each in found
    ]


def _page_params(last_id: str | None) -> WebhookEndpointListParams:
    params: WebhookEndpointListParams = {"limit": STRIPE_PAGE_SIZE}
    if last_id is not None:
        params["starting_after"] = last_id
    return params
