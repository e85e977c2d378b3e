"""``docker-compose.yml`` lived through without an engine: every command and every health check as a real process.

What an engine would give (images, names, networks) is given here by local servers and free ports; nothing else of a
service is changed. Services start in the order that their ``depends_on`` asks for, and stop by SIGTERM.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from graphlib import TopologicalSorter
from pathlib import Path
from typing import IO, Any, Final

import psycopg
import pytest
import yaml

from core.catalog.plans import DEFAULT_PLANS_FILE
from core.common.clock import utc_now
from core.db.database import Database
from core.org_manager import OrgManager
from core.reconcile.attempt import LINK_LEASE
from core.reporting import overview
from sandbox.client import SandboxClient
from worker.config.api import ApiSettings
from worker.config.settings import Settings

ROOT: Final = Path(__file__).resolve().parent.parent
SERVERS: Final = {"postgres", "redis"}  # images of others; the tests' own servers take their place
ONE_SHOT: Final = {"migrate", "plans"}
SCALE: Final = {"worker": 2}
STAND_INS: Final = {"sk_test_sandbox", "sandbox"}
SECRET: Final = re.compile(r"SECRET|KEY$|PASSWORD|AUTH")
PASSED_IN: Final = {"POSTGRES_PASSWORD": "of-this-test", "FLOWER_BASIC_AUTH": "somebody:of-this-test"}
MAX_WAIT_SECONDS: Final = 180.0  # seconds until a service is healthy; generous, for a machine that does other things


def document() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = document()["services"]
    return found


def interpolated(text: str, given: Mapping[str, str]) -> str:
    """``${NAME:-default}`` and ``${NAME:?sentence}`` as Compose reads them."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if given.get(name):
            return given[name]
        if kind == ":?":
            message = f"{name}: {rest}"
            raise LookupError(message)
        return rest or ""

    return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, text)


def seconds(written: str) -> float:
    assert written.endswith("s"), f"{written}: write it in seconds"
    return float(written.removesuffix("s"))


