"""Which hosts are of another network: what is sent to them unencrypted can be read on the way."""

from __future__ import annotations

import ipaddress
from typing import Final

LOOPBACK_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def is_remote(host: str | None) -> bool:
    """A host of another network: not this machine, no private address, no service name without a dot."""
    if host is None or host in LOOPBACK_HOSTS:
        return False
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith((".local", ".internal", ".localhost"))
