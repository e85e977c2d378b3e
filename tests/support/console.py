"""The real console script, run as an operator or an init system runs it, with only the given settings.

Its output is searched for the keys and passwords of these settings.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.catalog.plans import DEFAULT_PLANS_FILE
from tests.support import leaks
from tests.support.waiting import PATIENCE_SECONDS, until

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(sys.executable).parent / "billing-sync"
INHERITED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV")
NONE: Mapping[str, str] = {}


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ} | dict(settings)


def prepare(folder: Path) -> Path:
    """A folder as a new operator has it: it contains the plan catalog and nothing else."""
    shutil.copy(DEFAULT_PLANS_FILE, folder)
    return folder


def run(
    folder: Path, *words: str, settings: Mapping[str, str] = NONE, seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [SCRIPT, *words],
        cwd=folder,
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert leaks.found([(" ".join(words), ended.stdout + ended.stderr)], leaks.secrets_of(settings)) == []
    return ended


@dataclass
class ConsoleProcess:
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], bool], what: str, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until ``condition`` holds. If the process ends meanwhile, the test fails with its output."""

        def holds() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, f"{what}: it ended with {self.process.returncode}\n{self.output}"
            return False

        until(holds, what, seconds=seconds, details=lambda: self.output)

    def wait_for_output(self, words: str) -> None:
        self.until(lambda: words in self.output, f"output {words!r}")

    def stop(self, number: int = signal.SIGTERM, seconds: float = PATIENCE_SECONDS) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


@contextmanager
def running(folder: Path, *words: str, settings: Mapping[str, str] = NONE) -> Iterator[ConsoleProcess]:
    """A running process; it is killed at the end if the test has not stopped it."""
    log = folder / f"{words[0]}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [SCRIPT, *words], cwd=folder, env=environment(settings), stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield ConsoleProcess(process, log)
    finally:
        process.kill()
        process.wait()
    assert leaks.found(leaks.files(folder, log.name), leaks.secrets_of(settings)) == []
