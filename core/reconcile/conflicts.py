"""Conflicts: what somebody changed at a provider, and what an operator decided about it.

A remote check that finds such a change puts the link on hold. Neither another change of the organization nor a retry
ends that, because both would overwrite the change although nobody decided it. Only ``billing-sync resolve`` does.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import and_, case, or_, select, update
from sqlalchemy.orm import Session

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import links
from core.ports.errors import RejectedError
from core.ports.spec import PROVIDERS, Provider
from core.reconcile.attempt import UNKNOWN

CHANGED_AT_PROVIDER: Final = "changed_at_provider"

IS_CONFLICT: Final = and_(BillingLink.state == "on_hold", BillingLink.error_code == CHANGED_AT_PROVIDER)
IS_NO_CONFLICT: Final = or_(
    BillingLink.state != "on_hold", BillingLink.error_code.is_distinct_from(CHANGED_AT_PROVIDER)
)


class ChangedAtProviderError(RejectedError):
    """Somebody changed at the provider what we charge, whom, or by whom. The message says what and the ways out."""

    def __init__(self, provider: Provider, message: str) -> None:
        super().__init__(provider, message, CHANGED_AT_PROVIDER)


def conflicting_providers(session: Session, org_id: str) -> list[Provider]:
    """The providers at which the organization's link is on hold for a conflict."""
    found = set(session.scalars(select(BillingLink.provider).where(BillingLink.org_id == org_id, IS_CONFLICT)))
    return [provider for provider in PROVIDERS if provider in found]


def release(change: ChangeContext, organization: Organization, provider: Provider) -> bool:
    """End the hold, so that the next attempt makes the provider match the organization as it is now.

    The caller has locked the organization. Returns False, and changes nothing, if there is no conflict.
    """
    released = change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, BillingLink.provider == provider, IS_CONFLICT)
        .values(
            state="active",
            customer_fingerprint=unconfirmed_fingerprint(),
            applied_plan=case((BillingLink.applied_plan == UNKNOWN, UNKNOWN), else_=None),
            cooldown_until=None,
            error_kind=None,
            error_code=None,
            error_message=None,
            error_request_id=None,
            error_at=None,
        )
        .returning(BillingLink.org_id)
        .execution_options(synchronize_session=False)
    ).one_or_none()
    if released is None:
        return False
    links.mark_for_sync(change, organization)
    return True


def unconfirmed_fingerprint() -> case[str | None]:
    """The value with which the next attempt reads the customer before it writes it.

    Lago may have a subscription whose create was never answered. The customer stays ours then, so it can be ended.
    """
    may_have_unknown_subscription = and_(
        BillingLink.provider == "lago",
        BillingLink.subscription_id.is_(None),
        BillingLink.customer_fingerprint.is_not(None),
    )
    return case((may_have_unknown_subscription, UNKNOWN), else_=None)
