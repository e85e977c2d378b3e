"""The addresses of the broker and of Redis: checked, and their TLS the same for each library that connects to them.

Kombu verifies nothing with ``rediss://`` unless it is asked to, redis-py verifies everything, and py-amqp something in
between; each spells the options of TLS in its own way. Here an address that asks for TLS is verified, certificate and
host name, and the same words in it mean the same for all: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``, and for
less ``ssl_cert_reqs=none`` and ``ssl_check_hostname=false`` (decision 21).

A refusal is a ``ValueError`` whose text follows the name of the setting and never contains the address.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit

REDIS_SCHEMES: Final = ("redis", "rediss")
AMQP_SCHEMES: Final = ("amqp", "amqps", "pyamqp")
BROKER_SCHEMES: Final = (*REDIS_SCHEMES, *AMQP_SCHEMES, "memory")
_UNNAMED: Final = ("pyamqp", "memory")  # kombu's own
TLS_SCHEMES: Final = ("rediss", "amqps")
_FILE_WORDS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_WORDS: Final = frozenset({*_FILE_WORDS, "ssl_cert_reqs", "ssl_check_hostname"})
# Optional is the same as required for a client: a server has always a certificate (Python's documentation of ssl).
_IS_VERIFIED: Final = {"required": True, "optional": True, "none": False}
_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(:\d{0,5})?")
_IN_PASSWORD: Final = "in a password write / as %2F, ? as %3F, # as %23, ; as %3B, [ as %5B and @ as %40"  # noqa: S105 - advice


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """``host``: the name that the certificate must have."""

    host: str
    is_verified: bool
    is_host_checked: bool
    files: dict[str, str]

    @property
    def weakness(self) -> str | None:
        """What is not verified; ``None``: nothing is left out."""
        if not self.is_verified:
            return "ssl_cert_reqs=none verifies no certificate"
        if not self.is_host_checked:
            return "ssl_check_hostname=false verifies the certificate, but not that it belongs to this host"
        return None


def check(text: str, schemes: Collection[str]) -> None:
    """Raises ``ValueError`` if no client could use this address."""
    if re.search(r"[\x00-\x20\x7f]", text):
        problem = "contains a space, a line break or another control character"
        raise ValueError(problem)
    parts = re.split(r";(?=[a-z]+://)", text)  # kombu tries several brokers in turn
    found = {_check_one(each, schemes) for each in parts}
    if len(parts) > 1 and (found & {*TLS_SCHEMES} or schemes == REDIS_SCHEMES):
        problem = "has several servers, and only a broker without TLS may have them: give one address"
        raise ValueError(problem)


def tls(text: str) -> Tls | None:
    """How TLS is used at this address; ``None``: it asks for none. Raises ``ValueError``."""
    address = urlsplit(text)
    words = dict(parse_qsl(address.query, keep_blank_values=True))
    if unknown := sorted(set(words) - _WORDS):
        problem = f"has the parameter {unknown[0]}, which is not known: remove it; TLS has {', '.join(sorted(_WORDS))}"
        raise ValueError(problem)
    if address.scheme not in TLS_SCHEMES:
        if words:
            secure = "amqps" if address.scheme in AMQP_SCHEMES else "rediss"
            problem = f"has {min(words)}, but {address.scheme}:// uses no TLS: write {secure}://"
            raise ValueError(problem)
        return None
    files: dict[str, str] = {name: words[name] for name in _FILE_WORDS if name in words}
    for name, file in files.items():
        if not Path(file).is_file():
            problem = f"has an {name} that is not a file: correct its path"
            raise ValueError(problem)
    required = words.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
    host_checked = words.get("ssl_check_hostname", "true").lower()
    if required not in _IS_VERIFIED or host_checked not in _BOOLEANS:
        problem = "has a word for TLS that is not known: ssl_cert_reqs is required or none, ssl_check_hostname is true "
        problem += "or false"
        raise ValueError(problem)
    is_verified = _IS_VERIFIED[required]
    return Tls(
        host=address.hostname or "localhost",
        is_verified=is_verified,
        is_host_checked=is_verified and _BOOLEANS[host_checked],
        files=files,
    )


def for_redis_client(text: str) -> str:
    """The address with the words that redis-py knows."""
    found = tls(text)
    if found is None:
        return text
    words = {
        **found.files,
        "ssl_cert_reqs": "required" if found.is_verified else "none",
        "ssl_check_hostname": str(found.is_host_checked).lower(),
    }
    return urlsplit(text)._replace(query=urlencode(words)).geturl()


def for_kombu(text: str) -> tuple[str, dict[str, Any] | None]:
    """The address, and the options of its TLS as kombu, Celery and Flower take them; ``None``: without TLS."""
    found = tls(text)
    if found is None:
        return text, None
    address = urlsplit(text)
    plain = address._replace(query="").geturl()
    required = ssl.CERT_REQUIRED if found.is_verified else ssl.CERT_NONE
    if address.scheme in REDIS_SCHEMES:
        options = {"ssl_cert_reqs": required, "ssl_check_hostname": found.is_host_checked}
        return plain, {**options, **found.files}
    # py-amqp verifies the name if there is one, and sends none otherwise.
    name = {"server_hostname": found.host} if found.is_host_checked else {}
    files = {key.removeprefix("ssl_"): file for key, file in found.files.items()}
    return plain, {"cert_reqs": required, **name, **files}


def _check_one(text: str, schemes: Collection[str]) -> str:
    scheme, separator, rest = text.partition("://")
    # Without "://" the part before the colon may be a password, so it is not shown.
    shown = scheme if separator and re.fullmatch(r"[A-Za-z][\w+.-]{0,30}", scheme) else "none"
    if shown not in schemes:
        problem = f"has the scheme {shown}; use {', '.join(f'{each}://' for each in schemes if each not in _UNNAMED)}"
        raise ValueError(problem)
    end = re.search(r"[/?#]", rest)
    authority, path = (rest, "") if end is None else (rest[: end.start()], rest[end.start() :])
    is_host = _HOST_AND_PORT.fullmatch(authority.rpartition("@")[2]) is not None
    if "@" in path or ";" in rest or not is_host or not _can_be_split(text):
        problem = f"has a host or a port that is not valid; {_IN_PASSWORD}"
        raise ValueError(problem)
    if scheme in REDIS_SCHEMES and not re.fullmatch(r"(/\d*)?(\?.*)?", path):
        problem = "has a path that is no number of a database; write redis://host:6379/0"
        raise ValueError(problem)
    tls(text)
    return scheme


def _can_be_split(text: str) -> bool:
    """The errors of Python's parser quote the password."""
    try:
        return (urlsplit(text).port or 1) > 0
    except ValueError:
        return False
