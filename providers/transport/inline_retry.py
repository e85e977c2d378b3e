"""Inline retries of transient errors: at most three tries, all started within three seconds. Longer waits are requeued.

Only failures that the failure table marks ``retry_inline``: a repeat is proven harmless, and they may be over within a
second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_result,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random,
)

ResultT = TypeVar("ResultT")

MAX_INLINE_ATTEMPTS = 3
MAX_INLINE_RETRY_SECONDS = 3.0
_INLINE_RETRY_WAIT = wait_exponential(multiplier=0.2, max=1.0) + wait_random(0.0, 0.2)


def retry_transient(call: Callable[[], ResultT], is_transient: Callable[[ResultT], bool]) -> ResultT:
    """The result of the last try. ``call`` runs up to three times; an exception is passed on at once."""

    def last_result(state: RetryCallState) -> ResultT:
        if state.outcome is None:
            message = "the retry loop ended without a try"
            raise RuntimeError(message)
        result: ResultT = state.outcome.result()
        return result

    return Retrying(
        stop=stop_after_attempt(MAX_INLINE_ATTEMPTS) | stop_before_delay(MAX_INLINE_RETRY_SECONDS),
        wait=_INLINE_RETRY_WAIT,
        retry=retry_if_result(is_transient),
        retry_error_callback=last_result,
    )(call)
