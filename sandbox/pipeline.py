"""Pipeline of every provider request: API key, rate limit, fault, idempotency key, operation, log, in this order.

The operation is synchronous code, so no request sees another one half done. Other requests run only while one waits
(latency, slow, hang); Stripe's idempotency key is in use meanwhile.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Protocol

from sandbox.faults import InjectedFault
from sandbox.http import ConnectionDropped, Exchange, ExchangeResult, ProviderRequest, ProviderResponse
from sandbox.state import SandboxState

ExchangeObserver = Callable[[Exchange], None]

PROXY_502_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
FAULTS_WHILE_PERFORMING = frozenset({"500_stored", "500_after", "422_third_party"})


class ProviderBackend(Protocol):
    def operation_name(self, method: str, path: str) -> str:
        """The name that faults and rate limits use, with ids replaced by ``{id}``."""
        ...

    def reject(self, request: ProviderRequest) -> ProviderResponse | None:
        """401 for a bad key, 429 above the limit."""
        ...

    def acquire_idempotency_key(self, request: ProviderRequest) -> ProviderResponse | None:
        """The response if the key is stored or in use; None: go on, and call ``release_idempotency_key`` afterwards."""
        ...

    def perform(self, request: ProviderRequest, fault_kind: str | None) -> ProviderResponse:
        """Do the operation. ``fault_kind`` is one of ``FAULTS_WHILE_PERFORMING``, or None."""
        ...

    def release_idempotency_key(self, request: ProviderRequest) -> None: ...

    def fault_response(self, request: ProviderRequest, fault: InjectedFault) -> ProviderResponse:
        """This provider's response for a fault by which nothing is done (500, 401, 403, 429, lock_timeout)."""
        ...

    def add_headers(self, request: ProviderRequest, response: ProviderResponse) -> ProviderResponse:
        """Add the headers that this provider sends with each of its responses."""
        ...


class RequestPipeline:
    def __init__(
        self, state: SandboxState, backends: dict[str, ProviderBackend], observer: ExchangeObserver | None
    ) -> None:
        self._state = state
        self._backends = backends
        self._observer = observer

    async def serve(  # noqa: PLR0913, PLR0917  # the parts of one request
        self, provider: str, method: str, path: str, query: str, headers: dict[str, str], body: bytes
    ) -> ExchangeResult:
        backend = self._backends[provider]
        request = ProviderRequest(
            f"req_{secrets.token_hex(7)}",
            provider,
            backend.operation_name(method, path),
            method,
            path,
            query,
            headers,
            body,
        )
        self._state.tick()
        fault = None
        result: ExchangeResult | None = backend.reject(request)
        if result is None:
            fault = self._state.faults.use_next(request)
            result = await self._respond(backend, request, fault)
        if isinstance(result, ProviderResponse):
            result = backend.add_headers(request, result)
        self._record(request, result, fault)
        return result

    async def _respond(
        self, backend: ProviderBackend, request: ProviderRequest, fault: InjectedFault | None
    ) -> ExchangeResult:
        kind = fault.kind if fault else None
        if fault and (fault_result := await self._fault_before_performing(backend, request, fault)) is not None:
            return fault_result
        if (key_response := backend.acquire_idempotency_key(request)) is not None:
            return ConnectionDropped() if kind == "lost_answer" else key_response
        try:
            wait_seconds = self._state.settings.latency_ms / 1000 + (fault.seconds if fault and kind == "slow" else 0.0)
            if wait_seconds:
                await asyncio.sleep(wait_seconds)
                self._state.tick()
            response = backend.perform(request, kind if kind in FAULTS_WHILE_PERFORMING else None)
            self._state.store.commit()
        finally:
            backend.release_idempotency_key(request)
        if kind == "lost_answer":
            return ConnectionDropped()
        if fault and kind == "drip":
            return ProviderResponse(
                response.status, response.body, response.headers, response.content_type, fault.seconds
            )
        return response

    @staticmethod
    async def _fault_before_performing(
        backend: ProviderBackend, request: ProviderRequest, fault: InjectedFault
    ) -> ExchangeResult | None:
        match fault.kind:
            case "reset":
                return ConnectionDropped(reset=True)
            case "hang":
                await asyncio.sleep(fault.seconds)
                return ConnectionDropped()
            case "html_502":
                return ProviderResponse(502, PROXY_502_PAGE, content_type="text/html")
            case "status":
                return ProviderResponse(fault.status, fault.body.encode())
            case "500_before" | "401" | "403" | "429" | "lock_timeout":
                return backend.fault_response(request, fault)
            case _:
                return None

    def _record(self, request: ProviderRequest, result: ExchangeResult, fault: InjectedFault | None) -> None:
        response = result if isinstance(result, ProviderResponse) else None
        response_headers = dict(response.headers) if response else {}
        self._state.calls.add(
            {
                "provider": request.provider,
                "operation": request.operation,
                "method": request.method,
                "path": request.path,
                "query": request.query,
                "body": request.body.decode(errors="replace"),
                "at": self._state.clock.now(),
                "status": response.status if response else None,
                "idempotency_key": request.headers.get("idempotency-key"),
                "replayed": response_headers.get("Idempotent-Replayed") == "true",
                "fault": fault.kind if fault else None,
            }
        )
        if self._observer is None:
            return
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        self._observer(
            Exchange(
                provider=request.provider,
                operation=request.operation,
                method=request.method,
                path=request.path,
                query=request.query,
                headers=headers,
                body=request.body,
                status=response.status if response else None,
                response_body=response.body if response else b"",
                fault=fault.kind if fault else None,
            )
        )
