"""What this process itself measured: requests to providers, waits for permits, and the time until a change is in sync.

It starts at zero with each process. No label contains an id: an operation has ``{id}`` in place of each. Everything
that is the same for all processes is read from the rows instead (``core.reporting.metrics``).
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

_TOO_MANY_REQUESTS: Final = 429
# A request to a provider ends within 10 s. There is a series of each bucket for each operation, so there are few.
REQUEST_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SYNC_BUCKETS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


class ProcessMetrics:
    """``PROCESS_METRICS`` is the one of this process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "billing_sync_provider_requests",
            "Requests to a provider. outcome: ok or the error kind; status: 2xx, 4xx, 429, 5xx, or none: no response.",
            ("provider", "operation", "outcome", "status"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "billing_sync_provider_request_seconds",
            "Duration of requests to a provider in seconds, without the wait for a permit.",
            ("provider", "operation"),
            registry=self.registry,
            buckets=REQUEST_BUCKETS,
        )
        self._permit_waits = Summary(
            "billing_sync_permit_wait_seconds",
            "Waits for a permit of the rate limiter: their number and their seconds.",
            ("provider",),
            registry=self.registry,
        )
        self._sync_seconds = Histogram(
            "billing_sync_commit_to_sync_seconds",
            "Seconds from the last change of an organization to the end of the attempt that brought its link in sync.",
            ("provider",),
            registry=self.registry,
            buckets=SYNC_BUCKETS,
        )

    def record_request(self, provider: str, operation: str, outcome: str, status: int | None, seconds: float) -> None:
        """``status`` None: there was no response."""
        self._requests.labels(provider, operation, outcome, _status_class(status)).inc()
        self._request_seconds.labels(provider, operation).observe(seconds)

    def record_permit_wait(self, provider: str, seconds: float) -> None:
        """A permit that is given at once is no wait."""
        if seconds > 0:
            self._permit_waits.labels(provider).observe(seconds)

    def record_sync(self, provider: str, seconds: float) -> None:
        self._sync_seconds.labels(provider).observe(max(0.0, seconds))


PROCESS_METRICS: Final = ProcessMetrics()


def _status_class(status: int | None) -> str:
    if status is None:
        return "none"
    return str(status) if status == _TOO_MANY_REQUESTS else f"{status // 100}xx"
