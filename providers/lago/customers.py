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
from core.ports.provider import Claim, Customer
from core.ports.spec import CustomerSpec, Known
from providers.lago.client import Call, LagoHttp, moment
from providers.transport.safe_ids import shown

# A customer of this age was not made by this call, clocks apart; Lago writes a new one twice within a second.
OLD = timedelta(seconds=60)
WRITTEN_TWICE = timedelta(seconds=2)


class LagoCustomers:
    """``payment_provider_code`` is Lago's name for its Stripe connection; without it no customer is linked."""

    def __init__(self, http: LagoHttp, payment_provider_code: str | None) -> None:
        self._http = http
        self._payment_provider_code = payment_provider_code

    def make(self, spec: CustomerSpec, known: Known, claim: Claim) -> Customer:
        lago_id = known.customer_id
        if lago_id is not None and not known.verified:
            lago_id = self._proven(spec, known, lago_id, claim)
        elif known.may_be_forgotten and self._payment_provider_code is not None:
            self._refuse_another_payer(spec, known, self._find(spec, spec.org_id, claim))
        asked_at = datetime.now(UTC)
        answer = self._upsert(spec, claim)
        if lago_id is not None and answer.lago_id != lago_id:
            raise _rejected(
                spec,
                f"Lago made a new one, {answer.lago_id}, because the known one, {lago_id}, is no longer there; "
                "decide which of them stays",
            )
        if spec.unlinked and _payer(answer) is not None:
            raise _rejected(
                spec,
                f"Lago charges {shown(_payer(answer))}, but Stripe charges for this plan; "
                "unlink the payment provider in Lago, then retry",
            )
        if self._shows_another_payer(spec, answer):
            # A provider sent with the create itself can be ignored, sent again it is set (lago.md 3.5).
            answer = self._upsert(spec, claim)
            if self._shows_another_payer(spec, answer):
                raise _rejected(
                    spec,
                    f"Lago does not take {spec.payer_id} as the payer at its connection {self._payment_provider_code}; "
                    "set it there, then retry",
                )
        if lago_id is None and _was_there_before(answer, asked_at):
            self._refuse_other_subscriptions(spec, claim)
        return Customer(id=answer.lago_id, payer_id=_payer(answer))

    def _proven(self, spec: CustomerSpec, known: Known, imported: str, claim: Claim) -> str:
        """The ``lago_id`` of our customer, if the id that came from outside really means it. Reads only."""
        found = self._find(spec, spec.org_id, claim)
        if found is None:
            raise self._not_ours(spec, imported, claim)
        if imported not in (found.lago_id, spec.org_id):
            raise _rejected(
                spec,
                f"Lago knows it as {found.lago_id}, not as {shown(imported)}; "
                f"if that is right, {_bring(spec, found.lago_id)}, then retry",
            )
        self._refuse_another_payer(spec, known, found)
        self._refuse_other_subscriptions(spec, claim)
        return found.lago_id

    def _refuse_another_payer(self, spec: CustomerSpec, known: Known, found: CustomerResponse | None) -> None:
        """A payer that stands there is never replaced, also while ours is not known yet: it takes cards with it.

        Until ours is read again, the one that Lago was told last is no other one: it is left as it is.
        """
        payer = _payer(found) if found else None
        expected = spec.payer_id or known.payer_id
        if self._payment_provider_code is None or spec.unlinked or payer in (None, expected):
            return
        ours = f"our payer is {spec.payer_id}" if spec.payer_id else "our payer is not known yet"
        raise _rejected(spec, f"Lago charges {shown(payer)}, but {ours}; decide which one it is, then retry")

    def _not_ours(self, spec: CustomerSpec, imported: str, claim: Claim) -> RejectedError:
        other = None if imported == spec.org_id else self._find(spec, imported, claim)
        if other is None:
            return _rejected(
                spec,
                f"Lago knows no customer {shown(imported)}: deleted there, another account's key, or an old id; "
                f"check LAGO_API_KEY, or create a customer with the external id {spec.org_id} there "
                f"and {_bring(spec, spec.org_id)}, then retry",
            )
        return _rejected(
            spec,
            f"Lago holds {shown(imported)} as {other.lago_id} under another external id (an old identity), "
            "and an external id cannot be changed; end it there or correct the imported id, then retry",
        )

    def _find(self, spec: CustomerSpec, external_id: str, claim: Claim) -> CustomerResponse | None:
        call = Call(
            about=f"customer {spec.org_id}",
            method="GET",
            path=("customers", external_id),
            root="customer",
            answer=CustomerResponse,
        )
        return self._http.send_unless("customer_not_found", call, claim)

    def _upsert(self, spec: CustomerSpec, claim: Claim) -> CustomerResponse:
        body: dict[str, object] = {
            "external_id": spec.org_id,
            "name": spec.name,
            "email": spec.email,
            "currency": spec.currency,
        }
        if self._linked(spec):
            body["billing_configuration"] = {
                "payment_provider": "stripe",
                "payment_provider_code": self._payment_provider_code,
                "provider_customer_id": spec.payer_id,
                # Only this system creates Stripe customers; with True Lago would make a second one.
                "sync_with_provider": False,
            }
        call = Call(
            about=f"customer {spec.org_id}",
            method="POST",
            path=("customers",),
            root="customer",
            answer=CustomerResponse,
            body=CustomerBody.parse_obj(body),
        )
        answer = self._http.send(call, claim)
        if answer.external_id != spec.org_id:
            raise _rejected(spec, f"Lago answered for another customer, {shown(answer.external_id)}; look there")
        return answer

    def _linked(self, spec: CustomerSpec) -> bool:
        return spec.payer_id is not None and self._payment_provider_code is not None

    def _shows_another_payer(self, spec: CustomerSpec, answer: CustomerResponse) -> bool:
        return self._linked(spec) and _payer(answer) != spec.payer_id

    def _refuse_other_subscriptions(self, spec: CustomerSpec, claim: Claim) -> None:
        """A subscription that is not ours on our customer would be billed beside ours."""
        call = Call(
            about=f"subscriptions of customer {spec.org_id}",
            method="GET",
            path=("subscriptions",),
            root="subscriptions",
            answer=SubscriptionResponse,
            # Without the brackets Lago ignores the filter and lists the active ones only (lago.md 5.3).
            params={"external_customer_id": spec.org_id, "status[]": ["active", "pending"], "per_page": "100"},
        )
        subscriptions, more = self._http.page(call, claim)
        others = [found for found in subscriptions if found.external_id != spec.org_id]
        if others:
            raise _rejected(
                spec,
                f"Lago has the {others[0].status} subscription {shown(others[0].external_id)} on it "
                f"({others[0].lago_id}), and ours would bill twice; end that one there, then retry",
            )
        if more:
            raise _rejected(spec, "Lago has more than 100 subscriptions on it; look there")


def _was_there_before(answer: CustomerResponse, asked_at: datetime) -> bool:
    about = f"customer {answer.external_id}"
    created_at, updated_at = moment(about, answer.created_at), moment(about, answer.updated_at)
    return created_at < asked_at - OLD or updated_at > created_at + WRITTEN_TWICE


def _payer(customer: CustomerResponse) -> str | None:
    configuration = customer.billing_configuration
    return configuration.provider_customer_id if configuration else None


def _bring(spec: CustomerSpec, customer_id: str) -> str:
    return f"bring it with `billing-sync ids {spec.org_id} --lago {customer_id}`"


def _rejected(spec: CustomerSpec, sentence: str) -> RejectedError:
    message = f"customer {spec.org_id}: {sentence}"
    return RejectedError("lago", message)
