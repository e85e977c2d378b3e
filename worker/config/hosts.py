"""Which hosts are of another network: what is sent to them unencrypted can be read on the way."""

from __future__ import annotations

import ipaddress

from worker.config.email import LOOPBACK_HOSTS


def is_remote(host: str | None) -> bool:
    """A host of another network: not this machine, no private address, no service name without a dot."""
    if host is None or host in LOOPBACK_HOSTS or "." not in host:
        return False
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return not host.endswith((".local", ".internal", ".localhost"))
