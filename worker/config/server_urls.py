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
CACHE_SCHEMES: Final = (*REDIS_SCHEMES, "unix")
_UNNAMED: Final = ("pyamqp", "memory", "unix")  # understood, and not what a refusal advises
TLS_SCHEMES: Final = ("rediss", "amqps")
_FILE_WORDS: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_WORDS: Final = frozenset({*_FILE_WORDS, "ssl_cert_reqs", "ssl_check_hostname"})
_NUMBER_FORM: Final = r"\d{1,5}(\.\d{1,6})?"
_TIMEOUT_FORM: Final = rf"(?=.*[1-9]){_NUMBER_FORM}"
_BOOLEAN_FORM: Final = r"(?i:true|1|yes|false|0|no)"
# What else redis-py and kombu read in an address. Not connect_timeout: kombu passes it on as text, with which no
# connection can be made (read in 5.7.0).
_CLIENT_WORDS: Final[dict[str, dict[str, str]]] = {
    "redis": {
        "db": r"\d{1,5}",
        "protocol": "[23]",
        "socket_timeout": _TIMEOUT_FORM,
        "socket_connect_timeout": _TIMEOUT_FORM,
        "socket_keepalive": _BOOLEAN_FORM,
        "retry_on_timeout": _BOOLEAN_FORM,
        "max_connections": r"[1-9]\d{0,5}",
        "health_check_interval": r"\d{1,5}",
    },
    "amqp": {"heartbeat": _NUMBER_FORM},
}
# Optional is the same as required for a client: a server has always a certificate (Python's documentation of ssl).
_IS_VERIFIED: Final = {"required": True, "optional": True, "none": False}
_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_HOST_AND_PORT: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(:\d{0,5})?")
_IN_PASSWORD: Final = "in a user name or password write / as %2F, ? as %3F, # as %23, ; as %3B, [ as %5B and @ as %40"  # noqa: S105 - advice


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


def checked(text: str, schemes: Collection[str]) -> str:
    """With its scheme in small letters. Raises ``ValueError`` if no client could use this address."""
    if re.search(r"[\x00-\x20\x7f]", text):
        problem = "contains a space, a line break or another control character"
        raise ValueError(problem)
    parts = [_with_small_scheme(each) for each in re.split(r";(?=[A-Za-z]+://)", text)]  # kombu tries them in turn
    found = {_check_one(each, schemes) for each in parts}
    if len(parts) > 1 and not found <= {"amqp", "pyamqp"}:
        problem = "has several servers, which only RabbitMQ without TLS (amqp://) may have: give one address"
        raise ValueError(problem)
    return ";".join(parts)


def tls(text: str) -> Tls | None:
    """How TLS is used at this address; ``None``: it asks for none. Raises ``ValueError``."""
    address = urlsplit(text)
    words = dict(parse_qsl(address.query, keep_blank_values=True))
    of_client = _client_words(address.scheme)
    if unknown := sorted(set(words) - _WORDS - set(of_client)):
        problem = f"has the parameter {unknown[0]}, which is not known: remove it; TLS has {', '.join(sorted(_WORDS))}"
        raise ValueError(problem)
    words = {name: word for name, word in words.items() if name not in of_client}
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
        **_given_client_words(text),
        **found.files,
        "ssl_cert_reqs": "required" if found.is_verified else "none",
        "ssl_check_hostname": str(found.is_host_checked).lower(),
    }
    return urlsplit(text)._replace(query=urlencode(words)).geturl()


def for_kombu(text: str) -> tuple[str, dict[str, Any] | None]:
    """The address, and the options of its TLS as kombu, Celery and Flower take them; ``None``: without TLS."""
    found, address = tls(text), urlsplit(text)
    if address.scheme in REDIS_SCHEMES:
        # kombu knows no word of redis-py, and ours are in the options of its transport.
        database = _given_client_words(text).get("db")
        plain = address._replace(query="", path=f"/{database}" if database else address.path).geturl()
    elif found is not None:
        plain = address._replace(query=urlencode(_given_client_words(text))).geturl()
    else:
        plain = text
    if found is None:
        return plain, None
    required = ssl.CERT_REQUIRED if found.is_verified else ssl.CERT_NONE
    if address.scheme in REDIS_SCHEMES:
        options = {"ssl_cert_reqs": required, "ssl_check_hostname": found.is_host_checked}
        return plain, {**options, **found.files}
    # py-amqp verifies the name if there is one, and sends none otherwise.
    name = {"server_hostname": found.host} if found.is_host_checked else {}
    files = {key.removeprefix("ssl_"): file for key, file in found.files.items()}
    return plain, {"cert_reqs": required, **name, **files}


def _client_words(scheme: str) -> dict[str, str]:
    """The words that a client of this scheme reads beside those of TLS, each with the form of its value."""
    kind = "redis" if scheme in CACHE_SCHEMES else "amqp" if scheme in AMQP_SCHEMES else ""
    found = _CLIENT_WORDS.get(kind, {})
    return {name: form for name, form in found.items() if scheme != "unix" or name != "socket_keepalive"}


def _given_client_words(text: str) -> dict[str, str]:
    address = urlsplit(text)
    known = _client_words(address.scheme)
    return {name: word for name, word in parse_qsl(address.query) if name in known}


def _with_small_scheme(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    return f"{scheme.lower()}{separator}{rest}" if separator else text


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
    if scheme == "unix" and (authority.rpartition("@")[2] or not re.fullmatch(r"/[^?]+(\?.*)?", path)):
        problem = "has no path of a socket; write unix:///path/to/redis.sock"
        raise ValueError(problem)
    _check_words(text, scheme)
    return scheme


def _check_words(text: str, scheme: str) -> None:
    given = [name for name, _ in parse_qsl(urlsplit(text).query, keep_blank_values=True)]
    forms = _client_words(scheme)
    if twice := sorted({name for name in given if given.count(name) > 1} & (_WORDS | set(forms))):
        problem = f"has {twice[0]} twice, of which each client may take another one: remove one"
        raise ValueError(problem)
    tls(text)
    for name, word in _given_client_words(text).items():
        if not re.fullmatch(forms[name], word):
            problem = f"has a {name} that is not valid: correct it, or remove it"
            raise ValueError(problem)


def _can_be_split(text: str) -> bool:
    """The errors of Python's parser quote the password."""
    try:
        return (urlsplit(text).port or 1) > 0
    except ValueError:
        return False
