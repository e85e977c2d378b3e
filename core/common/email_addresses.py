"""Which email addresses can be mailed, and when two are the same.

Only the usual form in ASCII is accepted, and only one address at a time.
"""

from __future__ import annotations

import re
from typing import Final

MAX_EMAIL_LENGTH: Final = 254
MAX_EMAIL_LOCAL_PART_LENGTH: Final = 64
# Without the question mark: in a header "=?…?=" is an encoded word and would be decoded.
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=^_`{|}~-]+"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
EMAIL_ADDRESS_REGEX: Final = rf"{_ATOM}(?:\.{_ATOM})*@{_LABEL}(?:\.{_LABEL})+"
"""Matches a whole address. It does not check the lengths."""


def is_mailable(address: str) -> bool:
    local_part = address.partition("@")[0]
    return (
        len(address) <= MAX_EMAIL_LENGTH
        and len(local_part) <= MAX_EMAIL_LOCAL_PART_LENGTH
        and re.fullmatch(EMAIL_ADDRESS_REGEX, address) is not None
    )


def comparison_key(address: str) -> str:
    """Two addresses with the same key are the same address: letter case does not count.

    Only ASCII is lowercased. Some other letters become ASCII when lowercased, and the address would then match
    somebody else's.
    """
    return address.lower() if address.isascii() else address
