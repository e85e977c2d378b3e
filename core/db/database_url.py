"""The address of the database as its operator wrote it: read in the forms that other programs use, or refused.

Where the address asks for TLS, the server's certificate and its name are verified: ``sslmode=require``, with which
libpq itself verifies nothing, becomes ``verify-full`` (decision 21). A weaker mode that is written out stays. Without a
word in the address PGSSLMODE counts, as for libpq.

A refusal is a ``ValueError`` whose text follows the name of the setting and never contains the address.
"""

from __future__ import annotations

import os
import re
import ssl
from functools import cache
from pathlib import Path
from typing import Final

from psycopg import pq
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

POSTGRES_DRIVER: Final = "postgresql+psycopg"
# What the modes that verify less than everything leave open.
WEAK_SSL_MODES: Final = {
    "verify-ca": "sslmode=verify-ca verifies the certificate, but not that it belongs to this host",
    "prefer": "sslmode=prefer verifies no certificate, and goes on without TLS if the server offers none",
    "allow": "sslmode=allow verifies no certificate, and uses TLS only if the server insists",
}
MODE_VARIABLE: Final = "PGSSLMODE"
_SSL_MODES: Final = frozenset({"disable", *WEAK_SSL_MODES, "require", "verify-full"})
_VERIFYING_MODES: Final = frozenset({"verify-ca", "require", "verify-full"})
_POSTGRES_SCHEME: Final = re.compile(r"postgres(ql)?(\+\w+)?", re.IGNORECASE)
_SQLITE_SCHEME: Final = re.compile(r"sqlite(\+\w+)?", re.IGNORECASE)
# user:password@host:port,host:port/name?parameters, as libpq reads it; SQLAlchemy knows one host only.
_SEVERAL_HOSTS: Final = re.compile(
    r"(?P<scheme>[^:]+://)(?P<user>[^@/?]*@)?(?P<hosts>[^@/?]*,[^@/?]*)(?P<rest>[/?].*)?"
)
_HOST: Final = re.compile(r"(?P<name>\[[^]]*\]|[^:\[\]]*)(:(?P<port>\d{0,5}))?")
_FORMS: Final = "use sqlite:///path/to/file.db or postgresql://user@host/name"
# Of Debian and Alpine, of Red Hat, and of the BSDs and macOS.
_SYSTEM_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
_LIBPQ_ROOT_FILE: Final = "~/.postgresql/root.crt"


def parse(text: str) -> URL:
    """With the driver that is installed, whichever one is named. Raises ``ValueError``."""
    scheme, separator, rest = text.partition("://")
    if not separator or re.search(r"[\x00-\x1f\x7f]", text):
        problem = f"is not a valid URL; {_FORMS}"
        raise ValueError(problem)
    if _SQLITE_SCHEME.fullmatch(scheme):
        return _sqlite_url(rest)
    if not _POSTGRES_SCHEME.fullmatch(scheme):
        # Without an ordinary scheme the part before the colon may be a password, so it is not shown.
        shown = scheme if re.fullmatch(r"[A-Za-z][\w+.-]{0,30}", scheme) else "another kind of database"
        problem = f"names {shown}; only sqlite:// and postgresql:// are supported"
        raise ValueError(problem)
    return _with_verified_tls(_postgres_url(f"{POSTGRES_DRIVER}://{rest}"))


def parse_direct(text: str) -> URL:
    """For an address without a pooler. Raises ``ValueError``."""
    url = parse(text)
    if url.get_backend_name() == "sqlite":
        problem = "names a SQLite file: it is for a Postgres behind a pooler; remove it"
        raise ValueError(problem)
    return url


def has_tls_mode(text: str) -> bool:
    """Whether the address itself has an sslmode; else PGSSLMODE counts."""
    return "sslmode=" in text.partition("?")[2]


def weak_tls(text: str) -> str | None:
    """What the TLS of this address does not verify; ``None``: it verifies everything, or the address asks for none."""
    return WEAK_SSL_MODES.get(str(parse(text).query.get("sslmode", "")))


