"""What an operator reads at night: the logs and Flower while a key is revoked, and of an installation with no work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.jobs import JobLock
from core.org_manager import OrgManager
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tasks.routing import SWEEP, SYNC_TO_STRIPE
from tests.support.deployment import FLOWER_LOGIN, STRIPE_KEY, Deployment, deployment, in_sync
from tests.support.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.processes, pytest.mark.parametrize("database_url", ["postgres"], indirect=True)]

SWEEPS_WITHOUT_WORK = 3


@pytest.fixture
def sandbox_on_sale(sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog) -> Sandbox:
    lago = LagoProvider(sandbox_server.url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [lago])
    lago.close()
    sandbox.reset_calls()
    return sandbox_server


@pytest.fixture
def deployed(database: Database, redis_url: str, sandbox_on_sale: Sandbox, tmp_path: Path) -> Iterator[Deployment]:
    """Its processes write JSON lines. Nothing runs yet."""
    url = database.url.render_as_string(hide_password=False)
    with deployment(url, redis_url, sandbox_on_sale.url, tmp_path) as ready:
        ready.environment["LOG_FORMAT"] = "json"
        yield ready


@pytest.fixture
def manager(database: Database) -> Iterator[OrgManager]:
    opened = OrgManager(database_url=database.url.render_as_string(hide_password=False))
    yield opened
    opened.close()


def lines(deployed: Deployment, event: str) -> list[dict[str, Any]]:
    """What was logged under this name."""
    parsed = [json.loads(line) for line in deployed.logs.splitlines() if line.startswith("{")]
    return [line for line in parsed if line.get("event") == event]


def tasks_in_flower(deployed: Deployment, org_id: str) -> list[dict[str, Any]]:
    tasks = deployed.get_flower("/api/tasks").json().values()
    return [task for task in tasks if task["name"] == SYNC_TO_STRIPE and org_id in (task["args"] or "")]


def states(deployed: Deployment, org_id: str) -> set[str]:
    return {task["state"] for task in tasks_in_flower(deployed, org_id)}


@pytest.mark.slow
def test_a_revoked_key_is_told_by_the_log_and_by_flower_until_it_works_again(
    deployed: Deployment, manager: OrgManager, database: Database, sandbox: SandboxClient
) -> None:
    deployed.start_flower()
    for part in ("worker", "relay", "beat"):
        deployed.start(part)
    until(lambda: len(deployed.workers_in_flower()) >= 1, "worker in Flower")
    sandbox.settings(revoked_keys=[STRIPE_KEY])
    first = manager.create_organization("Zebra First", "starter")
    until(lambda: lines(deployed, "provider_breaker_opened"), "the breaker opens")
    until(lambda: states(deployed, first) == {"FAILURE"}, "the failed sync in Flower", details=lambda: deployed.logs)
    second = manager.create_organization("Zebra Second", "starter")
    until(lambda: "WAITING" in states(deployed, second), "the sync that waits", details=lambda: deployed.logs)

    (opened,) = lines(deployed, "provider_breaker_opened")
    assert (opened["level"], opened["provider"], opened["reason"]) == ("warning", "stripe", "misconfigured")
    assert "STRIPE_SECRET_KEY" in opened["message"]
    assert "SUCCESS" not in states(deployed, first) | states(deployed, second)
    waiting = next(task for task in tasks_in_flower(deployed, second) if task["state"] == "WAITING")
    assert waiting["result"].startswith("waits for Stripe: the circuit breaker is open")
    assert {"stripe"} == {line["provider"] for line in lines(deployed, "link_waits") if line["org_id"] == second}

    sandbox.settings(revoked_keys=[])
    assert deployed.run("retry", "--all").returncode == 0
    until(lambda: in_sync(database), "in sync")
    until(lambda: {"SUCCESS"} <= states(deployed, second), "the sync in Flower", details=lambda: deployed.logs)

    (closed,) = lines(deployed, "provider_breaker_closed")
    assert (closed["reason"], closed["since"]) == ("misconfigured", opened["since"])
    assert len(lines(deployed, "provider_breaker_opened")) == 1
    synced = [line for line in lines(deployed, "link_synced") if line["provider"] == "stripe"]
    assert {line["org_id"] for line in synced} == {first, second}
    assert all(line["requests"] == len(line["provider_request_ids"]) == 1 for line in synced)
    done = next(task for task in tasks_in_flower(deployed, second) if task["state"] == "SUCCESS")
    assert "Stripe has version" in done["result"]


def test_flower_asks_for_a_password_and_changes_nothing(deployed: Deployment) -> None:
    flower = deployed.start_flower()
    assert httpx.get(f"{flower}/api/tasks").status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(f"{flower}/tasks").status_code == httpx.codes.UNAUTHORIZED
    assert deployed.get_flower("/tasks").status_code == httpx.codes.OK
    for path in ("worker/shutdown/any", f"task/async-apply/{SWEEP}", f"task/send-task/{SWEEP}", "task/revoke/any"):
        refused = httpx.post(f"{flower}/api/{path}", auth=FLOWER_LOGIN, timeout=PATIENCE_SECONDS)
        assert refused.status_code == httpx.codes.FORBIDDEN, path


@pytest.mark.slow
def test_worker_relay_and_beat_without_work_write_nothing(
    deployed: Deployment, manager: OrgManager, database: Database
) -> None:
    for part in ("worker", "relay", "beat"):
        deployed.start(part)
    manager.create_organization("Zebra Idle", "starter")
    until(lambda: in_sync(database), "in sync")
    until(lambda: len(lines(deployed, "link_synced")) == len(("stripe", "lago")), "both told")
    sweeps = [last_sweep(database)]
    # The first sweep may still find what the last attempt has left.
    until(lambda: last_sweep(database) != sweeps[0], "a sweep")
    before = deployed.logs
    while len(sweeps) <= SWEEPS_WITHOUT_WORK:
        until(lambda: last_sweep(database) != sweeps[-1], "another sweep")
        sweeps.append(last_sweep(database))
    assert deployed.logs == before


def last_sweep(database: Database) -> str | None:
    with database.read() as session:
        lock = session.get(JobLock, SWEEP)
        return str(lock.lease_until) if lock else None
