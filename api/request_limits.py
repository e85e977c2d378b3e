"""How many requests and how many bytes of bodies are in work at once: of all callers together, and of one of them.

The check is made before anything is read or waits, so what exceeds a bound costs nothing. If all bodies together take
too much, the oldest one that has not arrived yet is given up: slow bodies never keep the others out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Final, Self

from api import problems
from api.problems import ProblemError

MAX_CONCURRENT_REQUESTS: Final = 2000
MAX_CONCURRENT_REQUESTS_OF_ADDRESS: Final = 256
MAX_PROBES: Final = 64  # requests of load balancers and monitoring, apart from all others
MAX_PROBES_OF_ADDRESS: Final = 32
MAX_WAITING_REQUESTS: Final = 1000  # of the concurrent requests, so that they never take the place of all others
MAX_WAITING_REQUESTS_OF_CALLER: Final = 20
# Objects made from JSON take several times the memory of its bytes.
MAX_BODY_MEMORY: Final = 32 * 1024 * 1024  # bytes, of authorized callers
MAX_BODY_MEMORY_OF_CALLER: Final = 16 * 1024 * 1024
MAX_PUBLIC_BODY_MEMORY: Final = 8 * 1024 * 1024  # bytes, of callers that are known only by what they sent
MAX_PUBLIC_BODY_MEMORY_OF_ADDRESS: Final = 4 * 1024 * 1024
_RETRY_AFTER: Final = {"Retry-After": "1"}


class SharedAmount:
    """An amount that requests reserve while they are in work. Used in the thread of the event loop only."""

    def __init__(self, what: str, total: int, of_caller: int) -> None:
        self._what, self._total, self._of_caller = what, total, of_caller
        self._reserved: Counter[str] = Counter()
        self._sum = 0
        self._evictable: dict[Share, Callable[[], None]] = {}

    @contextmanager
    def reserve(self, caller: str, amount: int = 1) -> Iterator[Share]:
        """Raises ``ProblemError``: 429 if the caller has too much already, 503 if all together have."""
        with Share(self, caller) as share:
            share.add(amount)
            yield share

    def take(self, share: Share, amount: int) -> None:
        """Evicts the oldest shares that allow it, if all together have too much."""
        if self._reserved[share.caller] + amount > self._of_caller:
            detail = f"You have too many {self._what} at the same time. Wait until one of them has ended."
            raise ProblemError(HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests", detail, headers=_RETRY_AFTER)
        while self._sum + amount > self._total:
            oldest = next((each for each in self._evictable if each is not share), None)
            if oldest is None:
                detail = f"All callers together have too many {self._what} at the same time. Send it again soon."
                raise problems.unavailable(detail)
            end = self._evictable[oldest]
            oldest.release()
            end()
        self._reserved[share.caller] += amount
        self._sum += amount

    def give_back(self, share: Share, amount: int) -> None:
        self._evictable.pop(share, None)
        self._sum -= amount
        self._reserved[share.caller] -= amount
        if not self._reserved[share.caller]:
            del self._reserved[share.caller]

    def allow_eviction(self, share: Share, end: Callable[[], None]) -> None:
        self._evictable[share] = end

    def forbid_eviction(self, share: Share) -> None:
        self._evictable.pop(share, None)


class Share:
    """What one request has reserved."""

    def __init__(self, of: SharedAmount, caller: str) -> None:
        self._of, self.caller = of, caller
        self._amount = 0
        self._is_released = False

    def add(self, amount: int) -> None:
        """Raises ``ProblemError``; then nothing was added."""
        if not self._is_released:
            self._of.take(self, amount)
            self._amount += amount

    @contextmanager
    def evictable(self, end: Callable[[], None]) -> Iterator[None]:
        """Meanwhile another request may take this share; ``end`` is called then and must end this request."""
        self._of.allow_eviction(self, end)
        yield
        self._of.forbid_eviction(self)

    def release(self) -> None:
        """Safe to repeat."""
        if not self._is_released:
            self._is_released = True
            self._of.give_back(self, self._amount)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class RequestLimits:
    """The bounds of one process. ``max_connections``: its server's bound."""

    def __init__(self, max_connections: int) -> None:
        requests = min(MAX_CONCURRENT_REQUESTS, max_connections // 2)
        of_address = min(MAX_CONCURRENT_REQUESTS_OF_ADDRESS, requests // 4)
        waiting = min(MAX_WAITING_REQUESTS, requests // 2)
        self.requests = SharedAmount("requests", requests, of_address)
        self.probes = SharedAmount("requests", MAX_PROBES, MAX_PROBES_OF_ADDRESS)
        self.waiting = SharedAmount("waiting requests", waiting, min(MAX_WAITING_REQUESTS_OF_CALLER, waiting // 4))
        self.bodies = SharedAmount("bytes of bodies", MAX_BODY_MEMORY, MAX_BODY_MEMORY_OF_CALLER)
        self.public_bodies = SharedAmount("bytes of bodies", MAX_PUBLIC_BODY_MEMORY, MAX_PUBLIC_BODY_MEMORY_OF_ADDRESS)
