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

from core.flow_control.request_gate import Gates
from core.ports.errors import MustWaitError, ParkedError, ProviderError, ThrottledError
from core.ports.provider import Meter, Pace, Teller
from core.ports.quotes import PlanQuestion, Quote, Usage
from core.ports.spec import PROVIDERS, Provider

QUOTE_SECONDS: Final = 2.5
USAGE_SECONDS: Final = 1.5
CALL_SECONDS: Final = 2.0  # one request of a question
THREADS: Final = 6  # to each biller
AT_ONCE: Final = 16  # who may wait at the same time; requests have forty threads in all
# One place in the quota's line for all who ask here: they do not come back for it.
HOLDER: Final = "api"

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """``refused``: it does not take the question as it is. ``detail`` may hold ids: it is for services alone."""

    kind: Literal["unavailable", "refused"]
    detail: str | None = None


class Asking:
    """Of one process. The billers stay their owner's to close, after ``close``."""

    def __init__(self, tellers: Mapping[Provider, Teller], meter: Meter, gates: Gates | None = None) -> None:
        self._tellers = tellers
        self._meter = meter
        self._gates = gates or Gates()
        self._waiting = threading.BoundedSemaphore(AT_ONCE)
        self._pools = {
            provider: ThreadPoolExecutor(THREADS, thread_name_prefix=f"asking-{provider}") for provider in PROVIDERS
        }

    def quote(self, provider: Provider, question: PlanQuestion) -> Quote | Unanswered:
        teller = self._tellers[provider]
        return self._ask(provider, QUOTE_SECONDS, lambda pace: teller.paced(pace).quote(question))

    def usage(self, org_id: str) -> Usage | Unanswered | None:
        """``None``: there is no subscription that usage could belong to."""
        return self._ask("lago", USAGE_SECONDS, lambda pace: self._meter.paced(pace).usage(org_id))

    def close(self) -> None:
        """What is under way ends by itself, within its calls' seconds."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, provider: Provider, seconds: float, question: Callable[[Pace], Answer]) -> Answer | Unanswered:
        if not self._waiting.acquire(blocking=False):
            return Unanswered(kind="unavailable", detail="too many ask at once")
        try:
            asked = self._pools[provider].submit(self._answered, provider, question)
            return _in_time(asked, seconds)
        finally:
            self._waiting.release()

    def _answered(self, provider: Provider, question: Callable[[Pace], Answer]) -> Answer | Unanswered:
        gate = self._gates.to(provider, HOLDER, "fresh")
        try:
            return question(gate)
        except MustWaitError:
            return Unanswered(kind="unavailable", detail="its rate limit is used up now")
        except ParkedError as error:
            return Unanswered(kind="refused", detail=error.message)
        except ProviderError as error:
            if isinstance(error, ThrottledError):
                gate.throttled(error)
            return Unanswered(kind="unavailable", detail=error.message)
        finally:
            gate.leave()


def _in_time(asked: Future[Answer | Unanswered], seconds: float) -> Answer | Unanswered:
    try:
        return asked.result(seconds)
    except TooLateError:
        asked.cancel()
        return Unanswered(kind="unavailable", detail=f"no answer within {seconds} s")
