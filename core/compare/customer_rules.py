"""What may be wrong with the customer of one organization at one provider."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from core.compare.advice import AdviceCode
from core.compare.findings import FindingKind
from core.compare.provider_side import ProviderSide, RuleFinding
from core.db.models.billing_links import MarksState
from core.ports.errors import RejectedError
from core.ports.observed import ObservedCustomer
from core.ports.spec import CustomerSpec

_MARKS_MAY_BE_MISSING: Final[frozenset[MarksState]] = frozenset({"due", "none", "removal"})


def wrong_account(side: ProviderSide) -> RuleFinding | None:
    """The link's ids belong to another account than our API key, where they mean nothing."""
    key_account, link_account = side.key_account, side.link.account_id
    if not side.is_active or None in {key_account, link_account} or key_account == link_account:
        return None
    return RuleFinding(
        kind="wrong_account",
        field="account_id",
        ours=link_account,
        theirs=key_account,
        advice=side.advice("wrong_account", link_account=link_account, key_account=key_account),
        object_id=side.link.customer_id,
    )


def customer_findings(side: ProviderSide) -> Iterable[RuleFinding]:
    linked_id = side.link.customer_id
    others = [each for each in side.observed.customers if each.id != linked_id and not each.deleted]
    if linked_id is None:
        return _not_linked(side, others)
    if not side.is_active:
        return _duplicates(side, linked_id, others)
    if side.usable_customer is None:
        return [_missing_customer(side, linked_id, others)]
    return [*_duplicates(side, linked_id, others), *_field_findings(side, side.usable_customer)]


def _not_linked(side: ProviderSide, customers: Sequence[ObservedCustomer]) -> Iterable[RuleFinding]:
    if len(customers) == 1 and _is_adopted_by_next_reconcile(side):
        return
    kind: FindingKind = "unknown_customer" if len(customers) == 1 else "duplicate"
    for each in customers:
        advice = side.advice("customer_not_linked")
        yield RuleFinding(kind=kind, field="customer_id", ours=None, theirs=each.id, advice=advice, observed=each)


def _is_adopted_by_next_reconcile(side: ProviderSide) -> bool:
    """Whether the customer is ours, its response was lost, and then the link was parked or the organization deleted.

    The next attempt that writes anything finds it: at Lago by our own id, at Stripe by the stored intent. A link that
    an import put on hold waits for an operator instead.
    """
    if side.provider == "lago":
        return side.link.state != "on_hold"
    is_creating_customer = side.link.intent is not None and side.link.intent["operation"] == "create_customer"
    return side.link.state == "parked" and is_creating_customer


def _duplicates(side: ProviderSide, linked_id: str, others: Iterable[ObservedCustomer]) -> Iterable[RuleFinding]:
    for each in others:
        yield RuleFinding(
            kind="duplicate",
            field="metadata.billing_sync_org_id",
            ours=linked_id,
            theirs=each.id,
            advice=side.advice("duplicate_customer", linked_id=linked_id, duplicate_id=each.id),
            observed=each,
        )


def _missing_customer(side: ProviderSide, linked_id: str, others: Sequence[ObservedCustomer]) -> RuleFinding:
    kind, code = _how_it_is_missing(side, others)
    return RuleFinding(
        kind=kind,
        field="customer_id",
        ours=linked_id,
        theirs=", ".join(each.id for each in others) or None,
        advice=side.advice(code),
        object_id=linked_id,
    )


def _how_it_is_missing(side: ProviderSide, others: Sequence[ObservedCustomer]) -> tuple[FindingKind, AdviceCode]:
    """Only Stripe says that a customer was deleted; at Lago, another customer with our id proves it."""
    if side.customer is not None:
        return "deleted", "customer_deleted"
    if not others:
        return "missing", "customer_not_found"
    if side.provider == "lago":
        return "deleted", "customer_recreated"
    return "missing", "other_customer_has_org_id"


