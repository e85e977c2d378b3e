"""Checks every request to the sandbox against the providers' official documents."""

from __future__ import annotations

import threading

from hypothesis import HealthCheck, settings

from core.ports.spec import Provider
from sandbox.http import Exchange
from tests import contract

PROVIDERS: dict[str, Provider] = {"stripe": "stripe", "lago": "lago"}

# Selected by name: see ``tests/scenarios/test_money_invariants.py``.
settings.register_profile(
    "long",
    max_examples=400,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


class ContractChecker:
    """Collects the violations of all requests to the sandbox."""

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
