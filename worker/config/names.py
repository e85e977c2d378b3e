"""Names of settings that are set but that nothing reads, such as STRIPE_SECRT_KEY, with the name that was meant.

Values are not looked at. A name counts if it begins as only our settings do, or if it nearly is one of ours.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from dotenv import dotenv_values

from worker.config.api import ApiSettings
from worker.config.settings import ENV_FILE, Settings

OUR_PREFIXES: Final = ("STRIPE_", "LAGO_", "OIDC_", "SMTP_")
# Read by docker-compose.yml, by TLS libraries, or by nobody: Kubernetes and Docker set an address for each service.
_NOT_SETTINGS: Final = re.compile(
    r"FLOWER_BASIC_AUTH|SSL_CERT_(FILE|DIR)|.*_SERVICE_(HOST|PORT)(_.*)?|.*_PORT(_\d+_(TCP|UDP)(_.*)?)?"
)
_MIN_LIKENESS: Final = 0.6
_MIN_LIKENESS_WITHOUT_PREFIX: Final = 0.88
_SAME_LAST_WORD: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownName:
    """``meant``: the nearest setting; ``None``: none is near."""

    name: str
    in_file: bool
    meant: str | None


def known_names() -> frozenset[str]:
    """The names of all settings, in capitals."""
    return frozenset(name.upper() for model in (Settings, ApiSettings) for name in model.model_fields)


def unknown_names() -> list[UnknownName]:
    """Names in the environment and in ``.env`` that look like settings and are none."""
    from_file = set(dotenv_values(ENV_FILE, interpolate=False)) if ENV_FILE.is_file() else set()
    settings = known_names()
    found = [_unknown(name, settings, in_file=name in from_file) for name in sorted(from_file | set(os.environ))]
    return [each for each in found if each is not None]


def count_set() -> int:
    """How many settings have a value."""
    from_file = dotenv_values(ENV_FILE, interpolate=False) if ENV_FILE.is_file() else {}
    given = {name.upper() for name, value in (*from_file.items(), *os.environ.items()) if value}
    return len(given & known_names())


def _unknown(name: str, settings: Collection[str], *, in_file: bool) -> UnknownName | None:
    capitals = name.upper()
    if capitals in settings or _NOT_SETTINGS.fullmatch(capitals):
        return None
    if capitals.startswith(OUR_PREFIXES):
        likeness, meant = _nearest(capitals, settings)
        return UnknownName(name=name, in_file=in_file, meant=meant if likeness >= _MIN_LIKENESS else None)
    near = difflib.get_close_matches(capitals, settings, n=1, cutoff=_MIN_LIKENESS_WITHOUT_PREFIX)
    return UnknownName(name=name, in_file=in_file, meant=near[0]) if near else None


def _nearest(name: str, settings: Collection[str]) -> tuple[float, str]:
    """Of two names that are as near, the one with the same last word: a KEY is meant to be a KEY."""
    last = name.rsplit("_", 1)[-1]

    def likeness(candidate: str) -> float:
        bonus = _SAME_LAST_WORD if candidate.rsplit("_", 1)[-1] == last else 0.0
        return difflib.SequenceMatcher(None, name, candidate).ratio() + bonus

    nearest = max(sorted(settings), key=likeness)
    return difflib.SequenceMatcher(None, name, nearest).ratio(), nearest
