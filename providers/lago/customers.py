"""One Lago customer per organization, verified to be the last-known one.

Its ``external_id`` is the organization's id. An adopted customer keeps its own, and none is created under that.

POST /customers creates or updates, and does not report which (lago.md 3.1). A customer with an imported id is therefore
read before it is written. Otherwise the response shows whether the customer existed before. Customers are never
deleted. ``metadata`` is never sent, because it would replace the entries of others (3.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from lago_python_client.models import Customer as CustomerBody
from lago_python_client.models.customer import CustomerResponse
from lago_python_client.models.subscription import SubscriptionResponse

from core.compare.advice import Advice, AdviceCode
from core.compare.charging_guard import DOUBLE_CHARGING
from core.ports.errors import ConflictError, OlderCustomerFoundError, RejectedError
from core.ports.planned import PlannedStep
from core.ports.provider import AttemptContext, Customer
from core.ports.spec import PAYER_CHANGED, CustomerSpec, LastKnown
from providers.lago import planned_steps
from providers.lago.client import LagoClient, LagoRequest, parse_time
from providers.lago.subscriptions import LIVE_STATUSES
from providers.transport.safe_ids import printable

# A customer that is older than this was not created by this call. The margin is for clocks that differ.
PREEXISTING_CUSTOMER_AGE = timedelta(seconds=60)
# Lago writes a new customer twice within a second. A longer gap means that the customer existed before.
NEW_CUSTOMER_WRITE_GAP = timedelta(seconds=2)


class LagoCustomers:
    """``payment_provider_code`` is Lago's code of its Stripe connection; without it no customer is linked to Stripe.

    ``payment_methods`` are sent when a customer is linked for the first time, and never again: somebody may have
    changed them in Lago since. An imported customer has had its methods before.
    """

    def __init__(
        self,
        client: LagoClient,
        payment_provider_code: str | None,
        payment_methods: Sequence[str] = (),
        billing_entity_code: str | None = None,
    ) -> None:
        self._client = client
        self._payment_provider_code = payment_provider_code
        self._payment_methods = list(payment_methods)
        self._billing_entity_code = billing_entity_code

    def ensure(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        lago_id = last_known.customer_id
        payer_before = last_known.payer_id if last_known.payer_confirmed else None
        spec = _with_last_known_payer(spec, last_known)
        found = self._read_before_first_write(spec, last_known, attempt)
        is_known_older = found is not None and lago_id is not None
        # Lago moves a customer that exists to the entity of the request, and nobody asked for that.
        entity_code = self._billing_entity_code if lago_id is None and found is None else None
        if found is not None and is_known_older:
            lago_id, payer_before = found.lago_id, _payer_id(found)
        in_lago = self._read_adopted(spec, last_known, attempt) if last_known.is_adopted and found is None else found
        if in_lago is not None and last_known.is_adopted:
            spec = _without_first_address(spec, in_lago)
        requested_at = datetime.now(UTC)
        # A payer that Lago has already is not sent again, so that this request overwrites nobody's change of it.
        sends_payer = payer_before is None or spec.payer_id != payer_before
        if in_lago is not None and spec.name is None and not (sends_payer and self._has_other_payer(spec, in_lago)):
            self._check_response(spec, replace(last_known, customer_id=lago_id), in_lago, sends_payer=False)
            return Customer(id=in_lago.lago_id, payer_id=_payer_id(in_lago), is_older=is_known_older)
        methods = self._first_link_methods(spec, last_known, attempt) if sends_payer else ()
        attempt.before_change(
            lambda: self._planned_upsert(spec, replace(last_known, customer_id=lago_id), attempt, sends_payer)
        )
        if last_known.maybe_older and lago_id is None:
            attempt.record_no_older_customer()
        response = self._upsert(spec, attempt, sends_payer=sends_payer, methods=methods, entity_code=entity_code)
        self._check_response(spec, replace(last_known, customer_id=lago_id), response, sends_payer=sends_payer)
        if self._has_other_payer(spec, response):
            # Lago may ignore a payment provider that is sent with the create. Sent again, it is set (lago.md 3.5).
            response = self._upsert(spec, attempt, sends_payer=True, methods=methods)
            if self._has_other_payer(spec, response):
                raise _rejection(
                    spec,
                    f"Lago did not accept {spec.payer_id} as the payer in its connection "
                    f"{self._payment_provider_code}; set it in Lago, then retry",
                )
        is_older = lago_id is None and _existed_before(response, requested_at)
        if is_older:
            self._refuse_other_subscriptions(spec, attempt)
        # Only a customer that was linked before is written to Stripe within the request (lago.md 8, B6).
        payer_accepted = payer_before is not None and payer_before == _payer_id(response)
        return Customer(
            id=response.lago_id,
            payer_id=_payer_id(response),
            payer_accepted=payer_accepted,
            is_older=is_older or is_known_older or last_known.maybe_lost_in_restore,
        )

    def _check_response(
        self, spec: CustomerSpec, last_known: LastKnown, response: CustomerResponse, *, sends_payer: bool
    ) -> None:
        """Refuse what the response shows. The customer of an imported id that is our external id was read before it
        got on hold.
        """
        lago_id = last_known.customer_id
        if lago_id is not None and lago_id not in {response.lago_id, _external_id(spec)}:
            raise _rejection(
                spec,
                f"{lago_id} no longer exists in Lago, so Lago created a new customer, {response.lago_id}; "
                "decide which one to keep",
            )
        _refuse_other_currency(spec, response)
        if spec.charged_by_other_provider and _payer_id(response) is not None:
            message = (
                f"customer {spec.org_id}: Lago charges {printable(_payer_id(response))}, but Stripe charges for this "
                "plan; `billing-sync charging move --to stripe` moves it"
            )
            raise RejectedError("lago", message, DOUBLE_CHARGING)
        self._refuse_changed_payer(spec, last_known, response, sends_payer=sends_payer)

    def _planned_upsert(
        self,
        spec: CustomerSpec,
        last_known: LastKnown,
        attempt: AttemptContext,
        sends_payer: bool,  # noqa: FBT001 - as in the request
    ) -> Iterator[PlannedStep]:
        """Then raises what the response would be refused for, as the customer shows now."""
        found = self._find(spec, _external_id(spec), attempt)
        lago_id = last_known.customer_id
        payer = spec.payer_id if sends_payer and self._has_linked_payer(spec) else None
        yield from planned_steps.customer_steps(spec, found, payer)
        if found is not None:
            self._check_response(spec, last_known, found, sends_payer=sends_payer)
            if lago_id is None:
                self._refuse_other_subscriptions(spec, attempt)
        elif lago_id not in {None, _external_id(spec)}:
            sentence = f"{lago_id} no longer exists in Lago, so Lago would create a new customer; decide what to keep"
            raise _rejection(spec, sentence)

    def _first_link_methods(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Sequence[str]:
        """Empty unless this request links the customer for the first time.

        The payer is stored before the first request, which may not have been sent. Lago then says if it has a payer.
        """
        if not self._payment_methods or not self._has_linked_payer(spec):
            return ()
        if last_known.customer_id is None:
            return self._payment_methods
        if not last_known.confirmed or last_known.payer_confirmed:
            return ()
        if last_known.applied:
            return self._payment_methods
        found = self._find(spec, _external_id(spec), attempt)
        return self._payment_methods if found is not None and _payer_id(found) is None else ()

    def _verify_imported_id(
        self, spec: CustomerSpec, last_known: LastKnown, imported: str, attempt: AttemptContext
    ) -> CustomerResponse:
        """Our customer, if the imported id really is that customer's. Only reads."""
        external_id = _external_id(spec)
        found = self._find(spec, external_id, attempt)
        if found is None:
            raise self._unknown_id_error(spec, imported, attempt)
        if imported not in (found.lago_id, external_id):
            raise _rejection(
                spec,
                f"the customer is {found.lago_id} in Lago, not {printable(imported)}; "
                f"if that is correct, {_set_id_advice(spec, found.lago_id)}, then retry",
            )
        self._refuse_unclear_payments(spec, last_known, found, attempt)
        return found

    def _read_before_first_write(
        self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> CustomerResponse | None:
        """Our customer, if it may exist: the write would replace its payer, and its billing entity.

        Raises ``OlderCustomerFoundError`` for one under the organization's id, which came from outside.
        """
        imported = last_known.customer_id
        if imported is not None:
            return None if last_known.confirmed else self._verify_imported_id(spec, last_known, imported, attempt)
        replaces_nothing = self._payment_provider_code is None and self._billing_entity_code is None
        is_adopted = spec.external_ids.customer_id is not None
        if not (last_known.maybe_older or is_adopted) and (not last_known.maybe_lost_in_restore or replaces_nothing):
            return None
        found = self._find(spec, _external_id(spec), attempt)
        if is_adopted and found is None:
            raise _rejection(spec, f"Lago has no customer with the external id {_shown_id(spec)} any more; check Lago")
        if found is not None and last_known.maybe_older and not is_adopted:
            raise OlderCustomerFoundError(found.lago_id)
        if not is_adopted:
            self._refuse_another_payer(spec, last_known, found)
        elif found is not None:
            self._refuse_unclear_payments(spec, last_known, found, attempt)
        return found

    def _read_adopted(
        self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> CustomerResponse | None:
        """None: it is not known in Lago, and a write says what is wrong, unless it would create one without a name."""
        found = self._find(spec, _external_id(spec), attempt)
        if found is None and spec.name is None and last_known.customer_id is not None:
            raise self._unknown_id_error(spec, last_known.customer_id, attempt)
        return found

    def _refuse_unclear_payments(
        self, spec: CustomerSpec, last_known: LastKnown, found: CustomerResponse, attempt: AttemptContext
    ) -> None:
        """Call before the first write to a customer that existed before."""
        _refuse_other_currency(spec, found)
        self._refuse_another_payer(spec, last_known, found)
        has_subscription = self._refuse_other_subscriptions(spec, attempt)
        self._refuse_missing_payer(spec, last_known, found, has_subscription=has_subscription)

    def _refuse_missing_payer(
        self, spec: CustomerSpec, last_known: LastKnown, found: CustomerResponse, *, has_subscription: bool
    ) -> None:
        """Who has a subscription and no payer is not charged by Lago, and is not charged from now on without a word.

        If we know the subscription, it waited for its payer; if it had one, somebody removed it.
        """
        if self._payment_provider_code is None or spec.charged_by_other_provider or _payer_id(found) is not None:
            return
        if spec.without_payer:
            return
        if last_known.subscription_id is None and has_subscription:
            raise _payer_conflict("conflict_payer_never_set", spec, spec.payer_id)
        if last_known.subscription_id is not None and last_known.payer_id is not None:
            raise _payer_conflict("conflict_payer_removed", spec, last_known.payer_id)

    def _refuse_another_payer(self, spec: CustomerSpec, last_known: LastKnown, found: CustomerResponse | None) -> None:
        """Never replace a payer that is set in Lago, even while ours is not known yet: its cards would go with it.

        Until ours is read again, the last-known payer counts as ours and is left as it is.
        """
        payer = _payer_id(found) if found else None
        expected = spec.payer_id or last_known.payer_id
        if self._payment_provider_code is None or spec.charged_by_other_provider or payer in (None, expected):
            return
        our_payer = f"our payer is {spec.payer_id}" if spec.payer_id else "our payer is not yet known"
        raise _rejection(spec, f"Lago charges {printable(payer)}, but {our_payer}; decide which is correct, then retry")

    def _unknown_id_error(self, spec: CustomerSpec, imported: str, attempt: AttemptContext) -> RejectedError:
        other = None if imported == _external_id(spec) else self._find(spec, imported, attempt)
        if other is None:
            return _rejection(
                spec,
                f"Lago has no customer {printable(imported)}: it was deleted, belongs to another account, or the id is "
                f"outdated; check LAGO_API_KEY, or create a customer with the external id {_shown_id(spec)} in Lago "
                f"and {_set_id_advice(spec, _shown_id(spec))}, then retry",
            )
        return _rejection(
            spec,
            f"{printable(imported)} is customer {other.lago_id} in Lago under another external id, which cannot be "
            "changed; delete that customer in Lago or correct the imported id, then retry",
        )

    def _find(self, spec: CustomerSpec, external_id: str, attempt: AttemptContext) -> CustomerResponse | None:
        request = LagoRequest(
            context=f"customer {spec.org_id}",
            method="GET",
            path=("customers", external_id),
            root="customer",
            response_type=CustomerResponse,
        )
        found = self._client.send_or_none("customer_not_found", request, attempt)
        if found is not None:
            _refuse_another_customer(spec, external_id, found)
        return found

    def _refuse_changed_payer(
        self, spec: CustomerSpec, last_known: LastKnown, response: CustomerResponse, *, sends_payer: bool
    ) -> None:
        """Somebody else's payer is neither stored as ours nor replaced. It was not sent if ours is not known yet.

        A payer that somebody removed is not set again: Lago would charge whom somebody wanted to charge no more.
        """
        payer, ours = _payer_id(response), last_known.payer_id
        if spec.without_payer and payer is not None and not spec.charged_by_other_provider:
            raise _payer_conflict("conflict_payer_set", spec, None, payer)
        was_sent = sends_payer and self._has_linked_payer(spec)
        if was_sent or ours is None or payer == ours:
            return
        if not last_known.payer_confirmed:
            # An earlier request may have been lost, so this proves no change. It is sent once ours is known.
            self._refuse_another_payer(spec, last_known, response)
            return
        if payer is not None:
            raise _payer_conflict("conflict_payer", spec, ours, payer)
        if not spec.charged_by_other_provider and self._payment_provider_code is not None:
            raise _payer_conflict("conflict_payer_removed", spec, ours)

    def _upsert(
        self,
        spec: CustomerSpec,
        attempt: AttemptContext,
        *,
        sends_payer: bool,
        methods: Sequence[str],
        entity_code: str | None = None,
    ) -> CustomerResponse:
        body: dict[str, object] = {
            "external_id": _external_id(spec),
            "name": spec.name,
            "email": spec.email,
            "currency": spec.currency,
            "billing_entity_code": entity_code,
        }
        if sends_payer and self._has_linked_payer(spec):
            body["billing_configuration"] = {
                "payment_provider": "stripe",
                "payment_provider_code": self._payment_provider_code,
                "provider_customer_id": spec.payer_id,
                # Only this system creates Stripe customers; with True Lago would create a second one.
                "sync_with_provider": False,
                **({"provider_payment_methods": list(methods)} if methods else {}),
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
        _refuse_another_customer(spec, _external_id(spec), response)
        return response

    def _has_linked_payer(self, spec: CustomerSpec) -> bool:
        return spec.payer_id is not None and self._payment_provider_code is not None

    def _has_other_payer(self, spec: CustomerSpec, response: CustomerResponse) -> bool:
        return self._has_linked_payer(spec) and _payer_id(response) != spec.payer_id

    def _refuse_other_subscriptions(self, spec: CustomerSpec, attempt: AttemptContext) -> bool:
        """A subscription on our customer that is not ours would be billed in addition to ours. Whether ours exists."""
        request = LagoRequest(
            context=f"subscriptions of customer {spec.org_id}",
            method="GET",
            path=("subscriptions",),
            root="subscriptions",
            response_type=SubscriptionResponse,
            params={"external_customer_id": _external_id(spec), "status[]": LIVE_STATUSES, "per_page": "100"},
        )
        subscriptions, more = self._client.list_page(request, attempt)
        ours = spec.external_ids.subscription_of(spec.org_id)
        others = [found for found in subscriptions if found.external_id != ours]
        if others:
            raise _rejection(
                spec,
                f"the customer already has the {others[0].status} subscription {printable(others[0].external_id)} "
                f"({others[0].lago_id}) in Lago, and ours would bill twice; end that subscription in Lago, then retry",
            )
        if more:
            raise _rejection(spec, "the customer has more than 100 subscriptions in Lago; check Lago")
        return bool(subscriptions)


def _external_id(spec: CustomerSpec) -> str:
    return spec.external_ids.customer_of(spec.org_id)


def _shown_id(spec: CustomerSpec) -> str:
    return printable(_external_id(spec))


def _refuse_another_customer(spec: CustomerSpec, external_id: str, response: CustomerResponse) -> None:
    if response.external_id != external_id:
        raise _rejection(spec, f"Lago returned another customer, {printable(response.external_id)}; check Lago")


def _without_first_address(spec: CustomerSpec, found: CustomerResponse) -> CustomerSpec:
    """Lago has several addresses, with commas, and we know the first one: sent again, it would delete the others."""
    first = (found.email or "").split(",")[0].strip()
    return replace(spec, email=None) if spec.email == first else spec


def _existed_before(response: CustomerResponse, requested_at: datetime) -> bool:
    context = f"customer {response.external_id}"
    created_at, updated_at = parse_time(context, response.created_at), parse_time(context, response.updated_at)
    return created_at < requested_at - PREEXISTING_CUSTOMER_AGE or updated_at > created_at + NEW_CUSTOMER_WRITE_GAP


def _refuse_other_currency(spec: CustomerSpec, response: CustomerResponse) -> None:
    """Lago takes a plan in another currency than the customer's and mixes the two (lago.md 5.1)."""
    if spec.plan_currency is None or response.currency in {None, spec.plan_currency}:
        return
    sentence = (
        f"it pays in {printable(response.currency)} in Lago, and its plan costs {spec.plan_currency}; "
        f"run `billing-sync set {spec.org_id} --plan …` with one in {printable(response.currency)}"
    )
    raise _rejection(spec, sentence)


def _with_last_known_payer(spec: CustomerSpec, last_known: LastKnown) -> CustomerSpec:
    """A write whose outcome is not known is repeated with its payer, also while ours is read again in Stripe."""
    is_unknown = last_known.confirmed and not last_known.applied
    if spec.payer_id is not None or spec.charged_by_other_provider or not is_unknown:
        return spec
    return replace(spec, payer_id=last_known.payer_id)


def _payer_id(customer: CustomerResponse) -> str | None:
    configuration = customer.billing_configuration
    return configuration.provider_customer_id if configuration else None


def _payer_conflict(code: AdviceCode, spec: CustomerSpec, ours: str | None, theirs: str | None = None) -> ConflictError:
    parameters = {
        "org_id": spec.org_id,
        "ours": f"the Stripe customer {ours}" if ours else "the organization's Stripe customer",
        "theirs": theirs,
    }
    return ConflictError("lago", Advice(code, parameters).sentence, PAYER_CHANGED)


def _set_id_advice(spec: CustomerSpec, customer_id: str) -> str:
    return f"set it with `billing-sync set-customer-id {spec.org_id} --lago {customer_id}`"


def _rejection(spec: CustomerSpec, sentence: str) -> RejectedError:
    message = f"customer {spec.org_id}: {sentence}"
    return RejectedError("lago", message)
