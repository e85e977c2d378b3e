"""Which change a service event makes: one type of data, one function of ``core.organizations``.

The caller holds the lock of the organization's row. ``InvalidChangeError``: the change is invalid for the organization.
The error names the field and does not repeat its value.
"""

from __future__ import annotations

from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.models.organizations import Membership, Organization
from core.events.event_types import ChangeContext
from core.inbox.event_schemas import (
    BillingDetailsChangedData,
    MembershipAddedData,
    MembershipRemovedData,
    MembershipRoleChangedData,
    OrganizationCreatedData,
    OrganizationRenamedData,
    PlanChangedData,
    ServiceEventData,
    StatusChangedData,
)
from core.organizations import commands, memberships, plan_changes
from core.organizations.commands import NewOrganization
from core.organizations.memberships import LastOwnerError


class SubjectMissingError(InvalidChangeError):
    """The subject may still arrive: a member who has not been added yet, or another owner."""


def create_organization(
    change: ChangeContext, org_id: str, data: OrganizationCreatedData, catalog: Catalog
) -> Organization:
    _reject_unknown_plan(data.plan_tier, catalog)
    new = NewOrganization(
        name=data.name,
        plan_tier=data.plan_tier,
        org_id=org_id,
        billing_email=data.billing_email,
        currency=data.currency,
    )
    organization = commands.create(change, new, catalog)
    if data.owner_user_id is not None:
        try:
            memberships.add(change, organization, data.owner_user_id, "owner")
        except InvalidChangeError as error:
            raise InvalidChangeError("owner_user_id", str(error)) from None
    return organization


def apply_change(change: ChangeContext, organization: Organization, data: ServiceEventData, catalog: Catalog) -> None:
    """Raises ``SubjectMissingError``, before any change, if the event has to wait for a member."""
    match data:
        case OrganizationRenamedData():
            commands.rename(change, organization, data.name)
        case PlanChangedData():
            _reject_unknown_plan(data.plan_tier, catalog)
            plan_changes.change_plan(change, organization, data.plan_tier, catalog)
        case StatusChangedData():
            commands.change_status(change, organization, data.status)
        case BillingDetailsChangedData():
            commands.change_billing_details(
                change, organization, catalog, billing_email=data.billing_email, currency=data.currency
            )
        case MembershipAddedData():
            _add_member(change, organization, data)
        case MembershipRemovedData():
            _remove_member(change, organization, data)
        case MembershipRoleChangedData():
            _change_role(change, organization, data)


def _reject_unknown_plan(tier: str, catalog: Catalog) -> None:
    """Like the check in each change, but the message does not repeat the value."""
    if tier not in catalog.plans:
        raise InvalidChangeError("plan_tier", f"must be one of {', '.join(catalog.tiers())}")


def _add_member(change: ChangeContext, organization: Organization, data: MembershipAddedData) -> None:
    """Whoever is a member already gets the role."""
    membership = memberships.lock(change.session, organization.id, data.user_id)
    if organization.status == "deleted":
        raise InvalidChangeError("user_id", f"{organization.id} is deleted; members cannot be added")
    if membership is None:
        memberships.add(change, organization, data.user_id, data.role)
    else:
        _change_known_role(change, organization, membership, data.role)


def _remove_member(change: ChangeContext, organization: Organization, data: MembershipRemovedData) -> None:
    membership = memberships.lock(change.session, organization.id, data.user_id)
    if membership is not None:
        try:
            memberships.remove(change, membership)
        except LastOwnerError:
            raise _wait_for_owner(organization) from None


def _change_role(change: ChangeContext, organization: Organization, data: MembershipRoleChangedData) -> None:
    membership = memberships.lock(change.session, organization.id, data.user_id)
    if membership is None:
        raise SubjectMissingError("user_id", f"this user is not a member of organization {organization.id}")
    _change_known_role(change, organization, membership, data.role)


def _change_known_role(change: ChangeContext, organization: Organization, membership: Membership, role: str) -> None:
    try:
        memberships.change_role(change, membership, role)
    except LastOwnerError:
        raise _wait_for_owner(organization) from None


def _wait_for_owner(organization: Organization) -> SubjectMissingError:
    """The message that adds the next owner may have been sent before this one, and arrive after it."""
    message = f"this user is the last owner of {organization.id}; the change waits until there is another owner"
    return SubjectMissingError("user_id", message)
