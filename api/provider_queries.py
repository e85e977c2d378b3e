"""Provider queries while a request waits: within the rate limit, within a timeout, and without raising an error.

Each query runs in a thread of its provider's own pool, and the request continues after the timeout in any case. A
provider that hangs therefore blocks only its own few threads. A query without a result returns ``QueryFailure`` with
the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLateError
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from core.flow_control.request_gate import RequestGates
from core.ports.errors import MustWaitError, ParkedError, ProviderError, ThrottledError
from core.ports.external_ids import ExternalIds
from core.ports.provider import InvoicePreviewer, RequestPermits, UsageReader
from core.ports.quotes import PlanChangeQuery, Quote, Usage
from core.ports.spec import PROVIDERS, Provider

QUOTE_TIMEOUT_SECONDS: Final = 2.5
USAGE_TIMEOUT_SECONDS: Final = 1.5
QUERY_CALL_TIMEOUT_SECONDS: Final = 2.0  # one HTTP request of a query
QUERY_THREADS_PER_PROVIDER: Final = 6
MAX_CONCURRENT_QUERIES: Final = 16  # requests that wait at the same time; all requests share forty threads
# All queries share one place in the rate limiter's queue: they do not come back for it.
API_PERMIT_HOLDER: Final = "api"

QueryResult = TypeVar("QueryResult")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryFailure:
    """``rejected``: the provider does not accept the query. ``detail`` may contain ids, so it is for services only."""

    kind: Literal["unavailable", "rejected"]
    detail: str | None = None


class ProviderQueries:
    """Of one process. The owner of the providers closes them, after ``close``."""

    def __init__(
        self,
        invoice_previewers: Mapping[Provider, InvoicePreviewer],
        usage_reader: UsageReader,
        request_gates: RequestGates | None = None,
    ) -> None:
        self._invoice_previewers = invoice_previewers
        self._usage_reader = usage_reader
        self._request_gates = request_gates or RequestGates()
        self._free_query_slots = threading.BoundedSemaphore(MAX_CONCURRENT_QUERIES)
        self._pools = {
            provider: ThreadPoolExecutor(QUERY_THREADS_PER_PROVIDER, thread_name_prefix=f"query-{provider}")
            for provider in PROVIDERS
        }

    def quote(self, provider: Provider, query: PlanChangeQuery) -> Quote | QueryFailure:
        previewer = self._invoice_previewers[provider]
        return self._run_with_timeout(
            provider, QUOTE_TIMEOUT_SECONDS, lambda permits: previewer.with_permits(permits).quote(query)
        )

    def usage(self, org_id: str, external_ids: ExternalIds) -> Usage | QueryFailure | None:
        """``None``: the organization has no subscription."""
        return self._run_with_timeout(
            "lago",
            USAGE_TIMEOUT_SECONDS,
            lambda permits: self._usage_reader.with_permits(permits).usage(org_id, external_ids),
        )

    def close(self) -> None:
        """Running queries end on their own, within the timeouts of their calls."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _run_with_timeout(
        self, provider: Provider, timeout_seconds: float, query: Callable[[RequestPermits], QueryResult]
    ) -> QueryResult | QueryFailure:
        if not self._free_query_slots.acquire(blocking=False):
            return QueryFailure(kind="unavailable", detail="too many requests to providers at once")
        try:
            future = self._pools[provider].submit(self._run_query, provider, query)
            return _await_result(future, timeout_seconds)
        finally:
            self._free_query_slots.release()

    def _run_query(
        self, provider: Provider, query: Callable[[RequestPermits], QueryResult]
    ) -> QueryResult | QueryFailure:
        request_gate = self._request_gates.open_gate(provider, API_PERMIT_HOLDER, "interactive")
        try:
            return query(request_gate)
        except MustWaitError:
            return QueryFailure(kind="unavailable", detail="its rate limit is exhausted now")
        except ParkedError as error:
            return QueryFailure(kind="rejected", detail=error.message)
        except ProviderError as error:
            if isinstance(error, ThrottledError):
                request_gate.record_throttle(error)
            return QueryFailure(kind="unavailable", detail=error.message)
        finally:
            request_gate.close()


def _await_result(future: Future[QueryResult | QueryFailure], timeout_seconds: float) -> QueryResult | QueryFailure:
    try:
        return future.result(timeout_seconds)
    except TooLateError:
        future.cancel()
        return QueryFailure(kind="unavailable", detail=f"no response within {timeout_seconds} s")
