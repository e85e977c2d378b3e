"""What Prometheus reads: gauges from the rows, at the moment of the scrape, and this process's own requests.

Whichever process of the API is asked, the gauges are the same: nothing is counted up in memory but its requests. No
label holds an id: routes are templates, and there are as many series as there are routes, statuses and kinds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from core.common.clock import Clock
from core.db.models.providers import StopKind
from core.ports.spec import Provider
from core.reporting.metrics import Comparison, Figures, LinkFigures

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
KEPT: Final = 5.0  # seconds: however many scrape, the rows are read so often
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
KINDS: Final[tuple[StopKind, ...]] = get_args(StopKind)
NO_ROUTE: Final = "none"
_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class Measures:
    """Of one process. ``read`` asks the rows; it may raise what a database that is away does."""

    def __init__(self, read: Callable[[], Figures], clock: Clock) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "billing_sync_http_requests",
            "Requests that this process answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "billing_sync_http_request_seconds",
            "How long they took.",
            ("method", "route"),
            registry=self._registry,
            buckets=BUCKETS,
        )
        self._rows = _Rows(read, clock)

    def saw(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """``route`` is the template; None: no route took it."""
        method, route = method if method in _METHODS else "other", route or NO_ROUTE
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self) -> bytes:
        """Raises what ``read`` does: then there is no number to show."""
        rows = CollectorRegistry()
        rows.register(self._rows.collector())
        return generate_latest(rows) + generate_latest(self._registry)


class _Rows:
    def __init__(self, read: Callable[[], Figures], clock: Clock) -> None:
        self._read, self._clock = read, clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._figures: Figures | None = None

    def collector(self) -> Collector:
        with self._lock:
            if self._figures is None or time.monotonic() - self._read_at >= KEPT:
                self._figures = self._read()
                self._read_at = time.monotonic()
            return _Shown(self._figures, self._clock())


class _Shown(Collector):
    def __init__(self, figures: Figures, now: datetime) -> None:
        self._figures, self._now = figures, now

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        yield from self._links(figures.links.items())
        yield from self._comparison(figures.comparison)
        yield _one("events_pending", "Events that the relay has not published yet.", figures.events_pending)
        yield _one(
            "events_oldest_pending_seconds", "The age of the oldest of them; 0: none.", self._age(figures.events_since)
        )
        yield _each("waiting", "What waits to be sent or looked at.", "what", figures.waiting.items())
        yield _each("failed", "What was given up and waits for a person.", "what", figures.failed.items())

    def _links(self, links: Iterable[tuple[Provider, LinkFigures]]) -> Iterator[Metric]:
        rows = list(links)
        yield _each("links_behind", "Links with something left to do.", "provider", ((p, r.behind) for p, r in rows))
        yield _each("links_parked", "Links that wait for a person.", "provider", ((p, r.parked) for p, r in rows))
        yield _each("links_held", "Links that only a person's retry frees.", "provider", ((p, r.held) for p, r in rows))
        yield _each(
            "links_oldest_behind_seconds",
            "Since the last change of the organization that has waited longest; 0: none waits.",
            "provider",
            ((p, self._age(r.behind_since)) for p, r in rows),
        )
        stopped = _family("biller_stopped", "1: nothing is sent there but probes, for this reason.", "provider", "kind")
        for provider, row in rows:
            for kind in KINDS:
                stopped.add_metric([provider, kind], float(row.stop == kind))
        yield stopped

    def _comparison(self, last: Comparison | None) -> Iterator[Metric]:
        """Nothing where there was none: that is no 0."""
        if last is None:
            return
        age = self._age(last.finished_at)
        yield _one("drift_plan_age_seconds", "Since the last comparison with the billers ended.", age)
        yield _one("drift_organizations", "Organizations that had drifted then.", last.drifted)
        yield _each("drift_findings", "What was found then, by kind.", "kind", last.kinds.items())

    def _age(self, since: datetime | None) -> float:
        return 0.0 if since is None else max(0.0, (self._now - since).total_seconds())


def _family(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"billing_sync_{name}", about, labels=labels)


def _one(name: str, about: str, value: float) -> Metric:
    family = _family(name, about)
    family.add_metric([], value)
    return family


def _each(name: str, about: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = _family(name, about, label)
    for each, value in values:
        family.add_metric([each], value)
    return family
