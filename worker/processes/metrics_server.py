"""Serves ``/metrics`` of this process on ``METRICS_PORT``, for Prometheus; nothing without that setting.

It shows what the process measured itself, so it is small and reads no row: what the rows say is at the API, which asks
for a key. A worker runs threads in one process, so its numbers are complete. One request is answered at a time, and a
client that sends nothing is cut off, so a scrape never costs the process more than one thread.
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from core.common.process_metrics import PROCESS_METRICS, ProcessMetrics
from worker.config.settings import Settings, SettingsError

ProcessKind = Literal["worker", "relay", "beat", "up"]
SCRAPE_SECONDS: Final = 5.0  # seconds: the longest wait for a client's request


@contextmanager
def serve(settings: Settings, kind: ProcessKind) -> Iterator[CollectorRegistry]:
    """Serve the metrics inside the ``with`` block; further collectors may be registered there.

    Raises ``SettingsError`` if the address cannot be used.

    A process without the metrics that it was told to serve would be an alarm that never fires, so it does not start.
    """
    registry = _new_registry(settings, kind)
    if settings.metrics_port is None:
        yield registry
        return
    server = _open_server(settings.metrics_host, settings.metrics_port, registry)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()


def _new_registry(settings: Settings, kind: ProcessKind) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(OwnCollector(kind, settings.data_dir, PROCESS_METRICS))
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    return registry


class OwnCollector(Collector):
    """``folder``: DATA_DIR."""

    def __init__(self, kind: ProcessKind, folder: Path, metrics: ProcessMetrics) -> None:
        self._kind, self._folder, self._metrics = kind, folder, metrics

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily(
            "billing_sync_build",
            "This process: what it is, its version and its Python.",
            value={
                "process": self._kind,
                "version": importlib.metadata.version("billing-sync"),
                "python": platform.python_version(),
            },
        )
        yield from self._disk()
        yield from self._metrics.registry.collect()

    def _disk(self) -> Iterator[Metric]:
        """Absent without the folder: a process with Postgres and Redis does not create it."""
        if not self._folder.is_dir():
            return
        usage = shutil.disk_usage(self._folder)
        yield GaugeMetricFamily("billing_sync_disk_free_bytes", "Free space where DATA_DIR is.", usage.free)
        yield GaugeMetricFamily("billing_sync_disk_size_bytes", "Size of the disk where DATA_DIR is.", usage.total)


class _SilentHandler(WSGIRequestHandler):
    timeout = SCRAPE_SECONDS

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in its base class
        """A scrape is no event."""


def _open_server(host: str, port: int, registry: CollectorRegistry) -> WSGIServer:
    try:
        return make_server(host, port, make_wsgi_app(registry), handler_class=_SilentHandler)
    except OSError as error:
        message = (
            f"METRICS_PORT: the metrics cannot be served on {host}:{port} ({error.strerror}): give each process of a "
            "machine its own METRICS_PORT, or remove it"
        )
        raise SettingsError(message) from None
