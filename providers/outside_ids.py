"""Ids that were made elsewhere, as a message may hold them: some old ones are emails, which no message may hold."""

from __future__ import annotations

import re


def shown(identifier: str | None) -> str:
    plain = identifier is not None and re.fullmatch(r"[A-Za-z0-9_.:-]{1,100}", identifier)
    return str(identifier) if plain else "an id that is not shown here"
