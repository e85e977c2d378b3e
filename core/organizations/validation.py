"""Which names, addresses, currencies and ids an organization may have. Raises ``InvalidChangeError``."""

from __future__ import annotations

import re
import unicodedata

from core.common.validation import InvalidChangeError

NAME_LIMIT = 200
ID_PATTERN = re.compile(r"org_[A-Za-z0-9_-]{1,60}")
EMAIL_PATTERN = re.compile(r"[^@\s,]+@[^@\s,]+\.[^@\s,]+")


def name_key(name: str) -> str:
    """What makes two names the same: outer blanks, letter case and Unicode composition do not count."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def checked_name(name: str) -> str:
    stripped = name.strip()
    if not stripped:
        raise InvalidChangeError("name", "Organization name cannot be empty")
    if len(stripped) > NAME_LIMIT:
        raise InvalidChangeError("name", f"name is {len(stripped)} characters long; at most {NAME_LIMIT} are allowed")
    if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in stripped):
        raise InvalidChangeError("name", "name holds control characters; write it in one line of plain text")
    return stripped


def checked_email(email: str) -> str:
    if len(email) > 512 or not EMAIL_PATTERN.fullmatch(email):  # noqa: PLR2004 - Stripe's limit (stripe.md 4)
        raise InvalidChangeError("billing_email", "billing_email is not one address of the form name@host.tld")
    return email


def checked_currency(currency: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", currency):
        raise InvalidChangeError("currency", "currency must be an ISO code of three capital letters, like USD")
    return currency
