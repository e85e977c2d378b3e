"""Which addresses a webhook may be sent to: https, or this very machine; never a private network unless allowed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from core.common.validation import InvalidChangeError

MAX_ENDPOINT_URL_LENGTH: Final = 2000

# Beyond what this Python's ipaddress knows: versions before 3.11.10 call some of these global.
_V4_NOT_PUBLIC: Final = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")))
_V6_PUBLIC: Final = IPv6Network("2000::/3")
# Protocols, Teredo and 6to4 wrap addresses of version 4; the others are for documents.
_V6_NOT_PUBLIC: Final = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


def checked_url(url: str, *, allow_private: bool) -> str:
    """The address as it is used. Raises ``InvalidChangeError``, whose text does not repeat it: it may hold a token."""
    invalid_url = InvalidChangeError(
        "url", "url must be https://host/path (http:// on this machine alone), without a user"
    )
    if len(url) > MAX_ENDPOINT_URL_LENGTH or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise invalid_url
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise invalid_url from None
    if not host or port == 0 or parts.username is not None or parts.password is not None or parts.fragment:
        raise invalid_url
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(host)):
        raise invalid_url
    if not allow_private and _is_private_url(parts):
        message = "url leads to a private address: name a public one, or set WEBHOOK_ALLOW_PRIVATE"
        raise InvalidChangeError("url", message)
    return url


def is_public(address: str) -> bool:
    """Whether this numeric address is one of the open internet: not of this machine, a private network, a cloud's own.

    ``fe80::1%eth0`` and whatever else is not understood is not public.
    """
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if isinstance(ip, IPv4Address):
        return ip.is_global and not any(ip in network for network in _V4_NOT_PUBLIC)
    return ip in _V6_PUBLIC and ip.is_global and not any(ip in network for network in _V6_NOT_PUBLIC)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_private_url(parts: SplitResult) -> bool:
    """As far as the address itself tells it."""
    host = parts.hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return _is_loopback(host)
    return not is_public(host)
