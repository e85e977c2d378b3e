"""Nine incidents in running processes, each broken the way it happens and put right again.

The table says what a tired operator sees: the log, the task in Flower, `status`, `doctor`, the alert, the runbook; and
what to type. At most two commands end each, beside the repair of the world itself. ``docs/operations/incidents.md``
says the same to operators.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import uuid4

import httpx
import psycopg
import pytest
import redis as redis_client
from celery import Celery
from psycopg.sql import SQL, Identifier

from api.problems import READ_ONLY_DETAIL
from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog
from core.common.runbook import RUNBOOK
from core.db.database import Database
from core.org_manager import OrgManager
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tasks.routing import RECEIVE_EVENT
from tests.support import promtool, servers
from tests.support.contract_checker import ContractChecker
from tests.support.deployment import STRIPE_KEY, deployment
from tests.support.markdown import anchors
from tests.support.metrics_page import Values
from tests.support.operated_site import OperatedSite, operated
from tests.support.waiting import until

PAGE: Final = promtool.ROOT / "docs/operations/incidents.md"
MAX_COMMANDS: Final = 2
# An alert about a wait, and a heartbeat that has become too old, need more than a minute.
INCIDENT_SECONDS: Final = 240.0
# Each of them names one cause. None may fire without it; the others only say that something lasts.
NAMING_ALERTS: Final = frozenset(
    f"BillingSync{name}"
    for name in (
        *("NoWorker", "NoRelay", "NoBeat", "NoApi", "BreakerOpen", "LinksParked", "LinksOnHold"),
        *("DatabaseReadOnly", "WebhooksRefused", "EventsRejected", "DeliveriesFailed"),
    )
)
Breaks = Callable[[OperatedSite], AbstractContextManager[str]]
"""The world is broken until the context ends. It yields the organization that was to be synced meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """``log``: the event with some of its fields. ``task``: the state in Flower of the organization's tasks, or of the
    tasks of this name. ``findings``: all problems that `doctor` finds. ``alerts``: those that fire.

    ``commands``: what ends it once the world is repaired; ORG stands for the organization. ``afterwards``: what the
    world then does by itself.
    """

    title: str
    breaks: Breaks
    log: str
    fields: Mapping[str, object]
    task: str | None = None
    task_name: str | None = None
    status: str
    findings: frozenset[str]
    alerts: frozenset[str]
    runbook: frozenset[str]
    commands: tuple[str, ...] = ()
    afterwards: Callable[[OperatedSite, str], object] = field(default=lambda _site, _org_id: None)


# ---------------------------------------------------------------------------------------------------- what breaks


@contextmanager
def stripe_key_is_revoked(site: OperatedSite) -> Iterator[str]:
    site.sandbox.settings(revoked_keys=[STRIPE_KEY])
    try:
        site.create()
        until(lambda: site.overview().providers["stripe"].open_breaker, "the circuit breaker is open")
        yield site.create()
    finally:
        site.sandbox.settings(revoked_keys=[])


@contextmanager
def lago_is_away(site: OperatedSite) -> Iterator[str]:
    """Each connection is closed before anything is done."""
    fault = site.sandbox.add_fault("lago", "*", "reset", times=0)
    try:
        for _ in range(6):
            site.create()
        until(lambda: site.overview().providers["lago"].open_breaker, "the circuit breaker is open")
        yield site.create()
    finally:
        site.sandbox.remove_fault(fault)


@contextmanager
def customer_is_deleted(site: OperatedSite) -> Iterator[str]:
    """Somebody deletes it in Stripe's dashboard. The repair of the world is another customer, created there."""
    org_id = site.create_in_sync()
    site.sandbox.delete("stripe", "customers", site.stripe_customer(org_id))
    yield org_id
    site.sandbox.preload_stripe_customers([{"id": "cus_the_right_one", "name": "created by hand"}])


