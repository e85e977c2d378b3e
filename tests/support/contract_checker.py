"""Holds every request that reached the sandbox against the providers' official documents."""

from __future__ import annotations

import threading

from hypothesis import HealthCheck, settings

from core.ports.spec import Provider
from sandbox.http import Exchange
from tests import contract

PROVIDERS: dict[str, Provider] = {"stripe": "stripe", "lago": "lago"}

# Asked for by name: see ``tests/core/new_currency``.
settings.register_profile(
    "long",
    max_examples=400,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


class ContractChecker:
    """Every request that reached the sandbox, held against the official documents."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: list[str] = []

    def check(self, exchange: Exchange) -> None:
        if not contract.available():
            return
        kind = exchange.headers.get("content-type", "")
        found = contract.violations(
            PROVIDERS[exchange.provider], exchange.method, exchange.path, exchange.query, exchange.body, kind
        )
        with self._lock:
            self._found.extend(found)

    def take_violations(self) -> list[str]:
        with self._lock:
            found, self._found = self._found, []
        return found