@dataclass(kw_only=True)
class ComposeAddresses:
    """Where the services find each other here; ``replacements`` are what Compose's network would have resolved."""

    folder: Path
    database_url: str
    redis_url: str
    sandbox_port: int
    flower_port: int
    api_port: int
    replacements: list[tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.replacements = [
            ("redis://redis:6379/0", self.redis_url),
            ("sandbox:8090", f"127.0.0.1:{self.sandbox_port}"),
            ("8090", str(self.sandbox_port)),
            ("5555", str(self.flower_port)),
            ("8080", str(self.api_port)),
            ("0.0.0.0", "127.0.0.1"),  # noqa: S104 - it is what is replaced
            ("/data", str(self.folder)),
        ]

    def local(self, text: str) -> str:
        for in_compose, on_this_machine in self.replacements:
            text = text.replace(in_compose, on_this_machine)
        return text

    def environment(self, service: Mapping[str, Any]) -> dict[str, str]:
        """What Compose and the image set, and no variable of the machine that runs the test."""
        written: dict[str, str | None] = service.get("environment", {})
        own = {name: self.local(interpolated(value, PASSED_IN)) for name, value in written.items() if value is not None}
        if "POSTGRES_HOST" in own:
            own = {name: value for name, value in own.items() if not name.startswith("POSTGRES_")}
            own["DATABASE_URL"] = self.database_url
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
        return {"PATH": path, "HOME": str(self.folder), "PYTHONUNBUFFERED": "1", "DATA_DIR": str(self.folder), **own}

    def words_of(self, command: list[str]) -> list[str]:
        program, *arguments = [self.local(word) for word in command]
        found = shutil.which(program, path=str(Path(sys.executable).parent))
        assert found is not None, f"{program} is no program of ours"
        return [found, *arguments]


@dataclass
class ComposeProcess:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def describe(self) -> str:
        return f"{self.name} (exit code {self.process.poll()}):\n{self.log.read_text()[-3000:]}"


class ComposeStack:
    """``docker compose up`` without an engine."""

    def __init__(self, addresses: ComposeAddresses) -> None:
        self.addresses = addresses
        self.running: list[ComposeProcess] = []
        self._logs: list[IO[bytes]] = []

    def up(self) -> None:
        """Each service as soon as those it depends on are healthy, or done."""
        described = services()
        order = TopologicalSorter({name: each.get("depends_on", {}) for name, each in described.items()})
        order.prepare()
        while wave := order.get_ready():
            ours = [name for name in wave if name not in SERVERS]  # the tests' own servers run already
            started = [self._start(name, number) for name in ours for number in range(SCALE.get(name, 1))]
            for each in started:
                if each.name in ONE_SHOT:
                    assert each.process.wait(MAX_WAIT_SECONDS) == 0, each.describe()
                self._until_healthy(each)
            order.done(*wave)

    def stop(self) -> dict[str, int]:
        """SIGTERM to all; exit codes by name, -9 for what its grace period did not suffice."""
        alive = [each for each in self.running if each.process.poll() is None]
        for each in alive:
            each.process.send_signal(signal.SIGTERM)
        codes: dict[str, int] = {}
        for each in alive:
            try:
                code = each.process.wait(seconds(services()[each.name]["stop_grace_period"]))
            except subprocess.TimeoutExpired:
                code = -signal.SIGKILL
            codes[each.name] = codes.get(each.name) or code
        return codes

    def describe(self) -> str:
        return "\n\n".join(each.describe() for each in self.running)

    def complaints(self) -> list[str]:
        """What any process logged as an error."""
        return [
            f"{each.name}: {line[:500]}"
            for each in self.running
            for line in each.log.read_text().splitlines()
            if '"level": "error"' in line or '"level": "critical"' in line
        ]

    def close(self) -> None:
        for each in self.running:
            each.process.kill()
            each.process.wait()
        for log in self._logs:
            log.close()

    def _start(self, name: str, number: int) -> ComposeProcess:
        service = services()[name]
        path = self.addresses.folder / f"{name}-{number}.log"
        log = path.open("wb")
        self._logs.append(log)
        process = subprocess.Popen(
            self.addresses.words_of(service["command"]),
            env=self.addresses.environment(service),
            cwd=self.addresses.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        running = ComposeProcess(name, process, path)
        self.running.append(running)
        return running

    def _until_healthy(self, running: ComposeProcess) -> None:
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while self.health(running.name) != 0:
            assert running.process.poll() in (None, 0), running.describe()
            assert time.monotonic() < deadline, f"never healthy: {running.describe()}"

    def health(self, name: str) -> int:
        """The exit code of the service's own check."""
        service = services()[name]
        kind, *command = service["healthcheck"]["test"]
        assert kind == "CMD"
        return subprocess.run(
            self.addresses.words_of(command),
            env=self.addresses.environment(service),
            cwd=self.addresses.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=MAX_WAIT_SECONDS,
        ).returncode


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def addresses(tmp_path: Path, postgres_url: str, redis_url: str) -> ComposeAddresses:
    # As the image has it in its working folder.
    shutil.copy(DEFAULT_PLANS_FILE, tmp_path)
    return ComposeAddresses(
        folder=tmp_path,
        database_url=postgres_url,
        redis_url=redis_url,
        sandbox_port=_free_port(),
        flower_port=_free_port(),
        api_port=_free_port(),
    )


@pytest.fixture
def stack(addresses: ComposeAddresses) -> Iterator[ComposeStack]:
    made = ComposeStack(addresses)
    yield made
    made.close()


@pytest.mark.processes
@pytest.mark.timeout(900)
def test_the_whole_file_runs_brings_an_organization_in_sync_and_stops_when_told(
    stack: ComposeStack, addresses: ComposeAddresses
) -> None:
    stack.up()

    manager = OrgManager(database_url=addresses.database_url)
    org_id = manager.create_organization("Acme", plan_tier="starter")
    manager.close()
    _until_in_sync(stack, addresses.database_url, org_id)
    with SandboxClient(f"http://127.0.0.1:{addresses.sandbox_port}") as sandbox:
        counted = sandbox.counters()
        assert counted.stripe.of("POST /v1/customers") == 1
        assert counted.lago.of("POST /api/v1/customers") == 1

    codes = stack.stop()

    assert codes == dict.fromkeys(set(services()) - SERVERS - ONE_SHOT, 0), stack.describe()
    assert stack.complaints() == []
    for name in ("sandbox", "worker", "beat", "flower"):
        assert stack.health(name) == 1, f"{name} is gone and is called healthy"


def _until_in_sync(stack: ComposeStack, database_url: str, org_id: str) -> None:
    database = Database(database_url)
    deadline = time.monotonic() + MAX_WAIT_SECONDS
    try:
        while True:
            with database.read() as session:
                found = overview.organization_report(session, org_id, utc_now())
            assert found is not None
            if found.in_sync:
                return
            assert time.monotonic() < deadline, stack.describe()
            time.sleep(0.1)
    finally:
        database.close()


@pytest.mark.slow
def test_a_relay_that_leaves_an_event_lying_is_not_healthy(stack: ComposeStack, addresses: ComposeAddresses) -> None:
    database = Database(addresses.database_url)
    database.upgrade()
    database.close()
    assert stack.health("relay") == 0
    manager = OrgManager(database_url=addresses.database_url)
    manager.create_organization("Acme")
    manager.close()
    assert stack.health("relay") == 0, "a second is no delay"

    with psycopg.connect(addresses.database_url, autocommit=True) as connection:
        connection.execute("UPDATE events SET occurred_at = occurred_at - %s", [timedelta(minutes=5)])

    assert stack.health("relay") == 1


@pytest.mark.parametrize("name", services())
def test_every_service_is_checked_restarted_and_given_time_to_stop(name: str) -> None:
    service = services()[name]
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert service["restart"] in ({"on-failure:5"} if name in ONE_SHOT else {"unless-stopped"})
    assert seconds(service["stop_grace_period"]) > LINK_LEASE.total_seconds()


@pytest.mark.parametrize("name", services())
def test_a_service_waits_for_what_it_needs(name: str) -> None:
    needed = services()[name].get("depends_on", {})
    for other, how in needed.items():
        assert how == {"condition": "service_completed_successfully" if other in ONE_SHOT else "service_healthy"}


@pytest.mark.parametrize("name", services())
def test_a_service_that_reads_tables_waits_for_the_schema(name: str) -> None:
    service = services()[name]
    if name not in SERVERS | {"migrate"} and "POSTGRES_DB" in service.get("environment", {}):
        assert "migrate" in service["depends_on"]


@pytest.mark.parametrize("name", services())
def test_a_service_can_be_scaled(name: str) -> None:
    assert not {"container_name", "hostname"} & set(services()[name])


def test_flower_and_the_api_are_reached_from_outside_and_only_from_this_machine() -> None:
    open_ports = {name: each["ports"] for name, each in services().items() if "ports" in each}
    assert open_ports == {"flower": ["127.0.0.1:5555:5555"], "api": ["127.0.0.1:8080:8080"]}
    assert {"billing-sync", "--read-only"} <= set(services()["flower"]["command"])
    with pytest.raises(LookupError, match="FLOWER_BASIC_AUTH"):
        interpolated(services()["flower"]["environment"]["FLOWER_BASIC_AUTH"], {})


def test_redis_keeps_what_it_holds() -> None:
    command = " ".join(services()["redis"]["command"])
    assert "--appendonly yes" in command
    assert "--maxmemory-policy noeviction" in command


@pytest.mark.parametrize("name", sorted(set(services()) - SERVERS))
def test_every_variable_is_one_that_the_program_reads(name: str) -> None:
    known = {field.upper() for field in (*Settings.model_fields, *ApiSettings.model_fields)}
    assert set(services()[name].get("environment") or {}) <= known


def test_no_secret_is_written_down() -> None:
    for name, service in services().items():
        for variable, value in (service.get("environment") or {}).items():
            if not SECRET.search(variable) or value is None:
                continue
            assert re.fullmatch(r"\$\{\w+(:\?[^}]+|:-[^}]*)\}", value), f"{name}: {variable}"
            default = re.search(r":-([^}]*)\}", value)
            assert default is None or default[1] in STAND_INS, f"{name}: {variable}"
    assert not re.search(r"://[^/\s]*:[^/\s]*@", (ROOT / "docker-compose.yml").read_text())


def test_a_password_that_is_not_set_is_asked_for_by_name() -> None:
    with pytest.raises(LookupError, match=r"POSTGRES_PASSWORD: copy \.env\.example to \.env"):
        interpolated(services()["migrate"]["environment"]["POSTGRES_PASSWORD"], {})


def test_the_example_names_every_variable_that_the_file_takes() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    taken = set(re.findall(r"\$\{(\w+)", text))
    taken |= {
        name for each in services().values() for name, value in (each.get("environment") or {}).items() if value is None
    }
    assert set(re.findall(r"^(?:# )?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)) == taken


def test_the_image_holds_every_package_that_runs() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    folders = {name.removesuffix("*") for name in found}
    modules = {path.parent for folder in folders for path in (ROOT / folder).rglob("*.py")}
    assert [str(folder) for folder in modules if not (folder / "__init__.py").exists()] == []
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert set(re.findall(r"^COPY (\w+) \./\1$", dockerfile, re.MULTILINE)) == folders
    assert "COPY core/catalog/plans.toml ./plans.toml\n" in dockerfile, "no worker starts without a catalog"
    copied = set(re.findall(r"^!(\w+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert copied == folders | {"LICENSE"}
    assert re.search(r"^USER billing$", dockerfile, re.MULTILINE)
