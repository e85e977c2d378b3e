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
from core.db.models.access import User
from core.db.models.organizations import Membership, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.organizations.commands import NameTakenError, NewOrganization
from core.organizations.validation import BILLING_EMAIL_PATTERN, MAX_ORGANIZATION_NAME_LENGTH

MAX_USER_EMAIL_LENGTH = 512
_ORGANIZATION_NAME_SUFFIX = "'s Organization"
_DISAMBIGUATOR_DIGITS = 6  # hexadecimal digits: one in sixteen million meets another of the same name


@dataclass(frozen=True, slots=True, kw_only=True)
class UserProfile:
    """What the sign-in service says of somebody; ``email`` only where it says that it verified it."""

    user_id: str
    name: str | None = None
    email: str | None = None


def sign_in(change: ChangeContext, profile: UserProfile, catalog: Catalog) -> Organization | None:
    """Note the sign-in; returns the organization that it made, on the lowest plan, with the person as its owner.

    ``None``: it was not the first, or the person belongs to an organization already.
    """
    if not _record_sign_in(change, profile):
        return None
    if change.session.scalar(select(Membership.org_id).where(Membership.user_id == profile.user_id).limit(1)):
        return None
    organization = _create_own_organization(change, profile, catalog)
    memberships.add(change, organization, profile.user_id, "owner")
    return organization


def upsert(change: ChangeContext, profile: UserProfile) -> None:
    """Note somebody whom an access token names: mails and invitations go by addresses that are known to be verified.

    Whoever changes something belongs to an organization once that is done, so no sign-in would make one any more.
    """
    profile_values = {
        "name": _clean_name(profile.name or "", MAX_ORGANIZATION_NAME_LENGTH),
        "email": _usable_email(profile.email),
    }
    values = {field: value for field, value in profile_values.items() if value}
    user = change.session.get(User, profile.user_id)
    if user is None:
        timestamps = {"first_seen_at": change.now, "last_seen_at": change.now}
        insert_once(change.session, User, {"user_id": profile.user_id, **values, **timestamps})
    elif any(getattr(user, field) != value for field, value in values.items()):
        change.session.execute(
            update(User).where(User.user_id == profile.user_id).values(**values, last_seen_at=change.now)
        )


def _record_sign_in(change: ChangeContext, profile: UserProfile) -> bool:
    values = {
        "name": _clean_name(profile.name or "", MAX_ORGANIZATION_NAME_LENGTH) or None,
        "email": _usable_email(profile.email),
        "last_seen_at": change.now,
    }
    if insert_once(change.session, User, {"user_id": profile.user_id, "first_seen_at": change.now, **values}):
        return True
    change.session.execute(update(User).where(User.user_id == profile.user_id).values(values))
    return False


def _create_own_organization(change: ChangeContext, profile: UserProfile, catalog: Catalog) -> Organization:
    """Names are unique and people's are not: the second Alice's is told apart by a few digits."""
    email = _usable_email(profile.email)
    disambiguator = f" {secrets.token_hex(_DISAMBIGUATOR_DIGITS // 2)}"
    max_length = MAX_ORGANIZATION_NAME_LENGTH - len(_ORGANIZATION_NAME_SUFFIX) - len(disambiguator)
    name = (
        _clean_name(profile.name or "", max_length)
        or _clean_name((email or "").split("@")[0], max_length)
        or "Somebody"
    )
    new = NewOrganization(name=f"{name}{_ORGANIZATION_NAME_SUFFIX}", plan_tier=catalog.tiers()[0], billing_email=email)
    try:
        return commands.create(change, new, catalog)
    except NameTakenError:
        return commands.create(change, replace(new, name=f"{new.name}{disambiguator}"), catalog)


def _clean_name(text: str, limit: int) -> str:
    """One line without what a name may not hold."""
    cleaned = "".join(" " if unicodedata.category(character) in {"Cc", "Cs"} else character for character in text)
    return " ".join(cleaned.split())[:limit].strip()


def _usable_email(email: str | None) -> str | None:
    return email if email and len(email) <= MAX_USER_EMAIL_LENGTH and BILLING_EMAIL_PATTERN.fullmatch(email) else None
