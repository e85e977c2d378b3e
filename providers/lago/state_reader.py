"""What Lago holds, read only, for the comparison with what it should hold (``core.ports.provider.Auditor``).

Lago turns its pages by number, newest first: what is deleted meanwhile shifts the rest, so a page may miss one. It
keeps no record of who wrote, only of when.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from lago_python_client.base_model import BaseResponseModel
from lago_python_client.models.customer import CustomerResponse
from lago_python_client.models.subscription import SubscriptionResponse

from core.ports.observed import Listed, Repair, SeenCustomer, SeenSubscription, Sight, Write
from core.ports.provider import Pace
from providers.lago.client import Call, LagoHttp, moment

# Lago sets no limit of its own (lago.md 3.4); a server that gives less at once only makes it more pages.
PAGE_SIZE = 200
# Without the brackets Lago ignores the filter and lists the active ones only (lago.md 5.3).
_ALIVE = ["active", "pending"]


class InvoiceState(BaseResponseModel):
    """Of an invoice, whether it was paid; the SDK's model asks for much more."""

    lago_id: str
    payment_status: str | None = None


class LagoAudit:
    def __init__(self, http: LagoHttp, pace: Pace | None = None) -> None:
        self._http = http
        self._pace = pace

    def paced(self, pace: Pace) -> LagoAudit:
        return LagoAudit(self._http, pace)

    def customers(self, after: str | None) -> Listed[SeenCustomer]:
        page = _number(after)
        call = Call(
            about="the list of customers",
            method="GET",
            path=("customers",),
            root="customers",
            answer=CustomerResponse,
            params={"page": str(page), "per_page": str(PAGE_SIZE)},
        )
        rows, more = self._http.page(call, self._pace)
        return Listed(rows=tuple(map(_customer, rows)), after=str(page + 1) if more else None)

    def subscriptions(self, after: str | None) -> Listed[SeenSubscription]:
        page = _number(after)
        rows, more = self._http.page(self._alive("the list of subscriptions", page=str(page)), self._pace)
        return Listed(rows=_standing(rows), after=str(page + 1) if more else None)

    def look(self, org_id: str, customer_ids: Collection[str]) -> Sight:  # noqa: ARG002 - Lago knows ours by our own id
        """The customer and the subscription under the organization's id, and whatever else the customer has."""
        found = self._http.send_unless("customer_not_found", self._customer(org_id), self._pace)
        theirs, _ = self._http.page(
            self._alive(f"subscriptions of customer {org_id}", external_customer_id=org_id), self._pace
        )
        rows = list(theirs)
        if not any(row.external_id == org_id for row in rows):
            # Ours on somebody else's customer: the list of that one's does not show it here.
            stray = self._http.send_unless("subscription_not_found", self._subscription(org_id), self._pace)
            rows += [stray] if stray is not None else []
        return Sight(customers=(_customer(found),) if found is not None else (), subscriptions=_standing(rows))

    def owes(self, org_id: str, sight: Sight) -> bool:  # noqa: ARG002 - Lago's customers do not tell
        """One call: the invoices that stand and whose payment failed."""
        call = Call(
            about=f"unpaid invoices of customer {org_id}",
            method="GET",
            path=("invoices",),
            root="invoices",
            answer=InvoiceState,
            params={
                "external_customer_id": org_id,
                "statuses[]": ["finalized"],
                "payment_statuses[]": ["failed"],
                "per_page": "20",
            },
        )
        rows, _ = self._http.page(call, self._pace)
        # A Lago that does not know a filter ignores it.
        return any(row.payment_status == "failed" for row in rows)

    def writes(self) -> list[Write]:
        return []

    def calls(self, repair: Repair) -> list[str]:
        calls = ["POST /api/v1/customers"] if repair.customer else []
        wanted, seen = repair.subscription, repair.seen
        if wanted is None:
            return calls
        after = wanted.next_plan_code if wanted.next_plan_code != wanted.plan_code else None
        path = f"/api/v1/subscriptions/{repair.org_id}"
        calls.append(f"GET {path}")
        moves = seen is None or seen.plan_code != wanted.plan_code
        waits = seen.next_plan_code if seen is not None and not moves else None
        if moves:
            calls.append("POST /api/v1/subscriptions")
        if after is not None and waits != after:
            calls.append("POST /api/v1/subscriptions")
        if after is None and waits is not None:
            calls.append(f"DELETE {path}?status=pending")
        return calls

    def _customer(self, org_id: str) -> Call[CustomerResponse]:
        return Call(
            about=f"customer {org_id}",
            method="GET",
            path=("customers", org_id),
            root="customer",
            answer=CustomerResponse,
        )

    def _subscription(self, org_id: str) -> Call[SubscriptionResponse]:
        return Call(
            about=f"subscription {org_id}",
            method="GET",
            path=("subscriptions", org_id),
            root="subscription",
            answer=SubscriptionResponse,
        )

    def _alive(self, about: str, **filters: str) -> Call[SubscriptionResponse]:
        return Call(
            about=about,
            method="GET",
            path=("subscriptions",),
            root="subscriptions",
            answer=SubscriptionResponse,
            params={**filters, "status[]": _ALIVE, "per_page": str(PAGE_SIZE)},
        )


def _number(after: str | None) -> int:
    return int(after) if after is not None else 1


def _customer(answer: CustomerResponse) -> SeenCustomer:
    configuration = answer.billing_configuration
    return SeenCustomer(
        id=answer.lago_id,
        org_id=answer.external_id,
        name=answer.name,
        # Lago takes several with commas between, and gives the first one to Stripe (money.md 3).
        email=(answer.email or "").split(",")[0].strip() or None,
        currency=answer.currency,
        payer_id=configuration.provider_customer_id if configuration else None,
        changed_at=_moment(answer.external_id, answer.updated_at),
    )


def _standing(rows: Collection[SubscriptionResponse]) -> tuple[SeenSubscription, ...]:
    """A pending row with a predecessor is not one of its own: it is the other's next plan."""
    return tuple(
        SeenSubscription(
            id=row.lago_id,
            customer_id=row.lago_customer_id or "",
            org_id=row.external_id,
            plan_code=row.plan_code,
            next_plan_code=row.next_plan_code,
            begun=row.status == "active",
            changed_at=_moment(row.external_id, row.created_at),
        )
        for row in rows
        if row.status == "active" or row.previous_plan_code is None
    )


def _moment(about: str | None, value: str | None) -> datetime | None:
    return moment(str(about), value) if value else None