@contextmanager
def worker_knows_no_such_plan(site: OperatedSite) -> Iterator[str]:
    """A new plan is sold, and the worker was started with the plans.toml of before."""
    former = site.deployed.folder / "former_plans.toml"
    former.write_text(DEFAULT_PLANS_FILE.read_text(encoding="utf-8").partition("[plans.enterprise]")[0])
    site.stop("worker")
    site.start("worker", PLANS_FILE=str(former))
    yield site.create("enterprise")


def process_is_ended(kind: str) -> Breaks:
    @contextmanager
    def ended(site: OperatedSite) -> Iterator[str]:
        site.stop(kind)
        yield site.create()

    return ended


@contextmanager
def broker_is_full(site: OperatedSite) -> Iterator[str]:
    with redis_client.Redis.from_url(site.broker) as server:
        server.config_set("maxmemory", "1")
        try:
            yield site.create()
        finally:
            server.config_set("maxmemory", "0")


@contextmanager
def database_is_read_only(site: OperatedSite) -> Iterator[str]:
    """As a managed Postgres does when its disk is full. It ends without closing any connection."""
    org_id = f"org_{uuid4()}"
    with psycopg.connect(site.postgres, autocommit=True) as owner:
        name = str(site.database.url.database)
        owner.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(Identifier(name)))
        owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            send_created(site, org_id)
            refused_by_api(site)
            ended = site.deployed.run("keys", "create", "another", "--scope", "metrics:read")
            assert (ended.returncode, "the database is read-only" in ended.stderr) == (1, True), ended.stderr
            until(lambda: not site.listed(), "no heartbeat for a minute", seconds=INCIDENT_SECONDS)
            yield org_id
        finally:
            owner.execute(SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(Identifier(name)))


def send_created(site: OperatedSite, org_id: str) -> None:
    """As another service does it."""
    event = {
        "specversion": "1.0",
        "id": org_id,
        "source": "/signup",
        "type": "organization.created",
        "subject": org_id,
        "data": {"name": site.name()},
    }
    with Celery("signup", broker=site.broker, set_as_current=False) as signup:
        signup.send_task(RECEIVE_EVENT, args=[event], argsrepr="()", queue="events", ignore_result=True)


def refused_by_api(site: OperatedSite) -> None:
    """A read is answered, and a change is refused with the reason."""
    body = {"name": site.name(), "plan_tier": "starter"}
    answer = httpx.post(f"{site.api}/api/organizations", json=body, headers=site.authorization, timeout=60)
    assert (answer.status_code, answer.json()["detail"]) == (httpx.codes.SERVICE_UNAVAILABLE, READ_ONLY_DETAIL)
    assert site.get("/readyz").status_code == httpx.codes.OK


@contextmanager
def webhook_secret_is_wrong(site: OperatedSite) -> Iterator[str]:
    """The API was started with the secret of another endpoint. One webhook comes, and Stripe tries it again."""
    org_id = site.create_in_sync()
    site.stop("api")
    site.start("api", STRIPE_WEBHOOK_SECRET="whsec_of_another_endpoint")
    rename_in_dashboard(site, org_id)
    yield org_id


def rename_in_dashboard(site: OperatedSite, org_id: str) -> None:
    """Stripe sends a webhook about it."""
    site.sandbox.patch("stripe", "customers", site.stripe_customer(org_id), description=str(uuid4()))


# ------------------------------------------------------------------------------------------------------ the table

