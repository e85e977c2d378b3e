"""Measures each request to a provider: its duration, and what the failure table makes of its response."""

from __future__ import annotations

import time
from typing import Final

from core.common.process_metrics import PROCESS_METRICS
from core.ports.spec import Provider
from providers.transport.failure_table import Failure

OUTCOME_OK: Final = "ok"
_HTTP_OK: Final = 200


def record(provider: Provider, operation: str, started_at: float, failure: Failure | None) -> None:
    """``operation`` has ``{id}`` in place of each id, so that the series are bounded. ``started_at`` is monotonic."""
    seconds = time.monotonic() - started_at
    if failure is None:
        PROCESS_METRICS.record_request(provider, operation, OUTCOME_OK, _HTTP_OK, seconds)
    else:
        PROCESS_METRICS.record_request(provider, operation, failure.rule.error_class.kind, failure.status, seconds)
