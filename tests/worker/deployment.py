"""Our own processes, started as an operator starts them, against real servers and the sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from core import due
from core.database import Database

SCRIPT = Path(sys.executable).parent / "billing-sync"
ROOT = Path(__file__).resolve().parents[2]

STRIPE_KEY = "sk_test_nobody_may_read_this"
LAGO_KEY = "lago-nobody-may-read-this"


@dataclass
class Deployment:
    """``logs`` is everything that the processes wrote."""

    environment: dict[str, str]
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self.folder / f"{arguments[0]}-{len(self.running)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [SCRIPT, *arguments],
                env=self.environment,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself."""
        return subprocess.run(
            [SCRIPT, *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @property
    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log")))


@contextmanager
def deployment(database_url: str, broker_url: str, sandbox_url: str, folder: Path) -> Iterator[Deployment]:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("STRIPE_", "LAGO_", "REDIS_"))},
        "DATABASE_URL": database_url,
        "CELERY_BROKER_URL": broker_url,
        "STRIPE_SECRET_KEY": STRIPE_KEY,
        "STRIPE_API_BASE": sandbox_url,
        "LAGO_API_KEY": LAGO_KEY,
        "LAGO_API_URL": sandbox_url,
        "DATA_DIR": str(folder),
        "LOG_LEVEL": "INFO",
    }
    deployed = Deployment(environment, folder)
    try:
        yield deployed
    finally:
        deployed.stop()


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            message = f"{what}: not within {seconds} s"
            raise AssertionError(message)
        time.sleep(0.05)


def in_sync(database: Database) -> bool:
    with database.read() as session:
        return not due.count_behind(session)