INCIDENTS: Final = (
    Incident(
        title="The Stripe key was revoked",
        breaks=stripe_key_is_revoked,
        log="provider_breaker_opened",
        fields={"level": "warning", "provider": "stripe", "reason": "misconfigured"},
        task="WAITING",
        status="Stripe's circuit breaker has been open since",
        findings=frozenset({"stripe_key_rejected", "stripe_breaker_open"}),
        alerts=frozenset({"BillingSyncBreakerOpen", "BillingSyncProviderErrors"}),
        runbook=frozenset({"misconfigured"}),
        commands=("billing-sync retry --all",),
    ),
    Incident(
        title="Lago is away",
        breaks=lago_is_away,
        log="provider_breaker_opened",
        fields={"level": "warning", "provider": "lago", "reason": "unavailable"},
        task="WAITING",
        status="Lago's circuit breaker has been open since",
        findings=frozenset({"lago_unreachable", "lago_breaker_open"}),
        alerts=frozenset({"BillingSyncBreakerOpen", "BillingSyncProviderErrors"}),
        runbook=frozenset({"unavailable"}),
    ),
    Incident(
        title="A customer was deleted in Stripe",
        breaks=customer_is_deleted,
        log="link_on_hold",
        fields={"level": "warning", "provider": "stripe", "error_code": "customer_deleted"},
        task="FAILURE",
        status="customer_deleted",
        findings=frozenset({"links_on_hold"}),
        alerts=frozenset({"BillingSyncLinksOnHold"}),
        runbook=frozenset({"customer_deleted"}),
        commands=(
            "billing-sync set-customer-id ORG --stripe cus_the_right_one --yes",
            "billing-sync adopt ORG --keep-price --yes",
        ),
    ),
    Incident(
        title="A process does not know a plan",
        breaks=worker_knows_no_such_plan,
        log="link_parked",
        fields={"level": "warning", "error_code": "unknown_plan"},
        task="FAILURE",
        status="unknown_plan",
        findings=frozenset({"links_parked"}),
        alerts=frozenset({"BillingSyncLinksParked"}),
        runbook=frozenset({"unknown_plan"}),
        commands=("docker compose restart worker", "billing-sync retry --error unknown_plan"),
    ),
    Incident(
        title="No worker runs",
        breaks=process_is_ended("worker"),
        log="process_ended",
        fields={"kind": "worker"},
        task="PENDING",
        status="no worker: start `billing-sync worker`",
        findings=frozenset({"no_worker"}),
        alerts=frozenset({"BillingSyncNoWorker"}),
        runbook=frozenset(),
        commands=("docker compose up -d worker",),
    ),
    Incident(
        title="No relay runs",
        breaks=process_is_ended("relay"),
        log="process_ended",
        fields={"kind": "relay"},
        task="SUCCESS",
        status="no relay: start `billing-sync relay`",
        findings=frozenset({"no_relay"}),
        alerts=frozenset({"BillingSyncNoRelay"}),
        runbook=frozenset(),
        commands=("docker compose up -d relay",),
    ),
    Incident(
        title="The broker is full",
        breaks=broker_is_full,
        log="broker_away",
        fields={"level": "warning", "error": "OutOfMemoryError"},
        status="broker: accepts no message, because its memory is full",
        findings=frozenset({"broker_refuses", "redis_refuses"}),
        alerts=frozenset({"BillingSyncRelayLag"}),
        runbook=frozenset(),
    ),
    Incident(
        title="The database is read-only",
        breaks=database_is_read_only,
        log="database_away",
        fields={"level": "warning", "error": "ReadOnlySqlTransaction"},
        task="RETRY",
        task_name=RECEIVE_EVENT,
        status="it is read-only: no change is stored or synced",
        findings=frozenset({"read_only"}),
        alerts=frozenset({"BillingSyncDatabaseReadOnly"}),
        runbook=frozenset({"api-unavailable"}),
    ),
    Incident(
        title="The webhook secret is wrong",
        breaks=webhook_secret_is_wrong,
        log="provider_webhook_refused",
        fields={"level": "warning", "provider": "stripe", "problem": "bad-signature"},
        status="Stripe's webhooks have been refused since",
        findings=frozenset({"stripe_webhooks_refused"}),
        alerts=frozenset({"BillingSyncWebhooksRefused"}),
        runbook=frozenset({"api-bad-signature"}),
        commands=("docker compose up -d api",),
        afterwards=rename_in_dashboard,
    ),
)


# ------------------------------------------------------------------------------------------------------ the tests