def _sqlite_url(rest: str) -> URL:
    url = _make_url(f"sqlite://{rest}")
    if url.host:
        problem = f"has two slashes where three begin the path of a file; {_FORMS}"
        raise ValueError(problem)
    if url.database in {None, "", ":memory:"}:
        problem = (
            "names an in-memory SQLite database, which would be lost in a crash; use a file: sqlite:///data/billing.db"
        )
        raise ValueError(problem)
    return url


def _postgres_url(text: str) -> URL:
    if text.partition("?")[0].count("@") > 1:
        problem = "has more than one @: in the user name or password write @ as %40"
        raise ValueError(problem)
    several = _SEVERAL_HOSTS.fullmatch(text)
    if several is None:
        url = _make_url(text)
    else:
        url = _make_url(f"{several['scheme']}{several['user'] or ''}{several['rest'] or ''}")
        url = url.update_query_dict(_hosts_and_ports(several["hosts"]))
    if unknown := sorted(set(url.query) - _parameters()):
        problem = f"has the parameter {unknown[0]}, which Postgres does not know: remove it; for TLS use sslmode"
        raise ValueError(problem)
    return url


def _hosts_and_ports(text: str) -> dict[str, str]:
    """As parameters, in which SQLAlchemy passes on several hosts."""
    found = [_HOST.fullmatch(each) for each in text.split(",")]
    hosts = [each for each in found if each is not None]
    if len(hosts) < len(found):
        problem = f"has a host or a port that is not valid; {_FORMS}"
        raise ValueError(problem)
    return {
        "host": ",".join(each["name"].strip("[]") for each in hosts),
        "port": ",".join(each["port"] or "" for each in hosts),
    }


def _with_verified_tls(url: URL) -> URL:
    own = url.query.get("sslmode")
    mode = own or _default_mode()
    if mode is None:
        return url
    if mode not in _SSL_MODES:
        what = "has an sslmode" if own else f"takes an sslmode from {MODE_VARIABLE}"
        problem = f"{what} that Postgres does not know: use sslmode=verify-full, or disable for none"
        raise ValueError(problem)
    if mode not in _VERIFYING_MODES:
        return url if own else url.update_query_dict({"sslmode": str(mode)})
    given = url.query.get("sslrootcert")
    if isinstance(given, str) and given != "system" and not Path(given).is_file():
        problem = "has an sslrootcert that is not a file: give the file of the authority's certificate"
        raise ValueError(problem)
    verified = {"sslmode": "verify-full" if mode == "require" else str(mode)}
    return url.update_query_dict(verified if given else {**verified, "sslrootcert": _default_authorities()})


def _default_mode() -> str | None:
    """What libpq is told by PGSSLMODE, PGREQUIRESSL or a service file; ``None``: nothing, so it would prefer TLS."""
    option = next(each for each in pq.Conninfo.get_defaults() if each.keyword == b"sslmode")
    if not option.val or (option.val == option.compiled and not os.environ.get(MODE_VARIABLE)):
        return None
    return option.val.decode()


def _default_authorities() -> str:
    """The file that libpq is told to use or finds by itself, else that of Python's TLS, so that all trust the same.

    The wheel of psycopg has no authorities, and Python may have a folder, which libpq does not read.
    """
    named = next((each.val for each in pq.Conninfo.get_defaults() if each.keyword == b"sslrootcert"), None)
    if named:
        return named.decode()
    files = (_own_file(), ssl.get_default_verify_paths().cafile, *_SYSTEM_FILES)
    return next((file for file in files if file and Path(file).is_file()), "system")


def _own_file() -> str | None:
    try:
        return str(Path(_LIBPQ_ROOT_FILE).expanduser())
    except RuntimeError:  # this user has no home folder
        return None


def _make_url(text: str) -> URL:
    try:
        return make_url(text)
    except (ArgumentError, ValueError):  # the message of the second one quotes what may be a part of the password
        problem = f"is not a valid URL; {_FORMS}, and in a password %2F for /, %3F for ?, %23 for # and %40 for @"
        raise ValueError(problem) from None


@cache
def _parameters() -> frozenset[str]:
    """The names that the installed client library knows."""
    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())
