"""A text from the environment or from a file, without what an editor, a shell or a secret store adds at its ends."""

from __future__ import annotations

from typing import Final

LINE_ENDS_AND_BOM: Final = "\r\n\ufeff"


def without_line_ends(text: str) -> str:
    """Without line breaks and byte order marks at its ends. Spaces stay: a password may begin or end with one."""
    return text.strip(LINE_ENDS_AND_BOM)


def trimmed(text: str) -> str:
    """Without any white space or byte order mark at its ends."""
    return without_line_ends(text).strip().strip(LINE_ENDS_AND_BOM)