@pytest.fixture(scope="module")
def site(  # noqa: PLR0913, PLR0917 - each is a server, or what is needed to start one
    postgres_server: str,
    postgres_template: str,
    redis_server: str,
    sandbox_server: Sandbox,
    contract_checker: ContractChecker,
    plans: Catalog,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OperatedSite]:
    """One for all incidents, because it takes long to start. Each incident ends with everything in sync."""
    contract_checker.take_violations()
    folder = tmp_path_factory.mktemp("site")
    with redis_client.Redis.from_url(redis_server) as server:
        server.flushdb()
    with servers.database(postgres_server, postgres_template) as url, SandboxClient(sandbox_server.url) as sandbox:
        sandbox.reset()
        sandbox.settings(limits=False)
        database, manager = Database(url), OrgManager(database_url=url)
        with deployment(url, redis_server, sandbox_server.url, folder) as deployed:
            unstarted = OperatedSite(deployed, database, manager, sandbox, postgres_server, redis_server)
            with operated(unstarted, plans, sandbox_server.url) as started:
                yield started
        manager.close()
        database.close()
    assert contract_checker.take_violations() == ([], [])


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.title.replace(" ", "_"))
def test_an_incident_is_seen_by_its_name_and_ends(site: OperatedSite, incident: Incident, tmp_path: Path) -> None:
    until(site.is_healthy, "all is well before", details=site.overview)
    assert not incident.findings & site.usual_findings
    site.begin()
    before = site.scrape()
    with incident.breaks(site) as org_id:
        is_seen(site, incident, org_id)
        if promtool.installed() is not None:
            fires(site, incident, before, tmp_path)
    for command in incident.commands:
        site.enter(command.replace("ORG", org_id))
    incident.afterwards(site, org_id)
    until(site.is_healthy, "all is well", seconds=INCIDENT_SECONDS, details=lambda: (site.overview(), site.log))
    assert site.manager.get_org(org_id) is not None
    until(lambda: not site.new_findings(), "doctor finds nothing", details=site.findings)


def is_seen(site: OperatedSite, incident: Incident, org_id: str) -> None:
    until(lambda: site.logged(incident.log, incident.fields), f"the log has {incident.log}", details=lambda: site.log)
    if incident.task is not None:
        word = incident.task_name or org_id
        until(
            lambda: incident.task in site.task_states(word),
            f"the task is {incident.task} in Flower",
            details=lambda: (site.task_states(word), site.log),
        )
    until(lambda: incident.status in site.status(), "status says it", details=site.status)
    until(lambda: site.new_findings() == incident.findings, "doctor says it", details=site.new_findings)


def fires(site: OperatedSite, incident: Incident, before: Values, folder: Path) -> None:
    until(
        lambda: site.firing(incident.alerts, before, folder) == incident.alerts,
        "the alerts fire",
        seconds=INCIDENT_SECONDS,
        details=site.scrape,
    )
    assert site.firing(NAMING_ALERTS, before, folder) == NAMING_ALERTS & incident.alerts


@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.title.replace(" ", "_"))
def test_the_page_and_the_runbook_say_what_is_seen_and_what_to_type(incident: Incident) -> None:
    assert len(incident.commands) <= MAX_COMMANDS
    page = PAGE.read_text(encoding="utf-8")
    section = page.split(f"\n## {incident.title}\n")[1].split("\n## ")[0]
    named = {incident.log, *incident.findings, *incident.alerts, *incident.commands}
    named |= {incident.task} if incident.task is not None else set()
    typed = {command.replace("cus_the_right_one", "ID").replace(" --yes", "") for command in named}
    assert {word for word in typed if f"`{word}`" not in section} == set()
    assert incident.status in section
    runbook = (promtool.ROOT / RUNBOOK).read_text(encoding="utf-8")
    known = {*anchors(runbook), *re.findall(r'<a id="([^"]+)">', runbook)}
    entries = {f"alert-{alert.lower()}" for alert in incident.alerts} | incident.runbook
    assert entries - known == set()
    assert {entry for entry in entries if f"({Path(RUNBOOK).name}#{entry})" not in section} == set()
