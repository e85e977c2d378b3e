"""Ids from outside, made safe to show or to store. Some old ids are email addresses, which no message may contain."""

from __future__ import annotations

import re
from typing import Final

MAX_OUTSIDE_ID_LENGTH: Final = 255


def printable(identifier: str | None) -> str:
    is_plain = identifier is not None and re.fullmatch(r"[A-Za-z0-9_.:-]{1,100}", identifier)
    return str(identifier) if is_plain else "an id that is not displayed"


def extract(document: object, *path: str) -> str | None:
    """The provider's own id or word at this path. ``None`` if there is none, or none that fits a column."""
    found = extract_outside_id(document, *path)
    # A provider's own ids and words have no other characters.
    return found if found is not None and found.isascii() else None


def extract_outside_id(document: object, *path: str) -> str | None:
    """An id that somebody gave to an object at the provider, in any script. It is compared, and never shown."""
    for name in path:
        if not isinstance(document, dict):
            return None
        document = document.get(name)
    if not isinstance(document, str) or not 0 < len(document) <= MAX_OUTSIDE_ID_LENGTH:
        return None
    # Of a lone surrogate no query can be made.
    return document if document.isprintable() else None
