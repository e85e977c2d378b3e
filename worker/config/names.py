"""Names of settings that are set but that nothing reads, such as STRIPE_SECRT_KEY, with the name that was meant.

Values are not looked at. A name counts if it begins as only our settings do, or if it is one of ours but for one slip.
Every command looks for them, so nothing slow is imported for it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from dotenv import dotenv_values

from worker.config.settings import ENV_FILE, ENV_FILE_ENCODING, Settings

# The fields of ``ApiSettings``, whose module imports an HTTP client. A test compares them.
API_SETTINGS: Final = frozenset(
    {
        "API_CORS_ORIGINS",
        "API_HOST",
        "API_PORT",
        "API_PUBLIC_URL",
        "API_RATE_LIMIT",
        "LAGO_WEBHOOK_ALGORITHM",
        "LAGO_WEBHOOK_PUBLIC_KEY",
        "OIDC_ALGORITHM",
        "OIDC_AUDIENCE",
        "OIDC_CLIENT_ID",
        "OIDC_CLIENT_SECRET",
        "OIDC_INTERNAL_URL",
        "OIDC_ISSUER",
        "OIDC_TRUST_EMAILS",
        "RECIPIENT_INVITATIONS_PER_HOUR",
        "TRUSTED_PROXIES",
        "USER_INVITATIONS_PER_HOUR",
        "USER_ORGANIZATIONS_PER_HOUR",
    }
)
OUR_PREFIXES: Final = ("STRIPE_", "LAGO_", "OIDC_", "SMTP_")
# Read by TLS libraries or by nobody: Kubernetes, Docker and Railway set an address for each service.
_NOT_SETTINGS: Final = re.compile(
    r"SSL_CERT_(FILE|DIR)|.*_SERVICE_(HOST|PORT)(_.*)?|.*_PORT(_\d+_(TCP|UDP)(_.*)?)?|REDIS(HOST|PORT|USER|PASSWORD)"
)
# Each is so near to a word of ours that it looks misspelt, and is a word of other programs' names, as are numbers.
_WORDS_OF_OTHERS: Final = frozenset({"APP", "EMAIL", "URI"})
_MIN_LIKENESS: Final = 0.6
_MIN_LIKENESS_OF_TYPO: Final = 0.88  # above that of STRIPE_LIVE_SECRET_KEY, which another program may read
_SAME_LAST_WORD: Final = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownName:
    """``meant``: the nearest setting; ``None``: none is near. ``is_typo``: no other program has so near a name."""

    name: str
    in_file: bool
    meant: str | None
    is_typo: bool

    @property
    def place(self) -> str:
        return str(ENV_FILE) if self.in_file else "the environment"


def known_names() -> frozenset[str]:
    """The names of all settings, in capitals."""
    return API_SETTINGS | {name.upper() for name in Settings.model_fields}


def unknown_names() -> list[UnknownName]:
    """Names in the environment and in ``.env`` that look like settings and are none."""
    from_file = set(_env_file_values())
    settings = known_names()
    found = [_unknown(name, settings, in_file=name in from_file) for name in sorted(from_file | set(os.environ))]
    return [each for each in found if each is not None]


def typos() -> list[UnknownName]:
    """Those that are surely meant for us, fit for a warning at each start."""
    return [each for each in unknown_names() if each.is_typo]


def count_set() -> int:
    """How many settings have a value."""
    given = {name.upper() for name, value in (*_env_file_values().items(), *os.environ.items()) if value}
    return len(given & known_names())


def _env_file_values() -> Mapping[str, str | None]:
    try:
        return dotenv_values(ENV_FILE, interpolate=False, encoding=ENV_FILE_ENCODING) if ENV_FILE.is_file() else {}
    except UnicodeDecodeError:  # the settings refuse such a file by name
        return {}


def _unknown(name: str, settings: Collection[str], *, in_file: bool) -> UnknownName | None:
    capitals = name.upper()
    if capitals in settings or _NOT_SETTINGS.fullmatch(capitals):
        return None
    is_of_others = capitals[-1].isdigit() or not _WORDS_OF_OTHERS.isdisjoint(capitals.split("_"))
    if capitals.startswith(OUR_PREFIXES):
        likeness, meant = _nearest(capitals, settings)
        return UnknownName(
            name=name,
            in_file=in_file,
            meant=meant if likeness >= _MIN_LIKENESS and _has_word_of(capitals, meant) else None,
            is_typo=likeness >= _MIN_LIKENESS_OF_TYPO and not is_of_others,
        )
    near = difflib.get_close_matches(capitals, settings, n=1, cutoff=_MIN_LIKENESS_OF_TYPO)
    if not near or is_of_others or not _is_misspelt(capitals, near[0]):
        return None
    return UnknownName(name=name, in_file=in_file, meant=near[0], is_typo=True)


def _is_misspelt(name: str, meant: str) -> bool:
    """Whether one word alone differs, by one letter too many, too few or wrong, or by two that changed places."""
    pairs = list(zip(name.split("_"), meant.split("_"), strict=False))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    return name.count("_") == meant.count("_") and len(differing) == 1 and _is_one_slip(*differing[0])


def _is_one_slip(word: str, meant: str) -> bool:
    shorter, longer = sorted((word, meant), key=len)
    if len(shorter) < len(longer):
        return shorter in {longer[:place] + longer[place + 1 :] for place in range(len(longer))}
    first, *others = [pair for pair in zip(word, meant, strict=True) if pair[0] != pair[1]] or [("", "")]
    return not others or others == [first[::-1]]


def _has_word_of(name: str, meant: str) -> bool:
    """Whether a word after the first is the same, or nearly: SMTP_USERNAME may be SMTP_USER, but not SMTP_SERVER."""
    return any(
        word.startswith(ours) or ours.startswith(word) or _is_one_slip(word, ours)
        for word in name.split("_")[1:]
        for ours in meant.split("_")[1:]
    )


def _nearest(name: str, settings: Collection[str]) -> tuple[float, str]:
    """Of two names that are as near, the one with the same last word, or with one word less.

    A KEY is meant to be a KEY, and OIDC_ISSUER_URL is meant to be OIDC_ISSUER.
    """
    last = name.rsplit("_", 1)[-1]

    def likeness(candidate: str) -> float:
        is_alike = candidate.rsplit("_", 1)[-1] == last or name.startswith(f"{candidate}_")
        bonus = _SAME_LAST_WORD if is_alike else 0.0
        return difflib.SequenceMatcher(None, name, candidate).ratio() + bonus

    nearest = max(sorted(settings), key=likeness)
    return difflib.SequenceMatcher(None, name, nearest).ratio(), nearest
