"""Lago behind ``core.ports.provider.BillingProvider``: one customer and one subscription per organization.

Both have the organization's id. Every method may be repeated after a crash, a timeout or a lost response and ends in
the same state: Lago's writes are absolute under an ``external_id`` (lago.md 9), so no intent is recorded. Plans are
billed in advance: ``create_price`` sets ``pay_in_advance``, so a period is billed when it begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from lago_python_client.base_model import BaseResponseModel
from lago_python_client.models import Plan as PlanBody

from core.catalog.plans import EndingPolicy
from core.ports.errors import RejectedError
from core.ports.provider import AttemptContext, Customer, Subscription
from core.ports.registered_endpoints import RegisteredEndpoint
from core.ports.spec import Account, CustomerSpec, LastKnown, PriceSpec, Provider, SubscriptionSpec, key_suffix
from providers.lago import webhook_endpoints
from providers.lago.client import LagoClient, LagoRequest
from providers.lago.customers import LagoCustomers
from providers.lago.minor_units import LAGO_UNITS
from providers.lago.state_reader import LagoStateReader
from providers.lago.subscriptions import LagoSubscriptions
from providers.lago.usage_and_preview import LagoUsageAndPreview


class LagoOrganization(BaseResponseModel):
    """Lago's organization. The SDK's model drops its id (lago.md 1.3)."""

    lago_id: str


class LagoCharge(BaseResponseModel):
    """A fixed charge, or a charge for usage."""

    billable_metric_code: str | None = None
    add_on_code: str | None = None

    @property
    def code(self) -> str:
        return self.billable_metric_code or self.add_on_code or "without a code"


class LagoPlan(BaseResponseModel):
    """What a plan costs. The SDK's model refuses a fixed charge without a display name (lago.md 1.3)."""

    code: str
    name: str
    amount_cents: int
    amount_currency: str
    interval: str
    pay_in_advance: bool = True
    trial_period: float | None = None
    bill_charges_monthly: bool | None = None
    bill_fixed_charges_monthly: bool | None = None
    pending_deletion: bool | None = None
    minimum_commitment: dict[str, object] | None = None
    charges: tuple[LagoCharge, ...] = ()
    fixed_charges: tuple[LagoCharge, ...] = ()


class LagoProvider:
    """Build one in each process, after the fork. ``timeout`` is in seconds, for a whole call.

    ``payment_provider_code`` is Lago's code of its Stripe connection. If it is None, no customer is linked to Stripe.
    ``payment_methods`` are given to a customer when it is linked for the first time. Empty: Lago's default.
    ``billing_entity_code``: of new customers. None: Lago's default.
    """

    def __init__(  # noqa: PLR0913 - one for each setting of Lago
        self,
        api_url: str,
        api_key: str,
        *,
        payment_provider_code: str | None,
        payment_methods: Sequence[str] = (),
        billing_entity_code: str | None = None,
        ending: EndingPolicy,
        timeout: float = 10.0,
    ) -> None:
        self._client = LagoClient(api_url, api_key, timeout)
        self._key_suffix = key_suffix(api_key)
        self.reader = LagoStateReader(self._client)
        self.usage_and_preview = LagoUsageAndPreview(self._client)
        self._customers = LagoCustomers(self._client, payment_provider_code, payment_methods, billing_entity_code)
        self._subscriptions = LagoSubscriptions(self._client, ending)

    @property
    def provider(self) -> Provider:
        return "lago"

    def ensure_customer(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        return self._customers.ensure(spec, last_known, attempt)

    def ensure_subscription(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        return self._subscriptions.ensure(spec, last_known, attempt)

    def refuse_arranged_end(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        """Where Stripe charges from now on, the subscription in Lago goes on without a payer."""

    def end_subscription(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:  # noqa: ARG002 - ours is the one under the organization's id
        self._subscriptions.end(org_id, attempt)

    def find_price(self, code: str) -> PriceSpec | None:
        request = LagoRequest(
            context=f"plan {code}", method="GET", path=("plans", code), root="plan", response_type=LagoPlan
        )
        found = self._client.send_or_none("plan_not_found", request, permits=None)
        return None if found is None else _price_spec(found)

    def create_price(self, price: PriceSpec) -> None:
        body = {
            "code": price.code,
            "name": price.name,
            "interval": price.interval,
            "amount_cents": LAGO_UNITS.to_provider(price.amount, price.currency),
            "amount_currency": price.currency,
            "pay_in_advance": True,
        }
        request = LagoRequest(
            context=f"plan {price.code}",
            method="POST",
            path=("plans",),
            root="plan",
            response_type=LagoPlan,
            body=PlanBody.parse_obj(body),
        )
        created = self._client.send_or_none("code:value_already_exist", request, permits=None)
        # After a lost response the repeated create finds the plan that the first one created.
        existing = self.find_price(price.code) if created is None else replace(_price_spec(created), other_terms=())
        if existing != price:
            message = f"plan {price.code}: Lago has a plan with this code that differs from plans.toml; compare the two"
            raise RejectedError("lago", message)

    def fetch_account(self) -> Account:
        """The Lago organization of the key, which belongs to exactly one (lago.md 1.1). One call."""
        request = LagoRequest(
            context="the organization of the key",
            method="GET",
            path=("organizations",),
            root="organization",
            response_type=LagoOrganization,
        )
        return Account(id=self._client.send(request, permits=None).lago_id, key_suffix=self._key_suffix)

    def webhook_endpoints(self) -> list[RegisteredEndpoint]:
        """Those that are registered in the Lago organization of the key. Raises ``ProviderError``."""
        return webhook_endpoints.list_endpoints(self._client)

    def close(self) -> None:
        self._client.close()


def _price_spec(plan: LagoPlan) -> PriceSpec:
    return PriceSpec(
        code=plan.code,
        name=plan.name,
        amount=LAGO_UNITS.from_provider(plan.amount_cents, plan.amount_currency),
        currency=plan.amount_currency,
        interval=plan.interval,
        other_terms=tuple(_other_terms(plan)),
        remarks=tuple(f"it bills usage, too: {charge.code}" for charge in plan.charges),
    )


def _other_terms(plan: LagoPlan) -> Iterator[str]:
    """What the catalog cannot say, and what we count on (lago.md 4, 5.1)."""
    if plan.pending_deletion:
        yield "Lago is deleting it, which ends its subscriptions"
    if not plan.pay_in_advance:
        yield "it is billed when a period has ended (pay_in_advance is off), and the catalog's plans when it begins"
    if plan.trial_period:
        yield f"it begins with {plan.trial_period:g} days that are free (trial_period)"
    if plan.bill_charges_monthly or plan.bill_fixed_charges_monthly:
        yield "charges are billed each month, so a scheduled downgrade takes effect at the end of a month"
    if plan.minimum_commitment:
        yield "it has a minimum commitment beside its amount"
    for charge in plan.fixed_charges:
        yield f"it has a fixed charge beside its amount: {charge.code}"
