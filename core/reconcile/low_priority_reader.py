"""Low-priority reads of a provider: interactive changes go first, the rate limit is respected, errors are retried.

A listing survives a transient error and a 429. If the provider is down for longer, the read fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, Self, TypeVar

from core.flow_control.request_gate import RequestGate, RequestGates
from core.ports.errors import MisconfiguredError, MustWaitError, RetryableError, ThrottledError
from core.ports.provider import RequestPermits
from core.ports.spec import Provider
from core.reconcile.backoff import retry_delay

MAX_READ_FAILURES = 6  # of one request, up to half a minute apart
MAX_PERMIT_WAITS = 600  # each some seconds long: interactive changes go first as long as there are any


class RateLimitedReader(Protocol):
    def with_permits(self, permits: RequestPermits) -> Self: ...


ReaderT = TypeVar("ReaderT", bound=RateLimitedReader)
ReadResultT = TypeVar("ReadResultT")


class Sleep(Protocol):
    def __call__(self, seconds: float, /) -> None: ...


@dataclass(frozen=True, kw_only=True)  # with slots, an alias of this generic class cannot be called
class LowPriorityReader(Generic[ReaderT]):
    """``readers``: of the providers that are to be read. ``purpose``: who reads, for the rate limiter."""

    readers: Mapping[Provider, ReaderT]
    purpose: str
    gates: RequestGates = field(default_factory=RequestGates)
    sleep: Sleep = time.sleep

    def __call__(self, provider: Provider, read: Callable[[ReaderT], ReadResultT]) -> ReadResultT:
        """Makes one read; after an error ``read`` is called again from its start. Raises ``ProviderError``."""
        failures = 0
        for _ in range(MAX_PERMIT_WAITS):
            gate = self.gates.open_gate(provider, self.purpose, "bulk")
            try:
                return read(self.readers[provider].with_permits(gate))
            except MustWaitError as wait:
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
        message = "other requests used the whole rate limit for too long; run the command again when traffic is lower"
        raise ThrottledError(provider, message)

    def _back_off(self, error: RetryableError, failures: int, gate: RequestGate) -> None:
        if isinstance(error, ThrottledError):
            gate.record_throttle(error)
        self.sleep(retry_delay(error, failures))
