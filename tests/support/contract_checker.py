"""Checks every request to the sandbox, and every answer of it, against the providers' official documents."""

from __future__ import annotations

import threading

from core.ports.spec import Provider
from sandbox.http import Exchange
from tests import contract

PROVIDERS: dict[str, Provider] = {"stripe": "stripe", "lago": "lago"}


class ContractChecker:
    """Collects the violations of all requests to the sandbox, and those of all its answers.

    An answer that a fault changed is left out.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[str] = []
        self._answers: list[str] = []

    def check(self, exchange: Exchange) -> None:
        if not contract.available():
            return
        provider, kind = PROVIDERS[exchange.provider], exchange.headers.get("content-type", "")
        of_request = contract.violations(provider, exchange.method, exchange.path, exchange.query, exchange.body, kind)
        of_answer: list[str] = []
        if exchange.status is not None and exchange.fault is None:
            of_answer = contract.answer_violations(
                provider, exchange.method, exchange.path, exchange.status, exchange.response_body
            )
        with self._lock:
            self._requests.extend(of_request)
            self._answers.extend(of_answer)

    def take_violations(self) -> tuple[list[str], list[str]]:
        """Those of the requests and those of the answers, since the last call."""
        with self._lock:
            requests, self._requests = self._requests, []
            answers, self._answers = self._answers, []
        return requests, answers
