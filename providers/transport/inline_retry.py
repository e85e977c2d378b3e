"""Blips are bridged on the spot: at most three tries, all begun within three seconds. Longer waits are the queue's.

Only what the table of failures calls a blip: repeating it is proven harmless, and it may be over within a second.
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

T = TypeVar("T")

TRIES = 3
SECONDS = 3.0
_WAIT = wait_exponential(multiplier=0.2, max=1.0) + wait_random(0.0, 0.2)


def over_blips(attempt: Callable[[], T], is_blip: Callable[[T], bool]) -> T:
    """What the last try gave. ``attempt`` runs up to three times; what it raises goes straight through."""

    def last(state: RetryCallState) -> T:
        if state.outcome is None:
            message = "tenacity gave up before it tried"
            raise RuntimeError(message)
        result: T = state.outcome.result()
        return result

    return Retrying(
        stop=stop_after_attempt(TRIES) | stop_before_delay(SECONDS),
        wait=_WAIT,
        retry=retry_if_result(is_blip),
        retry_error_callback=last,
    )(attempt)
