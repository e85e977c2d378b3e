"""Which names, email addresses, currencies, plans and ids an organization may have. Raises ``InvalidChangeError``."""

from __future__ import annotations

import re

from core.catalog.plans import Catalog
from core.common import names
from core.common.validation import InvalidChangeError

MAX_ORGANIZATION_NAME_LENGTH = 200
MAX_USER_ID_LENGTH = 255
ORGANIZATION_ID_PATTERN = re.compile(r"org_[A-Za-z0-9_-]{1,60}")
# Lago's rule, without what it changes before it stores it: else Stripe would have a customer that Lago refuses, or the
# address would never compare equal (lago.md 13.1, B10).
_LOCAL_WORD = r"[\w!#$%&'*+/=?^`{|}~-]+"
_DOMAIN_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
BILLING_EMAIL_PATTERN = re.compile(rf"{_LOCAL_WORD}(?:\.{_LOCAL_WORD})*@{_DOMAIN_LABEL}(?:\.{_DOMAIN_LABEL})+")


def checked_user_id(field: str, user_id: str) -> str:
    """The one rule for the ids of users, wherever they come in. An id with a slash cannot be in a path."""
    if not 0 < len(user_id) <= MAX_USER_ID_LENGTH:
        raise InvalidChangeError(field, f"{field} must be 1 to {MAX_USER_ID_LENGTH} characters long")
    if user_id != user_id.strip() or not user_id.isprintable():
        message = f"{field} begins or ends with a space, or contains control characters; use one line of plain text"
        raise InvalidChangeError(field, message)
    return user_id


def checked_name(name: str) -> str:
    """The name without outer spaces. Nothing else of it is changed."""
    stripped = name.strip()
    if not stripped:
        raise InvalidChangeError("name", "Organization name cannot be empty")
    if len(stripped) > MAX_ORGANIZATION_NAME_LENGTH:
        raise InvalidChangeError(
            "name", f"name is {len(stripped)} characters long; at most {MAX_ORGANIZATION_NAME_LENGTH} are allowed"
        )
    refuse_invisible(stripped)
    return stripped


def refuse_invisible(name: str) -> None:
    """The message names the character, because nobody sees it."""
    if (refused := names.find_refused(name)) is not None:
        raise InvalidChangeError("name", f"name contains {refused}; use one line of text that can be seen")


def checked_email(email: str) -> str:
    if len(email) > 512 or not BILLING_EMAIL_PATTERN.fullmatch(email):  # noqa: PLR2004 - Stripe's limit (stripe.md 4)
        raise InvalidChangeError(
            "billing_email",
            "billing_email must be a single address of the form name@host.tld, without quotes, brackets or spaces",
        )
    return email


def checked_currency(currency: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise InvalidChangeError("currency", "currency must be an ISO code of three capital letters, like USD")
    return currency


def checked_offered(field: str, plan_tier: str, catalog: Catalog) -> None:
    """Whoever is on a plan that is sold no longer stays on it, and nobody else gets it."""
    if not catalog.plan(plan_tier).offered:
        message = f"plan {plan_tier} is sold no longer; plans on sale: {', '.join(catalog.offered_tiers())}"
        raise InvalidChangeError(field, message)


def checked_plan_currency(field: str, plan_tier: str, currency: str | None, catalog: Catalog) -> None:
    """All plans of an organization are in one currency. Lago takes a plan in another and mixes the two (lago.md 5.1).

    ``field`` is the one that was changed. A tier that is not in the catalog has no currency.
    """
    plan = catalog.plans.get(plan_tier)
    if plan is None or currency in {None, plan.currency}:
        return
    tiers = [tier for tier in catalog.offered_tiers() if catalog.plan(tier).currency == currency]
    raise InvalidChangeError(
        field,
        f"plan {plan_tier} costs {plan.currency}, not {currency}. Plans in {currency}: {', '.join(tiers) or 'none'}. "
        "An organization keeps its currency; create another organization for another currency",
    )
