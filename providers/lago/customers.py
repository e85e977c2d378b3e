"""One Lago customer for an organization, under ``external_id`` = organization id, proven to be the one we know.

POST /customers is create and update in one and tells nothing of which it did (lago.md 3.1), so what must not be
joined or doubled is read first where an id came from outside, and recognized in the answer elsewhere. Customers are
never deleted. ``metadata`` is never sent: it would replace what others keep there (3.3).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from lago_python_client.models import Customer as CustomerBody
from lago_python_client.models.customer import CustomerResponse
from lago_python_client.models.subscription import SubscriptionResponse

from core.ports.errors import RejectedError
from core.ports.provider import AttemptContext, Customer
from core.ports.spec import CustomerSpec, LastKnown
from providers.lago.client import LagoClient, LagoRequest, parse_time
from providers.transport.safe_ids import printable

# A customer of this age was not made by this call, clocks apart; Lago writes a new one twice within a second.
PREEXISTING_CUSTOMER_AGE = timedelta(seconds=60)
NEW_CUSTOMER_WRITE_GAP = timedelta(seconds=2)


class LagoCustomers:
    """``payment_provider_code`` is Lago's name for its Stripe connection; without it no customer is linked."""

    def __init__(self, client: LagoClient, payment_provider_code: str | None) -> None:
        self._client = client
        self._payment_provider_code = payment_provider_code

    def ensure(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        lago_id = last_known.customer_id
        if lago_id is not None and not last_known.confirmed:
            lago_id = self._verify_imported_id(spec, last_known, lago_id, attempt)
        elif last_known.maybe_lost_in_restore and self._payment_provider_code is not None:
            self._refuse_another_payer(spec, last_known, self._find(spec, spec.org_id, attempt))
        requested_at = datetime.now(UTC)
        response = self._upsert(spec, attempt)
        if lago_id is not None and response.lago_id != lago_id:
            raise _rejection(
                spec,
                f"Lago made a new one, {response.lago_id}, because the known one, {lago_id}, is no longer there; "
                "decide which of them stays",
            )
        if spec.charged_by_other_provider and _payer_id(response) is not None:
            raise _rejection(
                spec,
                f"Lago charges {printable(_payer_id(response))}, but Stripe charges for this plan; "
                "unlink the payment provider in Lago, then retry",
            )
        if self._has_other_payer(spec, response):
            # A provider sent with the create itself can be ignored, sent again it is set (lago.md 3.5).
            response = self._upsert(spec, attempt)
            if self._has_other_payer(spec, response):
                raise _rejection(
                    spec,
                    f"Lago does not take {spec.payer_id} as the payer at its connection {self._payment_provider_code}; "
                    "set it there, then retry",
                )
        if lago_id is None and _existed_before(response, requested_at):
            self._refuse_other_subscriptions(spec, attempt)
        return Customer(id=response.lago_id, payer_id=_payer_id(response))

    def _verify_imported_id(
        self, spec: CustomerSpec, last_known: LastKnown, imported: str, attempt: AttemptContext
    ) -> str:
        """The ``lago_id`` of our customer, if the id that came from outside really means it. Reads only."""
        found = self._find(spec, spec.org_id, attempt)
        if found is None:
            raise self._unknown_id_error(spec, imported, attempt)
        if imported not in (found.lago_id, spec.org_id):
            raise _rejection(
                spec,
                f"Lago knows it as {found.lago_id}, not as {printable(imported)}; "
                f"if that is right, {_set_id_hint(spec, found.lago_id)}, then retry",
            )
        self._refuse_another_payer(spec, last_known, found)
        self._refuse_other_subscriptions(spec, attempt)
        return found.lago_id

    def _refuse_another_payer(self, spec: CustomerSpec, last_known: LastKnown, found: CustomerResponse | None) -> None:
        """A payer that stands there is never replaced, also while ours is not known yet: it takes cards with it.

        Until ours is read again, the one that Lago was told last is no other one: it is left as it is.
        """
        payer = _payer_id(found) if found else None
        expected = spec.payer_id or last_known.payer_id
        if self._payment_provider_code is None or spec.charged_by_other_provider or payer in (None, expected):
            return
        our_payer = f"our payer is {spec.payer_id}" if spec.payer_id else "our payer is not known yet"
        raise _rejection(spec, f"Lago charges {printable(payer)}, but {our_payer}; decide which one it is, then retry")

    def _unknown_id_error(self, spec: CustomerSpec, imported: str, attempt: AttemptContext) -> RejectedError:
        other = None if imported == spec.org_id else self._find(spec, imported, attempt)
        if other is None:
            return _rejection(
                spec,
                f"Lago knows no customer {printable(imported)}: deleted there, another account's key, or an old id; "
                f"check LAGO_API_KEY, or create a customer with the external id {spec.org_id} there "
                f"and {_set_id_hint(spec, spec.org_id)}, then retry",
            )
        return _rejection(
            spec,
            f"Lago holds {printable(imported)} as {other.lago_id} under another external id (an old identity), "
            "and an external id cannot be changed; end it there or correct the imported id, then retry",
        )

    def _find(self, spec: CustomerSpec, external_id: str, attempt: AttemptContext) -> CustomerResponse | None:
        request = LagoRequest(
            context=f"customer {spec.org_id}",
            method="GET",
            path=("customers", external_id),
            root="customer",
            response_type=CustomerResponse,
        )
        return self._client.send_or_none("customer_not_found", request, attempt)

    def _upsert(self, spec: CustomerSpec, attempt: AttemptContext) -> CustomerResponse:
        body: dict[str, object] = {
            "external_id": spec.org_id,
            "name": spec.name,
            "email": spec.email,
            "currency": spec.currency,
        }
        if self._has_linked_payer(spec):
            body["billing_configuration"] = {
                "payment_provider": "stripe",
                "payment_provider_code": self._payment_provider_code,
                "provider_customer_id": spec.payer_id,
                # Only this system creates Stripe customers; with True Lago would make a second one.
                "sync_with_provider": False,
            }
        request = LagoRequest(
            context=f"customer {spec.org_id}",
            method="POST",
            path=("customers",),
            root="customer",
            response_type=CustomerResponse,
            body=CustomerBody.parse_obj(body),
        )
        response = self._client.send(request, attempt)
        if response.external_id != spec.org_id:
            raise _rejection(spec, f"Lago answered for another customer, {printable(response.external_id)}; look there")
        return response

    def _has_linked_payer(self, spec: CustomerSpec) -> bool:
        return spec.payer_id is not None and self._payment_provider_code is not None

    def _has_other_payer(self, spec: CustomerSpec, response: CustomerResponse) -> bool:
        return self._has_linked_payer(spec) and _payer_id(response) != spec.payer_id

    def _refuse_other_subscriptions(self, spec: CustomerSpec, attempt: AttemptContext) -> None:
        """A subscription that is not ours on our customer would be billed beside ours."""
        request = LagoRequest(
            context=f"subscriptions of customer {spec.org_id}",
            method="GET",
            path=("subscriptions",),
            root="subscriptions",
            response_type=SubscriptionResponse,
            # Without the brackets Lago ignores the filter and lists the active ones only (lago.md 5.3).
            params={"external_customer_id": spec.org_id, "status[]": ["active", "pending"], "per_page": "100"},
        )
        subscriptions, more = self._client.list_page(request, attempt)
        others = [found for found in subscriptions if found.external_id != spec.org_id]
        if others:
            raise _rejection(
                spec,
                f"Lago has the {others[0].status} subscription {printable(others[0].external_id)} on it "
                f"({others[0].lago_id}), and ours would bill twice; end that one there, then retry",
            )
        if more:
            raise _rejection(spec, "Lago has more than 100 subscriptions on it; look there")


def _existed_before(response: CustomerResponse, requested_at: datetime) -> bool:
    context = f"customer {response.external_id}"
    created_at, updated_at = parse_time(context, response.created_at), parse_time(context, response.updated_at)
    return created_at < requested_at - PREEXISTING_CUSTOMER_AGE or updated_at > created_at + NEW_CUSTOMER_WRITE_GAP


def _payer_id(customer: CustomerResponse) -> str | None:
    configuration = customer.billing_configuration
    return configuration.provider_customer_id if configuration else None


def _set_id_hint(spec: CustomerSpec, customer_id: str) -> str:
    return f"bring it with `billing-sync set-customer-id {spec.org_id} --lago {customer_id}`"


def _rejection(spec: CustomerSpec, sentence: str) -> RejectedError:
    message = f"customer {spec.org_id}: {sentence}"
    return RejectedError("lago", message)
