"""Supervisor of our processes: like an init system, it starts each again after it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.crash.killer import ended, kill
from tests.crash.runner import Zygote
from tests.crash.zygote import Order

POLL_SECONDS = 0.1
# How long an init system waits before it starts a process again.
RESTART_DELAY_SECONDS = 0.5
STOP_SECONDS = 40.0


@dataclass
class SupervisedProcess:
    words: tuple[str, ...]
    pid: int = 0
    handle: int = -1
    starts: int = 0


@dataclass
class Supervisor:
    """A context manager. ``starts`` counts all starts, including the first of each process."""

    processes: list[SupervisedProcess]
    environment: dict[str, str]
    folder: Path
    _zygote: Zygote = field(default_factory=Zygote)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _watch: threading.Thread | None = None

    @classmethod
    def of(cls, commands: Sequence[tuple[str, ...]], environment: dict[str, str], folder: Path) -> Supervisor:
        return cls([SupervisedProcess(words) for words in commands], environment, folder)

    @property
    def starts(self) -> int:
        return sum(process.starts for process in self.processes)

    @property
    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log")))

    def __enter__(self) -> Self:
        self._zygote.__enter__()
        for process in self.processes:
            self._start(process)
        self._watch = threading.Thread(target=self._keep_running, name="supervisor", daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._watch is not None:
            self._watch.join()
        for process in self.processes:
            kill(process.pid)
            os.close(process.handle)
        self._zygote.__exit__(kind, error, trace)

    def send_signal(self, words: str, number: int, signalled: signal.Signals) -> None:
        """Send a signal to process ``number`` of those whose command is ``words``; return at once.

        One that has just ended, and is not started again yet, gets none.
        """
        with self._lock, contextlib.suppress(ProcessLookupError):
            those = [process for process in self.processes if process.words[0] == words]
            signal.pidfd_send_signal(those[number % len(those)].handle, signalled)

    def _keep_running(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            for process in self.processes:
                if ended(process.handle, 0):
                    self._stopping.wait(RESTART_DELAY_SECONDS)
                    with self._lock:
                        os.close(process.handle)
                        self._start(process)

    def _start(self, process: SupervisedProcess) -> None:
        log = self.folder / f"{process.words[0]}-{self.processes.index(process)}.log"
        order = Order(words=list(process.words), environment=self.environment, folder=str(self.folder), log=str(log))
        process.pid = self._zygote.start(order)
        process.handle = os.pidfd_open(process.pid)
        process.starts += 1
