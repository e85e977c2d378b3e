"""Whether an organization is observed or managed, and the change of its mode.

An observed organization is read and compared, and nothing is written at a provider. It is observed as a whole: who is
adopted at one provider only could be charged by both. While it is given back, only our metadata is removed. Once it is
deleted nobody begins to charge it, so what is ours is ended although the other half is theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sqlalchemy import and_, or_, select, update
from sqlalchemy.orm import Session

from core.db.models.billing_links import NO_TARGET, BillingLink
from core.db.models.organizations import Management, Organization
from core.events import outbox
from core.events.event_types import ChangeContext
from core.organizations import link_states, links


def is_observed(organization: Organization, its_links: Iterable[BillingLink], installation: Management) -> bool:
    """``its_links``: both. ``installation``: the mode of organizations without one of their own (``MANAGEMENT``)."""
    mode = organization.management or installation
    return mode == "observe" or any(link.ownership == "theirs" or _is_given_back(link) for link in its_links)


def is_link_observed(
    organization: Organization, link: BillingLink, its_links: Collection[BillingLink], installation: Management
) -> bool:
    """Whether nothing may be written for this link. ``its_links``: both."""
    if not is_observed(organization, its_links, installation):
        return False
    mode = organization.management or installation
    return mode == "observe" or not _is_ended_alone(organization, link, its_links)


def _is_ended_alone(organization: Organization, link: BillingLink, its_links: Iterable[BillingLink]) -> bool:
    """Whether it is of a deleted organization, and ours, or adopted and not given back: it would charge for good."""
    if organization.status != "deleted" or link.ownership == "theirs":
        return False
    return link.ownership == "ours" or not any(map(_is_given_back, its_links))


def removes_marks(organization: Organization, link: BillingLink, installation: Management) -> bool:
    """Whether an attempt at this link removes our metadata, which is all that it writes."""
    return (organization.management or installation) == "manage" and _is_given_back(link)


def _is_given_back(link: BillingLink) -> bool:
    return link.ownership == "adopted" and link.marks == "removal"


def observed_ids(session: Session, organizations: Collection[Organization], installation: Management) -> set[str]:
    """The ids of those that are observed."""
    is_given_back = and_(BillingLink.ownership == "adopted", BillingLink.marks == "removal")
    theirs = select(BillingLink.org_id).where(
        BillingLink.org_id.in_([each.id for each in organizations]),
        or_(BillingLink.ownership == "theirs", is_given_back),
    )
    by_mode = {each.id for each in organizations if (each.management or installation) == "observe"}
    return by_mode | set(session.scalars(theirs))


def set_mode(change: ChangeContext, organization: Organization, mode: Management | None) -> bool:
    """Set the organization's own mode, which wins over the installation's; None: it has none. The caller has locked it.

    Returns False, and changes nothing, if it has this mode already.
    """
    if organization.management == mode:
        return False
    organization.management = mode
    links.end_attempts(change, organization.id)
    links.mark_for_sync(change, organization, "management")
    outbox.record(change, "organization.management_changed", organization.id, {"management": mode})
    return True


def give_back(change: ChangeContext, organization: Organization) -> None:
    """What was adopted is theirs again, at both providers at once: an organization of which one half is theirs is
    observed as a whole.

    Its own mode ``manage`` ends, too. Otherwise the next adoption would write at once where MANAGEMENT is observe.
    """
    if organization.management == "manage":
        organization.management = None
    change.session.execute(
        update(BillingLink)
        .where(BillingLink.org_id == organization.id, BillingLink.ownership == "adopted")
        .values(
            **link_states.values_after("released"),
            ownership="theirs",
            marks="due",
            **NO_TARGET,
        )
        .execution_options(synchronize_session=False)
    )
    links.end_attempts(change, organization.id)
