"""Kills a process from the sandbox: after a request arrived and before it is done, or before the response is sent."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections import Counter

from sandbox.http import Exchange
from tests.crash.points import NOT_ANSWERED, NOT_DONE, Point

DEATH_SECONDS = 60.0


class Killer:
    """Observer of a sandbox. ``points`` lists the points passed; at the point of ``aim`` the process is killed."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.spent = False
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._aim: tuple[Point, int] | None = None

    def reset(self) -> None:
        """Drop the points that were passed before the run."""
        with self._lock:
            self.points.clear()
            self._passed.clear()

    def aim(self, point: Point, process: int) -> None:
        with self._lock:
            self._aim = (point, process)

    def see(self, exchange: Exchange) -> None:
        with self._lock:
            self._passed[exchange.operation] += 1
            number = self._passed[exchange.operation]
            if exchange.method != "GET":  # an interrupted read has no effect that could be checked
                self.points += [Point(moment, exchange.operation, "", number) for moment in (NOT_DONE, NOT_ANSWERED)]
            if self._aim is None or self.spent:
                return
            point, process = self._aim
            moment = NOT_DONE if exchange.fault == "reset" else NOT_ANSWERED
            if (moment, exchange.operation, number) == (point.moment, point.site, point.number):
                self.spent = True
                kill(process)


def kill(process: int) -> None:
    """Send SIGKILL; return when the process has ended, so that it reads nothing more."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        ended(handle, DEATH_SECONDS)
    finally:
        os.close(handle)


def ended(handle: int, seconds: float) -> bool:
    """Whether the process of the handle ends within ``seconds``."""
    return bool(select.select([handle], [], [], seconds)[0])
