"""A whole site as an operator has it: every process, both providers, Flower and Prometheus's view, and what to type."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.org_manager import OrgManager
from core.reporting import heartbeats, overview
from core.reporting.overview import Overview
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from tests.support import promtool
from tests.support.deployment import Deployment, answers, free_port
from tests.support.metrics_page import Values, values
from tests.support.waiting import PATIENCE_SECONDS, until

PROCESSES: Final = ("worker", "relay", "beat", "api")
WITH_OWN_METRICS: Final = ("worker", "relay", "beat")
STRIPE_WEBHOOK_SECRET: Final = "whsec_nobody_may_read_this"
LAGO_WEBHOOK_SECRET: Final = "lago-hmac-nobody-may-read-this"
# A process stores its first heartbeat at once; a machine that does much else may take long to start one.
START_SECONDS: Final = 2 * PATIENCE_SECONDS


@dataclass
class OperatedSite:
    """``processes`` has those that run, by kind. What is read is limited to the time since ``begin``."""

    deployed: Deployment
    database: Database
    manager: OrgManager
    sandbox: SandboxClient
    postgres: str
    broker: str
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    key: str = ""
    usual_findings: frozenset[str] = frozenset()
    _names: Iterator[int] = field(default_factory=lambda: count(1))
    _log_sizes: dict[Path, int] = field(default_factory=dict)
    _known_tasks: frozenset[str] = frozenset()

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['api']}"

    # ----------------------------------------------------------------------------------------------- processes

    def start(self, kind: str, **settings: str) -> None:
        """``settings``: of this start only."""
        port = self.ports.setdefault(kind, free_port())
        own = {"API_PORT": str(port)} if kind == "api" else {"METRICS_PORT": str(port)}
        environment = self.deployed.environment
        self.deployed.environment = environment | own | settings
        self.processes[kind] = self.deployed.start(kind)
        self.deployed.environment = environment
        until(lambda: kind in self.listed(), f"{kind} runs", seconds=START_SECONDS, details=lambda: self.deployed.logs)
        if kind == "api":
            until(lambda: answers(f"{self.api}/healthz"), "the API answers")

    def stop(self, kind: str) -> None:
        process = self.processes.pop(kind)
        process.terminate()
        process.wait(PATIENCE_SECONDS)

    def enter(self, command: str) -> None:
        """What an operator types. The commands of Compose act on our processes as Compose does."""
        match command.split():
            case ["billing-sync", *arguments]:
                ended = self.deployed.run(*arguments)
                self.deployed.shown.pop()  # a command may show the name of an organization
                assert ended.returncode == 0, ended.stdout + ended.stderr
            case ["docker", "compose", "up" | "restart", *_, kind]:
                if kind in self.processes:
                    self.stop(kind)
                self.start(kind)
            case _:
                raise AssertionError(command)

    def listed(self) -> set[str]:
        """The kinds of processes with a heartbeat in the last minute."""
        with self.database.read() as session:
            return {process.kind for process in heartbeats.running(session, utc_now())}

    # ------------------------------------------------------------------------------------ what an operator reads

    def begin(self) -> None:
        self._log_sizes = {log: log.stat().st_size for log in self.deployed.folder.glob("*.log")}
        self._known_tasks = frozenset(self._tasks())

    def logged(self, event: str, fields: Mapping[str, object]) -> bool:
        lines = (line for line in self.log.splitlines() if line.startswith("{"))
        return any({"event": event, **fields}.items() <= json.loads(line).items() for line in lines)

    @property
    def log(self) -> str:
        """Whole lines only: the last one may be half written."""
        written = (
            log.read_bytes()[self._log_sizes.get(log, 0) :].decode(errors="replace").rpartition("\n")[0]
            for log in sorted(self.deployed.folder.glob("*.log"))
        )
        return "\n".join(written)

    def task_states(self, word: str) -> set[str]:
        """The states in Flower of the tasks with this name, or about this organization."""
        new = {uuid: task for uuid, task in self._tasks().items() if uuid not in self._known_tasks}
        return {task["state"] for task in new.values() if task["name"] == word or word in (task["args"] or "")}

    def _tasks(self) -> dict[str, dict[str, Any]]:
        return dict(self.deployed.get_flower("/api/tasks?limit=10000").json())

    def status(self) -> str:
        return " ".join(self.deployed.run("status").stdout.split())

    def findings(self) -> frozenset[str]:
        """The codes of the problems that `doctor` finds."""
        document = json.loads(self.deployed.run("doctor", "--json").stdout)
        found = [finding for report in document["subjects"] for finding in report["findings"]]
        return frozenset(each["code"] for each in found if each["level"] in {"warning", "error"})

    def new_findings(self) -> frozenset[str]:
        return self.findings() - self.usual_findings

    def scrape(self) -> Values:
        """As Prometheus does: the API with its key, and each process that serves its own metrics."""
        found = values(self.get("/metrics").text)
        for kind in WITH_OWN_METRICS:
            if kind in self.processes:
                found |= values(httpx.get(f"http://127.0.0.1:{self.ports[kind]}/metrics", timeout=60).text)
        return found

    def firing(self, alerts: frozenset[str], before: Values, folder: Path) -> frozenset[str]:
        """Those of the alerts whose expression holds since the metrics were ``before``."""
        rules, now = promtool.rules(), self.scrape()
        return frozenset(name for name in alerts if promtool.holds(rules[name]["expr"], before, now, folder))

    def get(self, path: str) -> httpx.Response:
        response = httpx.get(f"{self.api}{path}", headers=self.authorization, timeout=60)
        return response.raise_for_status()

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    # --------------------------------------------------------------------------------------------- organizations

    def name(self) -> str:
        return f"Zebra Incident {next(self._names)}"

    def create(self, plan: str = "starter") -> str:
        return self.manager.create_organization(self.name(), plan)

    def create_in_sync(self) -> str:
        org_id = self.create()
        until(self.is_healthy, "in sync", details=lambda: self.deployed.logs)
        return org_id

    def stripe_customer(self, org_id: str) -> str:
        organization = self.manager.get_org(org_id)
        assert organization is not None
        assert organization.stripe_customer_id is not None
        return organization.stripe_customer_id

    def overview(self) -> Overview:
        with self.database.read() as session:
            return overview.summarize(session)

    def is_healthy(self) -> bool:
        """Every change is at both providers, nothing waits for an operator, and every process runs."""
        found = self.overview()
        has_problem = any(each.open_breaker or each.webhooks_refused_since for each in found.providers.values())
        return found.in_sync and not has_problem and self.listed() == set(PROCESSES)


@contextmanager
def operated(site: OperatedSite, catalog: Catalog, sandbox_url: str) -> Iterator[OperatedSite]:
    """The site with everything started and all well."""
    lago = LagoProvider(sandbox_url, "key", payment_provider_code=None, ending=catalog.ending)
    publishing.publish(catalog, [lago])
    lago.close()
    site.deployed.environment |= {
        "LOG_FORMAT": "json",
        "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
        "LAGO_WEBHOOK_SECRET": LAGO_WEBHOOK_SECRET,
    }
    site.deployed.start_flower()
    for kind in PROCESSES:
        site.start(kind)
    until(lambda: len(site.deployed.workers_in_flower()) >= 1, "the worker is in Flower")
    scopes = ("--scope", "metrics:read", "--scope", "organizations:write")
    site.key = site.deployed.run("keys", "create", "operator", *scopes).stdout.strip()
    site.sandbox.set_webhooks(
        stripe={"url": f"{site.api}/webhooks/stripe", "secret": STRIPE_WEBHOOK_SECRET},
        lago={"url": f"{site.api}/webhooks/lago", "secret": LAGO_WEBHOOK_SECRET},
    )
    site.usual_findings = site.findings()
    yield site
    site.sandbox.set_webhooks(stripe=None, lago=None)
