"""Reads the customers and subscriptions in Lago and never writes (``core.ports.provider.StateReader``).

Lago's pages are numbered, newest first. A row that is deleted meanwhile shifts the others, so a page may miss one.
Lago does not record who wrote an object, only when.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from lago_python_client.base_model import BaseResponseModel
from lago_python_client.models.customer import CustomerResponse

from core.ports.external_ids import OWN_IDS, ExternalIds
from core.ports.observed import (
    ObservedCustomer,
    ObservedPage,
    ObservedPayment,
    ObservedState,
    ObservedSubscription,
    RemoteWrite,
    Repair,
    named,
)
from core.ports.provider import RequestPermits
from providers.lago.client import LagoClient, LagoRequest, parse_time
from providers.lago.subscriptions import LIVE_STATUSES, LagoSubscription, arrangement_of, is_paid_manually
from providers.transport.permits import READ_ONLY
from providers.transport.safe_ids import printable

# Lago sets no limit of its own (lago.md 3.4). A server with smaller pages only needs more of them.
LAGO_PAGE_SIZE = 200


class LagoInvoiceCustomer(BaseResponseModel):
    lago_id: str


class LagoInvoiceState(BaseResponseModel):
    """Whether an invoice was paid. The SDK's model requires many more fields."""

    lago_id: str
    status: str | None = None
    customer: LagoInvoiceCustomer | None = None
    payment_status: str | None = None
    payment_overdue: bool | None = None
    payment_dispute_lost_at: str | None = None
    total_due_amount_cents: int | None = None


class LagoStateReader:
    def __init__(self, client: LagoClient, permits: RequestPermits = READ_ONLY) -> None:
        self._client = client
        self._permits = permits

    def with_permits(self, permits: RequestPermits) -> LagoStateReader:
        return LagoStateReader(self._client, permits)

    def customers(self, cursor: str | None) -> ObservedPage[ObservedCustomer]:
        page = _page_number(cursor)
        request = LagoRequest(
            context="the list of customers",
            method="GET",
            path=("customers",),
            root="customers",
            response_type=CustomerResponse,
            params={"page": str(page), "per_page": str(LAGO_PAGE_SIZE)},
        )
        rows, more = self._client.list_page(request, self._permits)
        return ObservedPage(rows=tuple(map(_observed_customer, rows)), next_cursor=str(page + 1) if more else None)

    def subscriptions(self, cursor: str | None) -> ObservedPage[ObservedSubscription]:
        page = _page_number(cursor)
        rows, more = self._client.list_page(
            self._live_subscriptions_request("the list of subscriptions", page=str(page)), self._permits
        )
        return ObservedPage(rows=_observed_subscriptions(rows), next_cursor=str(page + 1) if more else None)

    def read(
        self,
        org_id: str,
        customer_ids: Collection[str],  # noqa: ARG002 - Lago finds ours by external ids
        external_ids: ExternalIds = OWN_IDS,
    ) -> ObservedState:
        """The customer and the subscription under their external ids, and whatever else the customer has."""
        known_as, subscription_id = external_ids.customer_of(org_id), external_ids.subscription_of(org_id)
        found = self._client.send_or_none("customer_not_found", self._customer_request(org_id, known_as), self._permits)
        listed, _ = self._client.list_page(
            self._live_subscriptions_request(f"subscriptions of customer {org_id}", external_customer_id=known_as),
            self._permits,
        )
        rows = list(listed)
        if not any(row.external_id == subscription_id for row in rows):
            # Ours may belong to another customer, whose subscriptions are not in this list.
            stray = self._client.send_or_none(
                "subscription_not_found", self._subscription_request(org_id, subscription_id), self._permits
            )
            rows += [stray] if stray is not None and stray.external_id == subscription_id else []
        # An address with an id that cannot be addressed is about another customer (core.ports.external_ids).
        customers = [_observed_customer(found)] if found is not None and found.external_id == known_as else []
        return ObservedState(
            customers=tuple(named(each, org_id, external_ids) for each in customers),
            subscriptions=tuple(named(each, org_id, external_ids) for each in _observed_subscriptions(rows)),
        )

    def read_payment(
        self, org_id: str, observed: ObservedState, *, is_charging: bool, external_ids: ExternalIds = OWN_IDS
    ) -> ObservedPayment:
        """One call for unpaid invoices, and one for lost disputes, whose invoices Lago leaves as paid (lago.md 6).

        Where Lago does not charge, nobody pays its invoices, so only a payment that failed counts.
        """
        statuses = ["failed", "pending"] if is_charging else ["failed"]
        by_customer = {"external_customer_id": external_ids.customer_of(org_id)}
        unpaid = self._list_invoices(org_id, observed, {**by_customer, "payment_statuses[]": statuses})
        disputed = self._list_invoices(org_id, observed, {**by_customer, "payment_dispute_lost": "true"})
        lost_at = [each.payment_dispute_lost_at for each in disputed if each.payment_dispute_lost_at is not None]
        return ObservedPayment(
            failed=any(each.payment_status == "failed" for each in unpaid),
            overdue=is_charging and any(_is_overdue(each) for each in unpaid),
            manual=is_charging
            and any(each.is_paid_manually for each in observed.subscriptions if each.org_id == org_id),
            dispute_lost_at=max((parse_time(f"a lost dispute of {org_id}", each) for each in lost_at), default=None),
        )

    def _list_invoices(
        self, org_id: str, observed: ObservedState, filters: Mapping[str, str | list[str]]
    ) -> list[LagoInvoiceState]:
        """The newest hundred that are finalized. A voided invoice is not: nobody owes it.

        A version of Lago that does not know a filter ignores it (lago.md 13.1, B23). And Lago also lists the invoices
        of a deleted customer that had our external id (B18).
        """
        request = LagoRequest(
            context=f"invoices of customer {org_id}",
            method="GET",
            path=("invoices",),
            root="invoices",
            response_type=LagoInvoiceState,
            params={"statuses[]": ["finalized"], **filters, "per_page": "100"},
        )
        rows, _ = self._client.list_page(request, self._permits)
        ours = {each.id for each in observed.customers}
        return [
            row
            for row in rows
            if row.status in {None, "finalized"} and (row.customer is None or not ours or row.customer.lago_id in ours)
        ]

    def recent_writes(self) -> list[RemoteWrite]:
        return []

    def planned_requests(self, repair: Repair) -> list[str]:
        requests = ["POST /api/v1/customers"] if repair.updates_customer else []
        desired, observed = repair.subscription, repair.observed
        if desired is None:
            return requests
        if observed is not None:
            desired = desired.as_sold(observed.plan_code, observed.next_plan_code)
        next_plan_code = desired.next_plan_code if desired.next_plan_code != desired.plan_code else None
        path = f"/api/v1/subscriptions/{printable(desired.external_ids.subscription_of(repair.org_id))}"
        requests.append(f"GET {path}")
        changes_plan = observed is None or observed.plan_code != desired.plan_code
        scheduled_code = observed.next_plan_code if observed is not None and not changes_plan else None
        if changes_plan:
            requests.append("POST /api/v1/subscriptions")
        if next_plan_code is not None and scheduled_code != next_plan_code:
            requests.append("POST /api/v1/subscriptions")
        if next_plan_code is None and scheduled_code is not None:
            requests.append(f"DELETE {path}?status=pending")
        return requests

    def _customer_request(self, org_id: str, external_id: str) -> LagoRequest[CustomerResponse]:
        return LagoRequest(
            context=f"customer {org_id}",
            method="GET",
            path=("customers", external_id),
            root="customer",
            response_type=CustomerResponse,
        )

    def _subscription_request(self, org_id: str, external_id: str) -> LagoRequest[LagoSubscription]:
        return LagoRequest(
            context=f"subscription {org_id}",
            method="GET",
            path=("subscriptions", external_id),
            root="subscription",
            response_type=LagoSubscription,
        )

    def _live_subscriptions_request(self, context: str, **filters: str) -> LagoRequest[LagoSubscription]:
        return LagoRequest(
            context=context,
            method="GET",
            path=("subscriptions",),
            root="subscriptions",
            response_type=LagoSubscription,
            params={**filters, "status[]": LIVE_STATUSES, "per_page": str(LAGO_PAGE_SIZE)},
        )


