"""Can callers without credentials, or callers of one kind, keep the API from answering the others?

    python -m benchmarks.held_open [--seconds 60] [--billing-sync PATH]

Against one `billing-sync api` on Postgres, all at once for a minute, from 250 loopback addresses: 600 connections that
send nothing, 600 that send a byte of a head each second, 600 requests that wait for a version (30 service accounts),
60 forged tokens while the sign-in service accepts connections and answers nothing, and 60 bodies of 8 MB (a third
without credentials, a third to the webhooks, a third with a key). Then the same through nginx, the trusted proxy.
Beside them `/healthz` and a service account's request are sent four times a second, each in a new connection.

Exit code 1 follows if `/healthz` takes 1 s, the other 2 s, or the process 400 MB. Another version's command can be
named: its figures are the baseline.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from core.access import api_keys, service_accounts
from core.access.api_keys import SCOPES
from core.catalog import plans as plan_catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from tests.support import servers
from tests.support.waiting import until

WAITING_ACCOUNTS: Final = 30
MAX_HEALTH_SECONDS: Final = 1.0
MAX_SERVICE_SECONDS: Final = 2.0
MAX_MEMORY_MB: Final = 400.0
PROBE_INTERVAL_SECONDS: Final = 0.25
PROBE_TIMEOUT_SECONDS: Final = 10.0


@dataclass(slots=True, kw_only=True)
class ProbeAnswers:
    """Of one kind of probe: the seconds of each answer, and how many had another status than 200 or did not come."""

    seconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        failed = ", ".join(f"{count} {why}" for why, count in self.failed.items()) or "none"
        ordered = sorted(self.seconds) or [float("nan")]
        return (
            f"{len(self.seconds):,} answers, median {ordered[len(ordered) // 2]:.3f} s, "
            f"slowest {ordered[-1]:.3f} s; failed: {failed}"
        )

    def are_within(self, max_seconds: float) -> bool:
        return not self.failed and bool(self.seconds) and max(self.seconds) < max_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredApi:
    """``keys``: one for each account whose requests wait. ``org_id``: an organization that no worker syncs."""

    url: str
    process: subprocess.Popen[bytes]
    org_id: str
    keys: list[str]
    probe_key: str


def main() -> int:
    parser = argparse.ArgumentParser(description="Held connections, requests, tokens and bodies against one API.")
    parser.add_argument("--seconds", type=float, default=60, help="how long each of the two parts lasts")
    parser.add_argument("--billing-sync", default=str(Path(sys.executable).parent / "billing-sync"), help="the command")
    options = parser.parse_args()
    parts = {"directly": run_directly, "through nginx": run_through_nginx}
    if shutil.which("nginx", path=_search_path()) is None:
        print("through nginx: not run, there is no nginx here (make nginx)")
        del parts["through nginx"]
    within = [_report(name, run(options.billing_sync, options.seconds)) for name, run in parts.items()]
    return 0 if all(within) else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOpenResult:
    health: ProbeAnswers
    service: ProbeAnswers
    memory_mb: float
    attempts: Counter[str]


def _report(name: str, result: HeldOpenResult) -> bool:
    print(f"{name}:")
    print(f"  sent: {', '.join(f'{count:,} {kind}' for kind, count in sorted(result.attempts.items()))}")
    print(f"  /healthz: {result.health}")
    print(f"  a service account's request: {result.service}")
    print(f"  memory of the process, at most: {result.memory_mb:.0f} MB", flush=True)
    return (
        result.health.are_within(MAX_HEALTH_SECONDS)
        and result.service.are_within(MAX_SERVICE_SECONDS)
        and result.memory_mb < MAX_MEMORY_MB
    )


def run_directly(command: str, seconds: float) -> HeldOpenResult:
    with running_target(command, {}) as target:
        return _measure(target, target.url, seconds)


def run_through_nginx(command: str, seconds: float) -> HeldOpenResult:
    with running_target(command, {"TRUSTED_PROXIES": "127.0.0.1"}) as target, nginx(target.url) as url:
        return _measure(target, url, seconds)


@contextmanager
def running_target(command: str, settings: dict[str, str]) -> Iterator[MeasuredApi]:
    """The API of this command on a database of its own, with a sign-in service that never answers."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        url = stack.enter_context(servers.database(stack.enter_context(servers.postgres())))
        hanging = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        port = _free_port()
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ},
            "DATABASE_URL": url,
            "OIDC_ISSUER": f"http://127.0.0.1:{hanging.getsockname()[1]}",
            "OIDC_AUDIENCE": "billing-sync-api",
            "STRIPE_WEBHOOK_SECRET": "whsec_of_this_program",
            "LOG_LEVEL": "WARNING",
            **settings,
        }
        log = stack.enter_context((Path(folder) / "log").open("wb"))
        subprocess.run([command, "db", "upgrade"], cwd=folder, env=environment, check=True, stdout=log, stderr=log)
        database = Database(url)
        stack.callback(database.close)
        org_id, keys = _population(database)
        arguments = [command, "api", "--port", str(port)]
        process = subprocess.Popen(arguments, cwd=folder, env=environment, stdout=log, stderr=log)
        stack.callback(_stop, process)
        target = MeasuredApi(
            url=f"http://127.0.0.1:{port}", process=process, org_id=org_id, keys=keys[1:], probe_key=keys[0]
        )
        until(lambda: _answers(target.url), "the API's answer", seconds=30)
        yield target


