"""Customer ids set by operators or services: stored on the link, and observed until an operator adopts the customer.

An id belongs to one organization. Setting one discards the link's last-known state, so the provider is read again. A
customer with our complete marks in Stripe needs no adoption: the attempt that reads it finds that we made it.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import select, update

from core.common.json_types import Json
from core.common.validation import InvalidChangeError
from core.db.database import acquire_advisory_locks
from core.db.models.billing_links import NO_ERROR, NO_TARGET, BillingLink
from core.db.models.organizations import Organization
from core.events import link_history, outbox
from core.events.event_types import ChangeContext
from core.organizations import link_states, links
from core.ports.spec import CUSTOMER_DELETED, Provider


def set_customer_ids(change: ChangeContext, organization: Organization, ids: Mapping[Provider, str | None]) -> None:
    """Set the given customer ids. ``None`` leaves one as it is. Raises ``InvalidChangeError``."""
    new_ids = {provider: customer_id for provider, customer_id in ids.items() if customer_id is not None}
    for provider, customer_id in new_ids.items():
        _refuse_unusable_id(change, organization, provider, customer_id)
    inactive = links.lock_inactive(change, organization.id, BillingLink.provider.in_(new_ids)) if new_ids else []
    changed = [
        _set_customer_id(change, organization, provider, customer_id) for provider, customer_id in new_ids.items()
    ]
    if any(changed):
        links.end_attempts(change, organization.id)
        with_new_id = [provider for provider, is_new in zip(new_ids, changed, strict=True) if is_new]
        links.log_freed(change, organization.id, set(inactive).intersection(with_new_id), "set-customer-id")
        links.mark_for_sync(change, organization, "set-customer-id")
        fields: list[Json] = [f"{provider}_id" for provider, new in zip(new_ids, changed, strict=True) if new]
        outbox.record(change, "organization.billing_details_changed", organization.id, {"fields": fields})
        for (provider, customer_id), is_new in zip(new_ids.items(), changed, strict=True):
            if is_new:
                link_history.record_actions(
                    change, organization.id, [provider], "customer_id_set", customer_id=customer_id
                )


def _refuse_unusable_id(
    change: ChangeContext, organization: Organization, provider: Provider, customer_id: str
) -> None:
    field = f"{provider}_id"
    _refuse_malformed(field, customer_id)
    acquire_advisory_locks(change.session, f"{provider}:{customer_id}")
    owner = change.session.scalar(
        select(BillingLink.org_id).where(BillingLink.provider == provider, BillingLink.customer_id == customer_id)
    )
    if owner not in {None, organization.id}:
        raise InvalidChangeError(field, f"{field} {customer_id} already belongs to organization {owner}")
    link = change.session.get_one(BillingLink, (organization.id, provider))
    _refuse_while_creating(field, link)
    if link.customer_id != customer_id:
        _refuse_while_braked(field, link)
    if provider == "stripe" and link.customer_id != customer_id:
        _refuse_while_subscribed(field, link)


def _refuse_malformed(field: str, customer_id: str) -> None:
    if not customer_id.strip() or len(customer_id) > 255:  # noqa: PLR2004 - the column's width
        raise InvalidChangeError(field, f"{field} must be 1 to 255 characters long; omit it to keep the current one")
    if not customer_id.isprintable() or customer_id != customer_id.strip():
        raise InvalidChangeError(
            field, f"{field} has leading or trailing spaces or control characters; send the bare id"
        )


def _refuse_while_creating(field: str, link: BillingLink) -> None:
    """A parked link has told an operator what may exist at the provider. An active one has not, so the customer that is
    being created would be orphaned.
    """
    if link.state == "active" and link.intent is not None and link.intent["operation"] == "create_customer":
        message = (
            f"{field} cannot be set while a customer of {link.org_id} is being created at the provider: "
            f"try again when `billing-sync status {link.org_id}` shows its id or why there is none"
        )
        raise InvalidChangeError(field, message)


def _refuse_while_braked(field: str, link: BillingLink) -> None:
    """Otherwise it would be another way to let a change go, and one that an API key is enough for."""
    if link.is_braked:
        command = f"`billing-sync brake release --only {link.org_id} --reason …`"
        message = f"{field} cannot change while the payment brake holds a change of {link.org_id}: first run {command}"
        raise InvalidChangeError(field, message)


def _refuse_while_subscribed(field: str, link: BillingLink) -> None:
    """Also while a subscription is being created: it would go on charging the customer of before."""
    is_creating = link.intent is not None and link.intent["operation"] == "create_subscription"
    if link.error_code == CUSTOMER_DELETED or (link.subscription_id is None and not is_creating):
        return
    subscription = f"subscription {link.subscription_id}" if link.subscription_id else "a subscription"
    state = "is active" if link.subscription_id else "is being created"
    command, option = ("resolve", " --ours") if link.is_conflict else ("retry", "")
    message = (
        f"{field} cannot change while {subscription} {state} on {link.customer_id}: end it first; if that customer was "
        f"deleted in Stripe, run `billing-sync {command} {link.org_id}{option}`, which detects it"
    )
    raise InvalidChangeError(field, message)


def _set_customer_id(change: ChangeContext, organization: Organization, provider: Provider, customer_id: str) -> bool:
    """A new id discards what is known of the old one. A link on hold becomes active."""
    # A subscription that could still charge was refused above, so this one ended with its customer.
    subscription_reset: dict[str, object] = {"subscription_id": None} if provider == "stripe" else {}
    return (
        change.session.execute(
            update(BillingLink)
            .where(
                BillingLink.org_id == organization.id,
                BillingLink.provider == provider,
                BillingLink.customer_id.is_distinct_from(customer_id),
            )
            .values(
                customer_id=customer_id,
                external_customer_id=None,
                external_subscription_id=None,
                without_payer=False,
                account_id=None,
                livemode=None,
                ownership="theirs",
                marks="ours",
                **link_states.values_after("customer_id_set"),
                sold_plan=None,
                sold_price_id=None,
                **NO_TARGET,
                applied_next_plan=None,
                replaced_next_plans=None,
                arrangement=None,
                credit_amount=None,
                credit_currency=None,
                credit_since=None,
                subscription_requested=False,
                intent=None,
                **NO_ERROR,  # it was about the former customer
                **subscription_reset,
            )
            .returning(BillingLink.org_id)
            .execution_options(synchronize_session=False)
        ).one_or_none()
        is not None
    )
