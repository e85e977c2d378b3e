"""Asking a biller without being in anybody's way: behind fresh changes, within the quota, patient with blips.

A listing outlives a blip and a 429; where a biller is away for longer it ends, and goes on another time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from core.flow_control.request_gate import RequestGate, RequestGates
from core.ports.errors import MisconfiguredError, NoPermitError, RetryableError, ThrottledError
from core.ports.provider import StateReader
from core.ports.spec import Provider
from core.reconcile.backoff import retry_delay
from core.reconcile.reconciler import Reconciler

MAX_READ_FAILURES = 6  # of one request, with up to half a minute in between
MAX_PERMIT_WAITS = 600  # in line, each some seconds long: fresh changes may go first for as long as they come
DRIFT_RESERVATION_HOLDER = "drift"

ReadResultT = TypeVar("ReadResultT")
ProviderRead = Callable[[StateReader], ReadResultT]


class Sleep(Protocol):
    def __call__(self, seconds: float, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReader:
    """``readers`` are those of the billers that can be asked."""

    readers: Mapping[Provider, StateReader]
    gates: RequestGates = field(default_factory=RequestGates)
    sleep: Sleep = time.sleep

    @classmethod
    def for_reconciler(cls, reconciler: Reconciler) -> DriftReader:
        return cls(
            readers={each: biller.reader for each, biller in reconciler.providers.items()},
            gates=reconciler.request_gates,
        )

    def __call__(self, provider: Provider, read: ProviderRead[ReadResultT]) -> ReadResultT:
        """A question may be asked again from its beginning. Raises ``ProviderError``."""
        failures = 0
        for _ in range(MAX_PERMIT_WAITS):
            gate = self.gates.open_gate(provider, DRIFT_RESERVATION_HOLDER, "bulk")
            try:
                return read(self.readers[provider].with_throttle(gate))
            except NoPermitError as wait:
                self.sleep(wait.retry_after)
            except MisconfiguredError:
                raise
            except RetryableError as error:
                failures += 1
                if failures == MAX_READ_FAILURES:
                    raise
                self._back_off(error, failures, gate)
            finally:
                gate.close()
        message = "fresh changes took the whole quota for too long; go on with it at a quieter time"
        raise ThrottledError(provider, message)

    def _back_off(self, error: RetryableError, failures: int, gate: RequestGate) -> None:
        if isinstance(error, ThrottledError):
            gate.record_throttle(error)
        self.sleep(retry_delay(error, failures))
