"""Every provider request passes here: key, rate limit, fault, idempotency key, work, log, in this order.

The work itself is plain code without a pause, so requests never see each other half done; only waiting (latency, slow,
hang) gives way to others, and Stripe's idempotency key is held meanwhile.
"""

import asyncio
import secrets
from collections.abc import Callable
from typing import Protocol

from sandbox.faults import Fault
from sandbox.http import Answer, Dropped, Exchange, Outcome, Request
from sandbox.state import World

Observer = Callable[[Exchange], None]

HTML_502 = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
FAILING = frozenset({"500_stored", "500_after", "422_third_party"})


class Biller(Protocol):
    def operation(self, method: str, path: str) -> str:
        """The name a fault and a rate limit go by: ids replaced by ``{id}``."""
        ...

    def refuse(self, request: Request) -> Answer | None:
        """401 for a bad key, 429 above the limit."""
        ...

    def claim(self, request: Request) -> Answer | None:
        """An answer that is already there (a replay, a key in use); None: go on, and ``release`` afterwards."""
        ...

    def perform(self, request: Request, failing: str | None) -> Answer:
        """Do it. ``failing`` is the fault that spoils it: one of FAILING."""
        ...

    def release(self, request: Request) -> None: ...

    def fault_answer(self, request: Request, fault: Fault) -> Answer:
        """The body this provider gives for a fault that does nothing (500, 401, 429, lock_timeout)."""
        ...

    def dress(self, request: Request, answer: Answer) -> Answer:
        """The headers this provider puts on every answer of its own."""
        ...


class Gate:
    def __init__(self, world: World, billers: dict[str, Biller], observer: Observer | None) -> None:
        self._world = world
        self._billers = billers
        self._observer = observer

    async def serve(  # noqa: PLR0913, PLR0917  # the parts of one request
        self, provider: str, method: str, path: str, query: str, headers: dict[str, str], body: bytes
    ) -> Outcome:
        biller = self._billers[provider]
        request = Request(
            f"req_{secrets.token_hex(7)}", provider, biller.operation(method, path), method, path, query, headers, body
        )
        self._world.tick()
        fault = None
        outcome: Outcome | None = biller.refuse(request)
        if outcome is None:
            fault = self._world.faults.take(request)
            outcome = await self._answer(biller, request, fault)
        if isinstance(outcome, Answer):
            outcome = biller.dress(request, outcome)
        self._record(request, outcome, fault)
        return outcome

    async def _answer(self, biller: Biller, request: Request, fault: Fault | None) -> Outcome:
        kind = fault.kind if fault else None
        if fault and (spoiled := await self._before(biller, request, fault)) is not None:
            return spoiled
        if (claimed := biller.claim(request)) is not None:
            return Dropped() if kind == "lost_answer" else claimed
        try:
            wait = self._world.settings.latency_ms / 1000 + (fault.seconds if fault and kind == "slow" else 0.0)
            if wait:
                await asyncio.sleep(wait)
                self._world.tick()
            answer = biller.perform(request, kind if kind in FAILING else None)
            self._world.store.commit()
        finally:
            biller.release(request)
        if kind == "lost_answer":
            return Dropped()
        if fault and kind == "drip":
            return Answer(answer.status, answer.body, answer.headers, answer.content_type, fault.seconds)
        return answer

    @staticmethod
    async def _before(biller: Biller, request: Request, fault: Fault) -> Outcome | None:
        match fault.kind:
            case "reset":
                return Dropped(reset=True)
            case "hang":
                await asyncio.sleep(fault.seconds)
                return Dropped()
            case "html_502":
                return Answer(502, HTML_502, content_type="text/html")
            case "status":
                return Answer(fault.status, fault.body.encode())
            case "500_before" | "401" | "429" | "lock_timeout":
                return biller.fault_answer(request, fault)
            case _:
                return None

    def _record(self, request: Request, outcome: Outcome, fault: Fault | None) -> None:
        answer = outcome if isinstance(outcome, Answer) else None
        answer_headers = dict(answer.headers) if answer else {}
        self._world.calls.add(
            {
                "provider": request.provider,
                "operation": request.operation,
                "method": request.method,
                "path": request.path,
                "query": request.query,
                "body": request.body.decode(errors="replace"),
                "at": self._world.clock.now(),
                "status": answer.status if answer else None,
                "idempotency_key": request.headers.get("idempotency-key"),
                "replayed": answer_headers.get("Idempotent-Replayed") == "true",
                "fault": fault.kind if fault else None,
            }
        )
        if self._observer is None:
            return
        shown = {name: value for name, value in request.headers.items() if name != "authorization"}
        self._observer(
            Exchange(
                provider=request.provider,
                operation=request.operation,
                method=request.method,
                path=request.path,
                query=request.query,
                headers=shown,
                body=request.body,
                status=answer.status if answer else None,
                answer=answer.body if answer else b"",
                fault=fault.kind if fault else None,
            )
        )
