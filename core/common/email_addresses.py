"""Email addresses that a mail can be written to: the usual form, in ASCII, one at a time."""

from __future__ import annotations

import re
from typing import Final

MAX_EMAIL_LENGTH: Final = 254
MAX_EMAIL_LOCAL_PART_LENGTH: Final = 64
# Without the question mark: "=?…?=" is code in a header, and is read as something else there.
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=^_`{|}~-]+"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
EMAIL_ADDRESS_REGEX: Final = rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})+"
"""A regular expression for all of it; lengths aside."""


def is_mailable(address: str) -> bool:
    local_part = address.partition("@")[0]
    return (
        len(address) <= MAX_EMAIL_LENGTH
        and len(local_part) <= MAX_EMAIL_LOCAL_PART_LENGTH
        and re.fullmatch(EMAIL_ADDRESS_REGEX, address) is not None
    )


def comparison_key(address: str) -> str:
    """What makes two addresses the same: letter case does not count.

    Of ASCII alone: other letters become ASCII by it, and somebody else's address would be taken for this one.
    """
    return address.lower() if address.isascii() else address
