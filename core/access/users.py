"""People who sign in. The first sign-in of somebody who belongs nowhere yet makes an organization, once.

The person's row decides which sign-in is the first: of two at the same moment one inserts it, the other waits for that
transaction and finds it there.
"""

from __future__ import annotations

import secrets
import unicodedata
from dataclasses import dataclass, replace

from sqlalchemy import select, update

from core.catalog.plans import Catalog
from core.db.database import insert_once
from core.db.models.access import Person
from core.db.models.organizations import Membership, Organization
from core.events.event_types import Change
from core.organizations import commands, memberships
from core.organizations.commands import NameTakenError, NewOrganization
from core.organizations.validation import EMAIL_PATTERN, NAME_LIMIT

EMAIL_LIMIT = 512
_SUFFIX = "'s Organization"
_TELLS_APART = 6  # hexadecimal digits: one in sixteen million meets another of the same name


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What the sign-in service says of somebody; ``email`` only where it says that it verified it."""

    user_id: str
    name: str | None = None
    email: str | None = None


def sign_in(change: Change, profile: Profile, catalog: Catalog) -> Organization | None:
    """Note the sign-in; returns the organization that it made, on the lowest plan, with the person as its owner.

    ``None``: it was not the first, or the person belongs to an organization already.
    """
    if not _is_first(change, profile):
        return None
    if change.session.scalar(select(Membership.org_id).where(Membership.user_id == profile.user_id).limit(1)):
        return None
    organization = _own_organization(change, profile, catalog)
    memberships.add(change, organization, profile.user_id, "owner")
    return organization


def remember(change: Change, profile: Profile) -> None:
    """Note somebody whom an access token names: mails and invitations go by addresses that are known to be verified.

    Whoever changes something belongs to an organization once that is done, so no sign-in would make one any more.
    """
    said = {"name": _plain(profile.name or "", NAME_LIMIT), "email": _usable(profile.email)}
    values = {field: value for field, value in said.items() if value}
    known = change.session.get(Person, profile.user_id)
    if known is None:
        seen = {"first_seen_at": change.now, "last_seen_at": change.now}
        insert_once(change.session, Person, {"user_id": profile.user_id, **values, **seen})
    elif any(getattr(known, field) != value for field, value in values.items()):
        change.session.execute(
            update(Person).where(Person.user_id == profile.user_id).values(**values, last_seen_at=change.now)
        )


def _is_first(change: Change, profile: Profile) -> bool:
    values = {
        "name": _plain(profile.name or "", NAME_LIMIT) or None,
        "email": _usable(profile.email),
        "last_seen_at": change.now,
    }
    if insert_once(change.session, Person, {"user_id": profile.user_id, "first_seen_at": change.now, **values}):
        return True
    change.session.execute(update(Person).where(Person.user_id == profile.user_id).values(values))
    return False


def _own_organization(change: Change, profile: Profile, catalog: Catalog) -> Organization:
    """Names are unique and people's are not: the second Alice's is told apart by a few digits."""
    email = _usable(profile.email)
    apart = f" {secrets.token_hex(_TELLS_APART // 2)}"
    room = NAME_LIMIT - len(_SUFFIX) - len(apart)
    name = _plain(profile.name or "", room) or _plain((email or "").split("@")[0], room) or "Somebody"
    new = NewOrganization(name=f"{name}{_SUFFIX}", plan_tier=catalog.tiers()[0], billing_email=email)
    try:
        return commands.create(change, new, catalog)
    except NameTakenError:
        return commands.create(change, replace(new, name=f"{new.name}{apart}"), catalog)


def _plain(text: str, limit: int) -> str:
    """One line without what a name may not hold."""
    kept = "".join(" " if unicodedata.category(letter) in {"Cc", "Cs"} else letter for letter in text)
    return " ".join(kept.split())[:limit].strip()


def _usable(email: str | None) -> str | None:
    return email if email and len(email) <= EMAIL_LIMIT and EMAIL_PATTERN.fullmatch(email) else None
