"""Asking the billers while somebody waits for the answer: within the quota, within a time, and never an error.

Each question runs in a thread of its biller's own, and whoever asked goes on after ``seconds``, answered or not: a
biller that hangs costs its own few threads and nobody else's. What it did not tell is ``Unanswered``, with the reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLateError
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from core.flow_control.request_gate import RequestGates
from core.ports.errors import NoPermitError, ParkedError, ProviderError, ThrottledError
from core.ports.provider import InvoicePreviewer, Throttle, UsageReader
from core.ports.quotes import PlanChangeQuery, Quote, Usage
from core.ports.spec import PROVIDERS, Provider

QUOTE_TIMEOUT_SECONDS: Final = 2.5
USAGE_TIMEOUT_SECONDS: Final = 1.5
QUERY_CALL_TIMEOUT_SECONDS: Final = 2.0  # one request of a question
QUERY_THREADS_PER_PROVIDER: Final = 6  # to each biller
MAX_CONCURRENT_QUERIES: Final = 16  # who may wait at the same time; requests have forty threads in all
# One place in the quota's line for all who ask here: they do not come back for it.
API_PERMIT_HOLDER: Final = "api"

QueryResult = TypeVar("QueryResult")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryFailure:
    """``rejected``: it does not take the question as it is. ``detail`` may hold ids: it is for services alone."""

    kind: Literal["unavailable", "rejected"]
    detail: str | None = None


class ProviderQueries:
    """Of one process. The billers stay their owner's to close, after ``close``."""

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
            provider: ThreadPoolExecutor(QUERY_THREADS_PER_PROVIDER, thread_name_prefix=f"asking-{provider}")
            for provider in PROVIDERS
        }

    def quote(self, provider: Provider, query: PlanChangeQuery) -> Quote | QueryFailure:
        previewer = self._invoice_previewers[provider]
        return self._run_with_timeout(
            provider, QUOTE_TIMEOUT_SECONDS, lambda pace: previewer.with_throttle(pace).quote(query)
        )

    def usage(self, org_id: str) -> Usage | QueryFailure | None:
        """``None``: there is no subscription that usage could belong to."""
        return self._run_with_timeout(
            "lago", USAGE_TIMEOUT_SECONDS, lambda pace: self._usage_reader.with_throttle(pace).usage(org_id)
        )

    def close(self) -> None:
        """What is under way ends by itself, within its calls' seconds."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _run_with_timeout(
        self, provider: Provider, timeout_seconds: float, query: Callable[[Throttle], QueryResult]
    ) -> QueryResult | QueryFailure:
        if not self._free_query_slots.acquire(blocking=False):
            return QueryFailure(kind="unavailable", detail="too many ask at once")
        try:
            future = self._pools[provider].submit(self._run_query, provider, query)
            return _await_result(future, timeout_seconds)
        finally:
            self._free_query_slots.release()

    def _run_query(self, provider: Provider, query: Callable[[Throttle], QueryResult]) -> QueryResult | QueryFailure:
        request_gate = self._request_gates.open_gate(provider, API_PERMIT_HOLDER, "interactive")
        try:
            return query(request_gate)
        except NoPermitError:
            return QueryFailure(kind="unavailable", detail="its rate limit is used up now")
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
        return QueryFailure(kind="unavailable", detail=f"no answer within {timeout_seconds} s")
