"""Lago behind ``core.ports.provider.Biller``: one customer and one subscription an organization, both under its own id.

Repeating any method after a crash, a timeout or a lost answer ends in the same state: Lago's writes are absolute
under an ``external_id`` (lago.md 9), so no intent is written ahead. Plans are sold in advance: ``add_offer`` makes
them with ``pay_in_advance`` true, so a period is billed when it begins.
"""

from __future__ import annotations

from lago_python_client.base_model import BaseResponseModel
from lago_python_client.models import Plan as PlanBody
from lago_python_client.models.plan import PlanResponse

from core.catalog.plans import Ending
from core.ports.errors import RejectedError
from core.ports.provider import Claim, Customer, Subscription
from core.ports.spec import Account, CustomerSpec, Known, Offer, Provider, SubscriptionSpec, key_ends
from providers.lago.client import Call, LagoHttp, unreadable
from providers.lago.customers import LagoCustomers
from providers.lago.state_reader import LagoAudit
from providers.lago.subscriptions import LagoSubscriptions
from providers.lago.usage_and_preview import LagoTeller


class Tenant(BaseResponseModel):
    """Lago's organization; the SDK's model drops its id (lago.md 1.3)."""

    lago_id: str


class LagoBiller:
    """Build one in each process, after the fork. ``timeout`` is in seconds, for a whole call.

    ``payment_provider_code`` is Lago's code of its Stripe connection; None links no customer to Stripe.
    """

    def __init__(
        self, api_url: str, api_key: str, *, payment_provider_code: str | None, ending: Ending, timeout: float = 10.0
    ) -> None:
        self._http = LagoHttp(api_url, api_key, timeout)
        self._key_ends = key_ends(api_key)
        self.audit = LagoAudit(self._http)
        self.teller = LagoTeller(self._http)
        self._customers = LagoCustomers(self._http, payment_provider_code)
        self._subscriptions = LagoSubscriptions(self._http, ending)

    @property
    def provider(self) -> Provider:
        return "lago"

    def make_customer(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        return self._customers.make(spec, known, claim)

    def make_subscription(self, spec: SubscriptionSpec, known: Known, claim: Claim) -> Subscription:
        return self._subscriptions.make(spec, known, claim)

    def end_subscription(self, known: Known, org_id: str, claim: Claim) -> None:  # noqa: ARG002 - ours is the one under the organization's id
        self._subscriptions.end(org_id, claim)

    def find_offer(self, code: str) -> Offer | None:
        call = Call(about=f"plan {code}", method="GET", path=("plans", code), root="plan", answer=PlanResponse)
        found = self._http.send_unless("plan_not_found", call, claim=None)
        return None if found is None else _offer(found)

    def add_offer(self, offer: Offer) -> None:
        body = {
            "code": offer.code,
            "name": offer.name,
            "interval": offer.interval,
            "amount_cents": offer.amount,
            "amount_currency": offer.currency,
            "pay_in_advance": True,
        }
        call = Call(
            about=f"plan {offer.code}",
            method="POST",
            path=("plans",),
            root="plan",
            answer=PlanResponse,
            body=PlanBody.parse_obj(body),
        )
        made = self._http.send_unless("code:value_already_exist", call, claim=None)
        # The repeat of a create whose answer was lost finds its own plan.
        there = self.find_offer(offer.code) if made is None else _offer(made)
        if there != offer:
            message = f"plan {offer.code}: Lago has one that differs from plans.toml; it is not changed; see there"
            raise RejectedError("lago", message)

    def account(self) -> Account:
        """A key belongs to one organization of Lago's (lago.md 1.1). One call."""
        call = Call(
            about="the organization of the key",
            method="GET",
            path=("organizations",),
            root="organization",
            answer=Tenant,
        )
        return Account(id=self._http.send(call, claim=None).lago_id, key_ends=self._key_ends)

    def close(self) -> None:
        self._http.close()


def _offer(plan: PlanResponse) -> Offer:
    if plan.amount_cents is None or plan.amount_currency is None or plan.interval is None:
        about = f"plan {plan.code}"
        raise unreadable(about, "amount_cents, amount_currency, interval")
    return Offer(
        code=plan.code,
        name=plan.name,
        amount=plan.amount_cents,
        currency=plan.amount_currency,
        interval=plan.interval,
    )
