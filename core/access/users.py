"""Users who sign in. The first sign-in of a user without an organization and without an invitation creates one, once.

The user's row decides which sign-in is the first. Of two simultaneous sign-ins one writes the row; the other waits for
that transaction and finds the row.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from core.access import received_invitations
from core.catalog.plans import Catalog
from core.common.names import without_refused
from core.db.database import insert_once
from core.db.models.access import User
from core.db.models.organizations import Membership, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.organizations.commands import NameTakenError, NewOrganization
from core.organizations.validation import BILLING_EMAIL_PATTERN, MAX_ORGANIZATION_NAME_LENGTH

MAX_USER_EMAIL_LENGTH = 512
_ORGANIZATION_NAME_SUFFIX = "'s Organization"
# Wider than a billing email: it is what the OIDC service knows the user by.
_USER_EMAIL_PATTERN = re.compile(r"[^@\s,]+@[^@\s,]+\.[^@\s,]+")
_DISAMBIGUATOR_DIGITS = 6  # hexadecimal digits: the chance of a collision is one in sixteen million


@dataclass(frozen=True, slots=True, kw_only=True)
class UserProfile:
    """What the sign-in service says about a user. ``email`` is set only if that service has verified it.

    ``is_email_unverified``: it says that the address is not verified. A token may also say nothing about it.
    """

    user_id: str
    name: str | None = None
    email: str | None = None
    is_email_unverified: bool = False


def sign_in(change: ChangeContext, profile: UserProfile, catalog: Catalog) -> Organization | None:
    """Records a sign-in. Returns the organization it created, on the lowest plan on sale, with its owner.

    ``None``: it was not the first sign-in, or the user already belongs to an organization or is invited to one, and
    chooses.
    """
    if not _record_sign_in(change, profile):
        return None
    if change.session.scalar(select(Membership.org_id).where(Membership.user_id == profile.user_id).limit(1)):
        return None
    email = _usable_email(profile.email)
    if received_invitations.list_received(change.session, profile.user_id, email, change.now):
        return None
    organization = _create_own_organization(change, profile, catalog)
    memberships.add(change, organization, profile.user_id, "owner", is_chosen=True)
    return organization


def upsert(change: ChangeContext, profile: UserProfile) -> None:
    """Stores the user of an access token, since emails and invitations need verified addresses.

    It is no sign-in, so the first one still creates an organization if the user belongs to none by then. An address
    that is not verified any more is forgotten, because it may be somebody else's by now.
    """
    profile_values = {
        "name": _clean_name(profile.name or "", MAX_ORGANIZATION_NAME_LENGTH),
        "email": _usable_email(profile.email),
    }
    values: dict[str, str | None] = {field: value for field, value in profile_values.items() if value}
    if profile.email is not None or profile.is_email_unverified:
        values["email"] = _usable_email(profile.email)
    user = change.session.get(User, profile.user_id)
    if user is None:
        timestamps = {"first_seen_at": change.now, "last_seen_at": change.now}
        insert_once(change.session, User, {"user_id": profile.user_id, **values, **timestamps})
    elif any(getattr(user, field) != value for field, value in values.items()):
        change.session.execute(
            update(User).where(User.user_id == profile.user_id).values(**values, last_seen_at=change.now)
        )


def verified_email(session: Session, profile: UserProfile) -> str | None:
    """The address of the token, else the remembered one, unless the token says that it is not verified any more."""
    if profile.email is not None or profile.is_email_unverified:
        return _usable_email(profile.email)
    user = session.get(User, profile.user_id)
    return None if user is None else user.email


def _record_sign_in(change: ChangeContext, profile: UserProfile) -> bool:
    """Whether it is the first."""
    name = _clean_name(profile.name or "", MAX_ORGANIZATION_NAME_LENGTH) or None
    email = _usable_email(profile.email)
    times = dict.fromkeys(("first_seen_at", "last_seen_at", "signed_in_at"), change.now)
    if insert_once(change.session, User, {"user_id": profile.user_id, "name": name, "email": email, **times}):
        return True
    user = change.session.get_one(User, profile.user_id, with_for_update=True, populate_existing=True)
    is_first = user.signed_in_at is None
    user.name, user.email, user.last_seen_at = name, email, change.now
    user.signed_in_at = user.signed_in_at or change.now
    change.session.flush()
    return is_first


def _create_own_organization(change: ChangeContext, profile: UserProfile, catalog: Catalog) -> Organization:
    """Names of organizations are unique, names of users are not: a few digits distinguish the second "Alice"."""
    email = _usable_email(profile.email)
    billing_email = email if email and BILLING_EMAIL_PATTERN.fullmatch(email) else None
    disambiguator = f" {secrets.token_hex(_DISAMBIGUATOR_DIGITS // 2)}"
    max_length = MAX_ORGANIZATION_NAME_LENGTH - len(_ORGANIZATION_NAME_SUFFIX) - len(disambiguator)
    name = (
        _clean_name(profile.name or "", max_length)
        or _clean_name((email or "").split("@")[0], max_length)
        or "Somebody"
    )
    new = NewOrganization(
        name=f"{name}{_ORGANIZATION_NAME_SUFFIX}", plan_tier=catalog.offered_tiers()[0], billing_email=billing_email
    )
    try:
        return commands.create(change, new, catalog)
    except NameTakenError:
        return commands.create(change, replace(new, name=f"{new.name}{disambiguator}"), catalog)


def _clean_name(text: str, limit: int) -> str:
    """One line, without the characters that a name must not contain."""
    cleaned = " ".join(without_refused(text).split())[:limit].strip()
    return without_refused(cleaned)  # the cut may leave a joiner without what it joins


def _usable_email(email: str | None) -> str | None:
    usable = email and len(email) <= MAX_USER_EMAIL_LENGTH and email.isprintable()
    return email if email and usable and _USER_EMAIL_PATTERN.fullmatch(email) else None
