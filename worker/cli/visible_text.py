"""Text from outside as a terminal may get it: control characters, escape sequences and marks of direction are shown as
their codes, so that no name or message clears a screen, writes a clipboard or changes the order of what is read.
"""

from __future__ import annotations

import re
from typing import Final

# Line feeds and tabs stay, because our own texts have them. A lone surrogate cannot be written as UTF-8.
_CONTROLS: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """``text`` with each such character as its code, such as ``\\x1b``."""
    return _CONTROLS.sub(lambda found: _escape(found[0]), text)


def visible_json(document: str) -> str:
    """The same document: JSON has an escape of its own for each character."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - two digits