def _is_overdue(invoice: LagoInvoiceState) -> bool:
    is_due = invoice.total_due_amount_cents is None or invoice.total_due_amount_cents > 0
    return invoice.payment_status == "pending" and invoice.payment_overdue is True and is_due


def _page_number(cursor: str | None) -> int:
    return int(cursor) if cursor is not None else 1


def _observed_customer(response: CustomerResponse) -> ObservedCustomer:
    configuration = response.billing_configuration
    return ObservedCustomer(
        id=response.lago_id,
        org_id=response.external_id,
        name=response.name,
        # Lago accepts several addresses with commas between them, and gives the first one to Stripe (money.md 3).
        email=(response.email or "").split(",")[0].strip() or None,
        currency=response.currency,
        payer_id=configuration.provider_customer_id if configuration else None,
        changed_at=parse_optional_time(response.external_id, response.updated_at),
    )


def without_successors(rows: Collection[LagoSubscription]) -> list[LagoSubscription]:
    """A row with a predecessor that has not begun is no subscription of its own: it is the next plan of the other row.

    One that waits for its first payment is no scheduled plan either, because nothing is known of when or whether.
    """
    waiting = {row.external_id for row in rows if row.status == "incomplete" and row.previous_plan_code is not None}
    return [
        row.copy(update={"next_plan_code": None, "upgrade_waits": True})
        if row.status == "active" and row.external_id in waiting
        else row
        for row in rows
        if row.status == "active" or row.previous_plan_code is None
    ]


def _observed_subscriptions(rows: Collection[LagoSubscription]) -> tuple[ObservedSubscription, ...]:
    return tuple(
        ObservedSubscription(
            id=row.lago_id,
            customer_id=row.lago_customer_id or "",
            org_id=row.external_id,
            plan_code=row.plan_code,
            next_plan_code=row.next_plan_code,
            started=row.status == "active",
            arrangement=arrangement_of(row),
            paid_cents=int(row.plan_amount_cents) if row.plan_amount_cents is not None else None,
            is_paid_manually=is_paid_manually(row),
            changed_at=parse_optional_time(row.external_id, row.created_at),
        )
        for row in without_successors(rows)
    )


def parse_optional_time(context: str | None, value: str | None) -> datetime | None:
    return parse_time(printable(context), value) if value else None
