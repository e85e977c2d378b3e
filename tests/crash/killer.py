"""Kills from the sandbox's side: the request has arrived and nothing was done, or all was done and nothing answered."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections import Counter

from sandbox.http import Exchange
from tests.crash.points import NOT_ANSWERED, NOT_DONE, Point

DEATH_SECONDS = 10.0


class Killer:
    """The observer of a sandbox. ``points`` lists the points passed; at ``aim`` the process dies before any answer."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.spent = False
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._aim: tuple[Point, int] | None = None

    def reset(self) -> None:
        """What was seen until now was not the run's."""
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
            if exchange.method != "GET":  # a read that was cut short has done nothing that could be seen
                self.points += [Point(moment, exchange.operation, "", number) for moment in (NOT_DONE, NOT_ANSWERED)]
            if self._aim is None or self.spent:
                return
            point, process = self._aim
            moment = NOT_DONE if exchange.fault == "reset" else NOT_ANSWERED
            if (moment, exchange.operation, number) == (point.moment, point.site, point.number):
                self.spent = True
                kill(process)


def kill(process: int) -> None:
    """SIGKILL; returns when it is dead, and has therefore read nothing more."""
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
    """Whether the process behind the handle has ended within so many seconds."""
    return bool(select.select([handle], [], [], seconds)[0])
