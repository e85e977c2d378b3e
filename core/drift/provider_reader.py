"""Asking a biller without being in anybody's way: behind fresh changes, within the quota, patient with blips.

A listing outlives a blip and a 429; where a biller is away for longer it ends, and goes on another time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from core.flow_control.request_gate import Gate, Gates
from core.ports.errors import MisconfiguredError, MustWaitError, RetryableError, ThrottledError
from core.ports.provider import Auditor
from core.ports.spec import Provider
from core.reconcile.backoff import delay
from core.reconcile.reconciler import Sync

FAILURES = 6  # of one request, with up to half a minute in between
PLACES = 600  # in line, each some seconds long: fresh changes may go first for as long as they come
HOLDER = "drift"

Answer = TypeVar("Answer")
Question = Callable[[Auditor], Answer]


class Sleep(Protocol):
    def __call__(self, seconds: float, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """``auditors`` are those of the billers that can be asked."""

    auditors: Mapping[Provider, Auditor]
    gates: Gates = field(default_factory=Gates)
    sleep: Sleep = time.sleep

    @classmethod
    def beside(cls, sync: Sync) -> Asking:
        return cls(auditors={each: biller.audit for each, biller in sync.billers.items()}, gates=sync.gates)

    def __call__(self, provider: Provider, question: Question[Answer]) -> Answer:
        """A question may be asked again from its beginning. Raises ``ProviderError``."""
        failures = 0
        for _ in range(PLACES):
            gate = self.gates.to(provider, HOLDER, "bulk")
            try:
                return question(self.auditors[provider].paced(gate))
            except MustWaitError as wait:
                self.sleep(wait.seconds)
            except MisconfiguredError:
                raise
            except RetryableError as error:
                failures += 1
                if failures == FAILURES:
                    raise
                self._wait(error, failures, gate)
            finally:
                gate.leave()
        message = "fresh changes took the whole quota for too long; go on with it at a quieter time"
        raise ThrottledError(provider, message)

    def _wait(self, error: RetryableError, failures: int, gate: Gate) -> None:
        if isinstance(error, ThrottledError):
            gate.throttled(error)
        self.sleep(delay(error, failures))
