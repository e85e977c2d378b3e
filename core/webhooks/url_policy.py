"""Which URLs a webhook may be sent to: https, or http on this machine; private networks only if allowed."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from core.common.validation import InvalidChangeError

MAX_ENDPOINT_URL_LENGTH: Final = 2000

# Beyond Python's ipaddress: versions before 3.11.10 treat some of these as global.
_V4_NOT_PUBLIC: Final = tuple(map(IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/3")))
_V6_PUBLIC: Final = IPv6Network("2000::/3")
# Protocol assignments, Teredo and 6to4 embed IPv4 addresses; the others are for documentation.
_V6_NOT_PUBLIC: Final = tuple(map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))


def checked_url(url: str, *, allow_private: bool) -> str:
    """The URL as it is used. Raises ``InvalidChangeError``, which does not repeat the URL: it may contain a token."""
    parts = _split(url)
    if parts is None or not _is_usable(parts):
        message = "url must be https://host/path (http:// only for localhost) without credentials or fragment"
        raise InvalidChangeError("url", message)
    if not allow_private and _is_private_url(parts):
        message = "url points to a private address; use a public one, or set WEBHOOK_ALLOW_PRIVATE"
        raise InvalidChangeError("url", message)
    return url


def is_public(address: str) -> bool:
    """Whether this numeric address is on the public internet: not this machine's, a private network's or a cloud's own.

    ``fe80::1%eth0``, and whatever else cannot be parsed, is not public.
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


def _split(url: str) -> SplitResult | None:
    """None: no part of it can be trusted, because parsers differ on such a URL."""
    if len(url) > MAX_ENDPOINT_URL_LENGTH or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
        has_valid_port = parts.port != 0
    except ValueError:
        return None
    return parts if has_valid_port else None


def _is_usable(parts: SplitResult) -> bool:
    if not parts.hostname or parts.username is not None or parts.password is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_private_url(parts: SplitResult) -> bool:
    """As far as the URL itself shows it; its host name is not resolved."""
    host = parts.hostname or ""
    try:
        ip_address(host)
    except ValueError:
        return _is_loopback(host)
    return not is_public(host)
