"""Waiting for what another thread or process does.

A wait ends as soon as the condition holds, so a long limit costs nothing. It is for a machine that does much else.
Where the time itself is what a test is about, the test names the limit and says why.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.02


def until(
    condition: Callable[[], object],
    what: str,
    *,
    seconds: float = PATIENCE_SECONDS,
    details: Callable[[], object] = str,
) -> None:
    """Wait until ``condition`` holds; else the test fails with ``what`` was awaited and the details."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            message = f"{what}: not within {seconds:.0f} s\n{details()}"
            raise AssertionError(message)
        time.sleep(POLL_SECONDS)