def _field_findings(side: ProviderSide, customer: ObservedCustomer) -> Iterable[RuleFinding]:
    desired = side.desired
    if isinstance(desired, RejectedError) or not desired.active:
        return
    has_mark = (customer.org_id or customer.former_org_id) == side.organization.id
    # An adopted customer may be without our marks, and then need none.
    if not has_mark and (customer.org_id is not None or side.link.marks not in _MARKS_MAY_BE_MISSING):
        yield _back_link(side, customer)
        if customer.org_id is not None:
            return
    fields = [*_name_and_email(side, customer, desired.customer)]
    if side.provider == "lago":
        fields += _currency(side, customer, desired.customer)
        payer = [*_payer(side, customer, desired.customer)]
        if not all(each.repairable for each in payer):
            # A repair writes the customer with its payer, which nobody has decided.
            fields = [replace(each, repairable=False, advice=side.advice("payer_is_first")) for each in fields]
        fields += payer
    yield from fields


def _back_link(side: ProviderSide, customer: ObservedCustomer) -> RuleFinding:
    was_cleared = customer.org_id is None
    return RuleFinding(
        kind="back_link",
        field="metadata.billing_sync_org_id",
        ours=side.organization.id,
        theirs=customer.org_id,
        advice=side.advice("org_id_cleared")
        if was_cleared
        else side.advice("customer_of_two_organizations", customer_id=customer.id),
        observed=customer,
        repairable=was_cleared,
    )


def _name_and_email(side: ProviderSide, customer: ObservedCustomer, spec: CustomerSpec) -> Iterable[RuleFinding]:
    pairs: list[tuple[FindingKind, str, str | None, str | None]] = [
        ("renamed", "name", spec.name, customer.name),
        ("email", "email", spec.email, customer.email),
    ]
    for kind, field, ours, theirs in pairs:
        if ours is not None and ours != theirs:
            yield RuleFinding(
                kind=kind,
                field=field,
                ours=ours,
                theirs=theirs,
                advice=side.advice("customer_field_differs", field=field),
                observed=customer,
                repairable=True,
            )


def _currency(side: ProviderSide, customer: ObservedCustomer, spec: CustomerSpec) -> Iterable[RuleFinding]:
    if spec.currency is None or customer.currency == spec.currency:
        return
    repairable = customer.currency is None
    yield RuleFinding(
        kind="currency",
        field="currency",
        ours=spec.currency,
        theirs=customer.currency,
        advice=side.advice("customer_field_differs", field="currency")
        if repairable
        else side.advice("charged_currency_differs", theirs=customer.currency),
        observed=customer,
        repairable=repairable,
    )


def _payer(side: ProviderSide, customer: ObservedCustomer, spec: CustomerSpec) -> Iterable[RuleFinding]:
    if spec.charged_by_other_provider and customer.payer_id is not None:
        yield RuleFinding(
            kind="double_charging",
            field="provider_customer_id",
            ours=None,
            theirs=customer.payer_id,
            advice=side.advice("payer_still_linked"),
            observed=customer,
        )
    elif spec.without_payer and customer.payer_id is not None:
        yield RuleFinding(
            kind="broken_link",
            field="provider_customer_id",
            ours=None,
            theirs=customer.payer_id,
            advice=side.advice("payer_set"),
            observed=customer,
        )
    elif spec.payer_id is not None and customer.payer_id != spec.payer_id:
        code = _payer_code(side, customer)
        yield RuleFinding(
            kind="broken_link",
            field="provider_customer_id",
            ours=spec.payer_id,
            theirs=customer.payer_id,
            advice=side.advice(code),
            observed=customer,
            repairable=code == "payer_not_set",
        )


def _payer_code(side: ProviderSide, customer: ObservedCustomer) -> AdviceCode:
    """A payer that Lago had is charged again only by a decision: somebody may have ended that on purpose."""
    if customer.payer_id is not None:
        return "payer_differs"
    return "payer_removed" if side.link.payer_id is not None else "payer_not_set"
