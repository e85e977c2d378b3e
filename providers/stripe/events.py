"""Stripe's list of events, read for those whose webhook did not come."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Final

import stripe
from pydantic import ConfigDict
from stripe.params import EventListParams, EventListParamsCreated

from core.inbox.provider_webhooks import ParsedWebhook
from core.ports.provider import RequestPermits
from providers.stripe.client import STRIPE_PAGE_SIZE, StripeClient
from providers.stripe.responses import StripePage, StripeResource
from providers.stripe.webhooks import STRIPE_WEBHOOK_EFFECTS, parse_event

MAX_EVENT_PAGES: Final = 20
# Stripe takes at most twenty types.
_TYPES: Final = sorted(STRIPE_WEBHOOK_EFFECTS)


class _ListedEvent(StripeResource):
    model_config = ConfigDict(extra="allow")


class StripeEventReader:
    """Implements ``core.inbox.missed_webhooks.EventReader``. Stripe lists the newest first, and none out of date."""

    def __init__(self, client: StripeClient) -> None:
        self._client = client

    def read(self, since: datetime, until: datetime, permits: RequestPermits) -> list[ParsedWebhook] | None:
        found: list[_ListedEvent] = []
        for _ in range(MAX_EVENT_PAGES):
            page = self._client.send(
                permits,
                "GET /v1/events",
                "list the events",
                partial(self._fetch_page, since, until, found[-1].id if found else None),
                StripePage[_ListedEvent],
            )
            found += page.data
            if not page.has_more or not page.data:
                return [parse_event(each.model_dump()) for each in reversed(found)]
        return None

    def _fetch_page(self, since: datetime, until: datetime, last_id: str | None) -> stripe.StripeObject:
        created: EventListParamsCreated = {"gte": int(since.timestamp()), "lte": int(until.timestamp())}
        params: EventListParams = {"types": _TYPES, "created": created, "limit": STRIPE_PAGE_SIZE}
        return self._client.v1.events.list(params if last_id is None else {**params, "starting_after": last_id})
