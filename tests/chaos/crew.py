"""Our processes, kept running as an init system keeps them: whatever ends one, another takes its place."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.crash.killer import ended, kill
from tests.crash.lane import Zygote
from tests.crash.zygote import Order

LOOK_EVERY = 0.1
# What an init system waits before it starts one again.
REST_SECONDS = 0.5
STOP_SECONDS = 40.0


@dataclass
class Member:
    words: tuple[str, ...]
    process: int = 0
    handle: int = -1
    starts: int = 0


@dataclass
class Crew:
    """A context. ``starts`` counts all that were started, the first time included."""

    members: list[Member]
    environment: dict[str, str]
    folder: Path
    _zygote: Zygote = field(default_factory=Zygote)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _watch: threading.Thread | None = None

    @classmethod
    def of(cls, wanted: Sequence[tuple[str, ...]], environment: dict[str, str], folder: Path) -> Crew:
        return cls([Member(words) for words in wanted], environment, folder)

    @property
    def starts(self) -> int:
        return sum(member.starts for member in self.members)

    @property
    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log")))

    def __enter__(self) -> Self:
        self._zygote.__enter__()
        for member in self.members:
            self._start(member)
        self._watch = threading.Thread(target=self._keep_running, name="crew", daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._watch is not None:
            self._watch.join()
        for member in self.members:
            kill(member.process)
            os.close(member.handle)
        self._zygote.__exit__(kind, error, trace)

    def strike(self, words: str, number: int, signalled: signal.Signals) -> None:
        """The how manieth of those that run ``words``; returns at once."""
        with self._lock:
            those = [member for member in self.members if member.words[0] == words]
            signal.pidfd_send_signal(those[number % len(those)].handle, signalled)

    def _keep_running(self) -> None:
        while not self._stopping.wait(LOOK_EVERY):
            for member in self.members:
                if ended(member.handle, 0):
                    self._stopping.wait(REST_SECONDS)
                    with self._lock:
                        os.close(member.handle)
                        self._start(member)

    def _start(self, member: Member) -> None:
        log = self.folder / f"{member.words[0]}-{self.members.index(member)}.log"
        order = Order(words=list(member.words), environment=self.environment, folder=str(self.folder), log=str(log))
        member.process = self._zygote.start(order)
        member.handle = os.pidfd_open(member.process)
        member.starts += 1
