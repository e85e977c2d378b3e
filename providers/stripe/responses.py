"""What we read of Stripe's objects, and nothing else of them: no SDK object, no key, leaves this package.

An SDK object pickles with the secret key inside and is no dict (stripe.md 1.5). These are copies, checked on arrival.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    replayed: bool = False
    """Set by the door: a snapshot of what the key's first request was answered, perhaps long gone."""


class Object(Answer):
    id: str
    livemode: bool | None = None


AnswerT = TypeVar("AnswerT", bound=Answer)


class Page(Answer, Generic[AnswerT]):
    data: list[AnswerT]
    has_more: bool = False


class MarkedSubscription(Object):
    status: str
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.status in {"canceled", "incomplete_expired"}

    @property
    def org_id(self) -> str | None:
        return self.metadata.get("org_id") or None


class CustomerAnswer(Object):
    """A deleted customer answers 200 with ``deleted`` and an id, nothing else (stripe.md 4)."""

    deleted: bool = False
    name: str | None = Field(default=None, repr=False)
    email: str | None = Field(default=None, repr=False)
    metadata: dict[str, str] | None = None
    delinquent: bool | None = None
    subscriptions: Page[MarkedSubscription] | None = None
    """Those that have not ended; None unless they were asked for."""

    @property
    def org_id(self) -> str | None:
        return (self.metadata or {}).get("org_id") or None


class Recurring(Answer):
    interval: str
    interval_count: int = 1


class ProductAnswer(Object):
    name: str = ""


class PriceAnswer(Object):
    currency: str
    unit_amount: int | None = None
    lookup_key: str | None = None
    recurring: Recurring | None = None
    product: ProductAnswer | str = ""


class ItemAnswer(Object):
    price: PriceAnswer
    quantity: int = 1
    current_period_start: int
    current_period_end: int


class SubscriptionAnswer(MarkedSubscription):
    customer: str
    created: int
    items: Page[ItemAnswer]


class EventRequest(Answer):
    idempotency_key: str | None = None


class EventData(Answer):
    object: Object


class EventAnswer(Object):
    """``customer.created`` ties the customer to the key of the request that made it (stripe.md 2)."""

    request: EventRequest | None = None
    data: EventData
