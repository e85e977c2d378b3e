"""Prometheus metrics: gauges read from the rows at each scrape, and what this process itself measured.

The gauges are the same for every process of the API; only its own requests and calls are counted in memory. No label
contains an id. Routes are templates, so the series are bounded by the routes, statuses and kinds.
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
from core.common.process_metrics import PROCESS_METRICS, ProcessMetrics
from core.db.models.billing_links import PaymentStatus
from core.db.models.providers import BreakerReason
from core.ports.spec import Provider
from core.reporting.metrics import DriftReportSummary, LinkMetrics, StoreMetrics

METRICS_MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
METRICS_CACHE_SECONDS: Final = 5.0  # seconds: the rows are read at most this often, however many scrape
LATENCY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PAYMENT_PROBLEMS: Final[tuple[PaymentStatus, ...]] = get_args(PaymentStatus)
BREAKER_REASONS: Final[tuple[BreakerReason, ...]] = get_args(BreakerReason)
NO_ROUTE_LABEL: Final = "none"
_LABELED_METHODS: Final = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class HttpMetrics:
    """Of one process. ``read`` reads the rows; it may raise the errors of an unreachable database."""

    def __init__(self, read: Callable[[], StoreMetrics], clock: Clock, own: ProcessMetrics = PROCESS_METRICS) -> None:
        self._own = own
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "billing_sync_http_requests",
            "HTTP requests served by this process.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "billing_sync_http_request_seconds",
            "Duration of HTTP requests in seconds.",
            ("method", "route"),
            registry=self._registry,
            buckets=LATENCY_BUCKETS,
        )
        self._row_metrics = _RowMetricsCache(read, clock)

    def record(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """``route`` is the template; None: no route matched."""
        method, route = method if method in _LABELED_METHODS else "other", route or NO_ROUTE_LABEL
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """Raises what ``read`` raises: then there is no number to show."""
        rows = CollectorRegistry()
        rows.register(self._row_metrics.collector())
        return generate_latest(rows) + generate_latest(self._registry) + generate_latest(self._own.registry)


class _RowMetricsCache:
    def __init__(self, read: Callable[[], StoreMetrics], clock: Clock) -> None:
        self._read, self._clock = read, clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._cached: StoreMetrics | None = None

    def collector(self) -> Collector:
        with self._lock:
            if self._cached is None or time.monotonic() - self._read_at >= METRICS_CACHE_SECONDS:
                self._cached = self._read()
                self._read_at = time.monotonic()
            return _RowMetricsCollector(self._cached, self._clock())


class _RowMetricsCollector(Collector):
    def __init__(self, metrics: StoreMetrics, now: datetime) -> None:
        self._metrics, self._now = metrics, now

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield from self._links(metrics.links.items())
        yield from self._providers(metrics.links.items())
        yield from self._drift_report(metrics.last_drift_report)
        yield from self._backup(metrics.last_backup_at)
        yield _gauge("events_pending", "Events not yet published by the relay.", metrics.events_pending)
        yield _gauge(
            "events_oldest_pending_seconds",
            "Age of the oldest unpublished event; 0: none.",
            self._age_seconds(metrics.oldest_pending_event_at),
        )
        yield _labeled_gauge(
            "processes",
            "Processes with a heartbeat in the last minute; up is worker, relay and beat in one.",
            "process",
            metrics.processes.items(),
        )
        yield _gauge(
            "database_read_only",
            "1: Postgres accepts no write, so no change is accepted and no process stores its heartbeat.",
            float(metrics.database_is_read_only),
        )
        yield _labeled_gauge(
            "payment_changes_on_hold",
            "Billing links whose change of what is paid waits for an operator (`billing-sync brake list`).",
            "kind",
            metrics.changes_on_hold.items(),
        )
        yield _labeled_gauge("waiting", "Queued items by kind.", "what", metrics.waiting.items())
        yield _labeled_gauge("failed", "Failed items by kind that need an operator.", "what", metrics.failed.items())

    def _links(self, links: Iterable[tuple[Provider, LinkMetrics]]) -> Iterator[Metric]:
        rows = list(links)
        yield _labeled_gauge(
            "links_behind", "Billing links with work left to do.", "provider", ((p, r.behind) for p, r in rows)
        )
        yield _labeled_gauge(
            "links_parked",
            "Parked billing links: they need an operator, or a change that the provider must see.",
            "provider",
            ((p, r.parked) for p, r in rows),
        )
        yield _labeled_gauge(
            "links_on_hold",
            "Billing links on hold: only an operator frees them, by a retry or by setting the customer id.",
            "provider",
            ((p, r.on_hold) for p, r in rows),
        )
        yield _labeled_gauge(
            "links_oldest_behind_seconds",
            "Seconds since the last change of the organization that has been behind longest; 0: none.",
            "provider",
            ((p, self._age_seconds(r.behind_since)) for p, r in rows),
        )
        payment_problems = _gauge_family(
            "payment_problems",
            "Billing links with a payment problem: failed, payer_rejected, dispute_lost, overdue or manual.",
            "provider",
            "status",
        )
        for provider, row in rows:
            for status in PAYMENT_PROBLEMS:
                payment_problems.add_metric([provider, status], float(row.payment_problems.get(status, 0)))
        yield payment_problems
        yield _labeled_gauge(
            "credit_left",
            "Customers with credit on their balance that no invoice will use: an operator must refund or grant it.",
            "provider",
            ((p, r.credit_left) for p, r in rows),
        )

    def _providers(self, links: Iterable[tuple[Provider, LinkMetrics]]) -> Iterator[Metric]:
        rows = list(links)
        breaker_open = _gauge_family(
            "provider_breaker_open",
            "1: the circuit breaker is open for this reason, and only probes are sent.",
            "provider",
            "reason",
        )
        for provider, row in rows:
            for reason in BREAKER_REASONS:
                breaker_open.add_metric([provider, reason], float(row.breaker_reason == reason))
        yield breaker_open
        yield _labeled_gauge(
            "provider_webhooks_refused",
            "1: the signature of the provider's last webhook was not valid, and the API refused it.",
            "provider",
            ((p, float(r.webhooks_refused)) for p, r in rows),
        )

    def _drift_report(self, report: DriftReportSummary | None) -> Iterator[Metric]:
        """No metric if there is no report yet: a 0 would be wrong."""
        if report is None:
            return
        age = self._age_seconds(report.finished_at)
        yield _gauge("drift_report_age_seconds", "Seconds since the last drift check ended.", age)
        yield _gauge("drift_organizations", "Organizations with drift in the last report.", report.drifted)
        yield _labeled_gauge("drift_findings", "Findings of the last report by kind.", "kind", report.kinds.items())

    def _backup(self, taken_at: datetime | None) -> Iterator[Metric]:
        """No metric if there is none yet: a 0 would be wrong."""
        if taken_at is not None:
            yield _gauge(
                "backup_age_seconds", "Seconds since the newest backup was begun.", self._age_seconds(taken_at)
            )

    def _age_seconds(self, since: datetime | None) -> float:
        return 0.0 if since is None else max(0.0, (self._now - since).total_seconds())


def _gauge_family(name: str, help_text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"billing_sync_{name}", help_text, labels=labels)


def _gauge(name: str, help_text: str, value: float) -> Metric:
    family = _gauge_family(name, help_text)
    family.add_metric([], value)
    return family


def _labeled_gauge(name: str, help_text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = _gauge_family(name, help_text, label)
    for label_value, value in values:
        family.add_metric([label_value], value)
    return family