def _population(database: Database) -> tuple[str, list[str]]:
    with database.write() as session:
        change = ChangeContext(session, utc_now())
        new = NewOrganization(name="Never synced", plan_tier="starter")
        organization = commands.create(change, new, plan_catalog.load())
        keys = []
        for number in range(WAITING_ACCOUNTS + 1):
            account = service_accounts.create(session, f"account {number}", utc_now())
            keys.append(api_keys.create(session, "a key", SCOPES, utc_now(), account_id=account.id)[1])
        return organization.id, keys


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).is_success
    except httpx.TransportError:
        return False


@contextmanager
def nginx(url: str) -> Iterator[str]:
    """nginx with its own settings for what it waits for, in front of the API."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "nginx.conf").write_text(
            f"""
            daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log crit;
            worker_rlimit_nofile 16384;
            events {{ worker_connections 8192; }}
            http {{
                access_log off; client_max_body_size 10m;
                client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
                server {{
                    listen 127.0.0.1:{port} backlog=2048;
                    location / {{ proxy_pass {url}; proxy_set_header X-Forwarded-For $remote_addr; }}
                }}
            }}
            """
        )
        program = shutil.which("nginx", path=_search_path()) or "nginx"
        process = subprocess.Popen([program, "-p", folder, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log"])
        try:
            until(lambda: _answers(f"http://127.0.0.1:{port}"), "nginx's answer", seconds=15)
            yield f"http://127.0.0.1:{port}"
        finally:
            _stop(process)


def _search_path() -> str:
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"))


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _measure(target: MeasuredApi, url: str, seconds: float) -> HeldOpenResult:
    """The clients that hold on are another process, so that they do not delay the probes."""
    arguments = [sys.executable, "-W", "ignore", "-m", "benchmarks.held_open_clients", url, target.org_id, str(seconds)]
    clients = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert clients.stdin is not None  # noqa: S101  # for the type: both are pipes
    assert clients.stdout is not None  # noqa: S101
    clients.stdin.write("\n".join(target.keys) + "\n")
    clients.stdin.close()
    health, service, memory = ProbeAnswers(), ProbeAnswers(), 0.0
    key = {"Authorization": f"Bearer {target.probe_key}"}
    until_time = time.monotonic() + seconds
    while time.monotonic() < until_time:
        began = time.monotonic()
        _probe(health, f"{url}/healthz", {})
        _probe(service, f"{url}/api/organizations?limit=10", key)
        memory = max(memory, _memory_mb(target.process.pid))
        time.sleep(max(0.0, began + PROBE_INTERVAL_SECONDS - time.monotonic()))
    clients.wait(60)
    attempts = Counter({kind: int(count) for kind, count in (line.split("\t") for line in clients.stdout)})
    return HeldOpenResult(health=health, service=service, memory_mb=memory, attempts=attempts)


def _probe(answers: ProbeAnswers, url: str, headers: dict[str, str]) -> None:
    began = time.monotonic()
    try:
        response = httpx.get(url, headers=headers, trust_env=False, timeout=PROBE_TIMEOUT_SECONDS)
    except httpx.TransportError as error:
        answers.failed[type(error).__name__] += 1
        return
    answers.seconds.append(time.monotonic() - began)
    if response.status_code != httpx.codes.OK:
        answers.failed[f"of {response.status_code}"] += 1


def _memory_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    sys.exit(main())
