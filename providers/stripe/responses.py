"""The fields that we read of Stripe's objects, as copies. No SDK object and no key leaves this package.

The pickle of an SDK object contains the secret key, and the object is not a dict (stripe.md 1.5). The copies are
validated on arrival.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from providers.stripe.metadata import (
    DATABASE_ID_KEY,
    ENDED_SUBSCRIPTION_KEY,
    FORMER_ENDED_SUBSCRIPTION_KEY,
    FORMER_ORG_ID_KEY,
    ORG_ID_KEY,
    read_marks,
)


class StripeModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    replayed: bool = False
    """Set by ``StripeClient``: a stored response to the key's first request, which may be out of date."""


class StripeResource(StripeModel):
    id: str
    livemode: bool | None = None


ModelT = TypeVar("ModelT", bound=StripeModel)


class StripePage(StripeModel, Generic[ModelT]):
    data: list[ModelT]
    has_more: bool = False


class StripeSubscriptionSummary(StripeResource):
    status: str
    metadata: dict[str, str] = Field(default_factory=dict)
    cancel_at: int | None = None
    cancel_at_period_end: bool = False
    pause_collection: object = None
    schedule: object = None

    @property
    def has_ended(self) -> bool:
        return self.status in {"canceled", "incomplete_expired"}

    @property
    def marks(self) -> dict[str, str]:
        return read_marks(self.metadata)

    @property
    def org_id(self) -> str | None:
        return self.marks.get("org_id") or None


class StripeInvoiceSettings(StripeModel):
    default_payment_method: object = None


class StripeCustomer(StripeResource):
    """A deleted customer is returned with status 200, ``deleted`` and an id, and nothing else (stripe.md 4)."""

    deleted: bool = False
    created: int | None = None
    name: str | None = Field(default=None, repr=False)
    email: str | None = Field(default=None, repr=False)
    metadata: dict[str, str] | None = None
    delinquent: bool | None = None
    balance: int | None = None
    """In Stripe's minor unit; below zero it is credit (stripe.md 9)."""
    currency: str | None = None
    default_source: object = None
    invoice_settings: StripeInvoiceSettings | None = None
    subscriptions: StripePage[StripeSubscriptionSummary] | None = None
    """Those that have not ended. None unless they were requested."""

    @property
    def org_id(self) -> str | None:
        return (self.metadata or {}).get(ORG_ID_KEY) or None

    @property
    def former_org_id(self) -> str | None:
        """May be the merchant's own (``providers.stripe.metadata``)."""
        return (self.metadata or {}).get(FORMER_ORG_ID_KEY) or None

    @property
    def database_id(self) -> str | None:
        return (self.metadata or {}).get(DATABASE_ID_KEY) or None

    @property
    def has_payment_method(self) -> bool:
        """Whether Stripe can charge an invoice of the customer by itself."""
        settings = self.invoice_settings
        return bool(self.default_source or (settings is not None and settings.default_payment_method))


class StripeRecurring(StripeModel):
    interval: str
    interval_count: int = 1
    usage_type: str = "licensed"
    trial_period_days: int | None = None


class StripeProduct(StripeResource):
    name: str = ""
    active: bool = True


class StripeTransformQuantity(StripeModel):
    divide_by: int


class StripePrice(StripeResource):
    active: bool = True
    currency: str
    unit_amount: int | None = None
    lookup_key: str | None = None
    recurring: StripeRecurring | None = None
    product: StripeProduct | str = ""
    billing_scheme: str = "per_unit"
    tax_behavior: str | None = None
    transform_quantity: StripeTransformQuantity | None = None

    @property
    def is_free(self) -> bool:
        return self.unit_amount == 0


class StripeSubscriptionItem(StripeResource):
    price: StripePrice
    quantity: int = 1
    discounts: list[object] = Field(default_factory=list)
    current_period_start: int
    current_period_end: int


class StripeCancellationDetails(StripeModel):
    comment: str | None = None


class StripeSubscription(StripeSubscriptionSummary):
    customer: str
    created: int
    collection_method: str = "charge_automatically"
    default_payment_method: object = None
    items: StripePage[StripeSubscriptionItem]
    discounts: list[object] = Field(default_factory=list)
    ended_at: int | None = None
    cancellation_details: StripeCancellationDetails | None = None

    @property
    def cancellation_comment(self) -> str | None:
        return self.cancellation_details.comment if self.cancellation_details else None


class StripePeriod(StripeModel):
    start: int
    end: int


class StripeInvoiceLine(StripeResource):
    amount: int
    period: StripePeriod


class StripeInvoice(StripeResource):
    """The total of a negative invoice is below zero; ``amount_remaining`` never is."""

    status: str | None = None
    total: int
    amount_remaining: int
    pre_payment_credit_notes_amount: int = 0
    post_payment_credit_notes_amount: int = 0
    lines: StripePage[StripeInvoiceLine]

    @property
    def creditable(self) -> int:
        return self.total - self.pre_payment_credit_notes_amount - self.post_payment_credit_notes_amount


class StripeCreditNote(StripeResource):
    metadata: dict[str, str] | None = None
    customer: StripeCustomer | str | None = None
    """The whole customer if it was requested: its balance then includes the credit note."""

    @property
    def ended_subscription_id(self) -> str | None:
        """The subscription whose unused time it credits."""
        metadata = self.metadata or {}
        return metadata.get(ENDED_SUBSCRIPTION_KEY) or metadata.get(FORMER_ENDED_SUBSCRIPTION_KEY)


class StripeEventRequest(StripeModel):
    idempotency_key: str | None = None


class StripeEventData(StripeModel):
    object: StripeResource


class StripeEvent(StripeResource):
    """``customer.created`` names the customer and the key of the request that created it (stripe.md 2)."""

    created: int | None = None
    request: StripeEventRequest | None = None
    data: StripeEventData
