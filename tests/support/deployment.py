"""Our own processes, started as an operator starts them, with real servers and the sandbox.

At the end of each test, everything that they wrote is searched for keys, passwords, names and emails.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import redis as redis_client

from core.catalog.plans import DEFAULT_PLANS_FILE
from core.db.database import Database
from core.reconcile import due_links
from tests.support import leaks
from tests.support.waiting import PATIENCE_SECONDS, until

SCRIPT = Path(sys.executable).parent / "billing-sync"
ROOT = Path(__file__).resolve().parents[2]

STRIPE_KEY = "sk_test_nobody_may_read_this"
LAGO_KEY = "lago-nobody-may-read-this"
# Set to eight times the published limit: the sandbox's own limits are off, and tests must be fast.
RATES = ("STRIPE_RATE_LIMIT", "STRIPE_OPERATION_RATE_LIMIT", "LAGO_RATE_LIMIT")
PASSWORD = "password-nobody-may-read"
FLOWER_LOGIN = ("operator", "flower-password-nobody-may-read")


@dataclass
class Deployment:
    """``logs`` is everything that the processes logged."""

    environment: dict[str, str]
    folder: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    shown: list[tuple[str, str]] = field(default_factory=list)
    shown_with_names: list[tuple[str, str]] = field(default_factory=list)
    """What an operator saw: the output of commands, and Flower's pages."""
    flower: str | None = None

    def keep_to_published_limits(self) -> None:
        for name in RATES:
            self.environment.pop(name)

    def start(self, *arguments: str, before: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """``before``: the words of a program that runs it."""
        log = self.folder / f"{arguments[0]}-{len(self.running)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*before, SCRIPT, *arguments],
                env=self.environment,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running.append(process)
        return process

    def run(self, *arguments: str, timeout: float = 120, shows_names: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command that ends. ``shows_names``: its output may name organizations, but contains no key."""
        ended = subprocess.run(
            [SCRIPT, *arguments],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        outputs = self.shown_with_names if shows_names else self.shown
        outputs.append((" ".join(arguments), ended.stdout + ended.stderr))
        return ended

    def start_flower(self) -> str:
        port = free_port()
        self.environment["FLOWER_BASIC_AUTH"] = ":".join(FLOWER_LOGIN)
        self.flower = f"http://127.0.0.1:{port}"
        self.start("flower", f"--port={port}")
        until(lambda: answers(f"{self.flower}/healthcheck"), "Flower")
        return self.flower

    def read_flower(self) -> None:
        for page in ("/api/tasks", "/workers?json=1", "/tasks", "/workers", "/broker") if self.flower else ():
            self.shown.append((f"Flower{page}", self.get_flower(page).text))

    def workers_in_flower(self) -> list[str]:
        """By the events that they send, as its page of workers."""
        return [worker["hostname"] for worker in self.get_flower("/workers?json=1").json()["data"]]

    def get_flower(self, page: str) -> httpx.Response:
        """A page of Flower, as an operator who has signed in reads it."""
        return httpx.get(f"{self.flower}{page}", timeout=PATIENCE_SECONDS, auth=FLOWER_LOGIN)

    def wrote_nothing_private(self) -> None:
        """Call this after all processes have ended. A test's own files may contain names, but no keys."""
        database_url = self.environment["DATABASE_URL"]
        secrets = leaks.secrets_of(self.environment)
        rows = list(leaks.rows(database_url, with_names=True))
        assert leaks.found([*leaks.files(self.folder, "*"), *self.shown, *self.shown_with_names, *rows], secrets) == []
        rows = list(leaks.rows(database_url, with_names=False))
        written = [*leaks.files(self.folder, "*.log"), *self.shown, *rows]
        assert leaks.found(written, leaks.names(database_url)) == []
        assert leaks.stored_results(self.environment["CELERY_BROKER_URL"]) == []

    def stop(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @property
    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log")))


@contextmanager
def deployment(database_url: str, broker_url: str, sandbox_url: str, folder: Path) -> Iterator[Deployment]:
    deployed = Deployment(environment_of(database_url, broker_url, sandbox_url, folder), folder)
    try:
        yield deployed
        deployed.read_flower()
    finally:
        deployed.stop()
    deployed.wrote_nothing_private()


def environment_of(database_url: str, broker_url: str, sandbox_url: str, folder: Path) -> dict[str, str]:
    """Of processes with these servers, and with the sandbox as both providers."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("STRIPE_", "LAGO_", "REDIS_"))},
        "DATABASE_URL": with_password(database_url),
        "CELERY_BROKER_URL": with_password(broker_url),
        "PLANS_FILE": str(DEFAULT_PLANS_FILE),
        "STRIPE_SECRET_KEY": STRIPE_KEY,
        "STRIPE_API_BASE": sandbox_url,
        "LAGO_API_KEY": LAGO_KEY,
        "LAGO_API_URL": sandbox_url,
        "LAGO_MANUAL_PAYMENTS": "true",
        "MONEY_CHANGES_PER_HOUR": "off",  # the stories change more plans in a minute than a business in a day
        "DATA_DIR": str(folder),
        "LOG_LEVEL": "INFO",
        **dict.fromkeys(RATES, "200"),
    }


def with_password(address: str) -> str:
    """The same server with a password in its address that could leak; Postgres accepts any if it uses trust."""
    parts = urlsplit(address)
    if parts.password or parts.scheme not in {"redis", "postgresql"}:
        return address
    owner = parts.username or "somebody"
    if parts.scheme == "redis":
        owner = "deployed"
        with redis_client.Redis.from_url(address) as client:
            client.execute_command("ACL", "SETUSER", owner, "on", f">{PASSWORD}", "~*", "&*", "+@all")
    return parts._replace(netloc=f"{owner}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}").geturl()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def in_sync(database: Database) -> bool:
    with database.read() as session:
        return not due_links.count_behind(session)
