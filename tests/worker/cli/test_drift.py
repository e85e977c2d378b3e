"""Plan and apply as a person types them and as a schedule rings them, against the sandbox."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from core.catalog import publishing
from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.events.event_types import ChangeContext
from core.organizations import commands as organization_commands
from core.organizations.commands import NewOrganization
from core.ports.spec import PROVIDERS
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tasks import drift
from tasks.base import BillingApp
from tests.support import console
from tests.support.deployment import deployment
from tests.support.drift_harness import in_sync
from tests.support.sync_world import open_world
from tests.support.waiting import until
from worker.cli.app import app as commands
from worker.cli.exit_codes import CommandFailedError
from worker.config.settings import Settings
from worker.wiring.celery_app import build

Type = Callable[..., Result]
LAGO_KEY = "lago-nobody-may-read-this"
A_DAY = timedelta(days=1)


@pytest.fixture
def environment(database: Database, sandbox_server: Sandbox, tmp_path: Path) -> dict[str, str]:
    return {
        "DATABASE_URL": database.url.render_as_string(hide_password=False),
        "DATA_DIR": str(tmp_path),
        "PLANS_FILE": str(DEFAULT_PLANS_FILE),
        "STRIPE_SECRET_KEY": "sk_test_sandbox",
        "STRIPE_API_BASE": sandbox_server.url,
        "LAGO_API_KEY": LAGO_KEY,
        "LAGO_API_URL": sandbox_server.url,
        "LAGO_STRIPE_PROVIDER_CODE": "stripe_main",
    }


@pytest.fixture
def app(environment: Mapping[str, str], sandbox: SandboxClient) -> Iterator[BillingApp]:
    built = build(Settings.model_validate({name.lower(): value for name, value in environment.items()}))
    publishing.publish(built.runtime.catalog, built.runtime.reconciler.providers.values())
    sandbox.reset_calls()
    yield built
    built.close_runtime()
    built.close()


@pytest.fixture
def acme(app: BillingApp, database: Database, plans: Catalog) -> str:
    """An organization that is in sync, and has been for a while."""
    with database.write() as session:
        new = NewOrganization(name="Acme", plan_tier="starter")
        org_id = organization_commands.create(ChangeContext(session, utc_now()), new, plans).id
    for provider in PROVIDERS:
        assert app.runtime.reconciler.run(org_id, provider).kind == "synced"
    return org_id


@pytest.fixture
def types(environment: Mapping[str, str]) -> Type:
    forgotten = dict.fromkeys(("REDIS_URL", "CELERY_BROKER_URL"))

    def typed(*words: str) -> Result:
        return CliRunner().invoke(commands, list(words), env={**forgotten, **environment, "COLUMNS": "120"})

    return typed


def rename_at_provider(sandbox: SandboxClient, database: Database, org_id: str) -> str:
    with database.read() as session:
        customer = str(session.get_one(BillingLink, (org_id, "stripe")).customer_id)
    sandbox.patch("stripe", "customers", customer, name="Mallory")
    return customer


def json_of(result: Result, code: int) -> dict[str, Any]:
    assert result.exit_code == code, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


@pytest.mark.usefixtures("acme")
def test_nothing_drifted_is_zero(types: Type) -> None:
    result = types("drift", "check")
    assert (result.exit_code, result.stdout) == (0, "1 organizations checked, none with drift.\n")
    assert json_of(types("drift", "check", "--json"), 0)["items"] == []


def test_a_key_of_another_account_is_said_and_nothing_is_called_missing(
    types: Type, acme: str, sandbox: SandboxClient, database: Database
) -> None:
    rename_at_provider(sandbox, database, acme)
    right = json_of(types("drift", "check", "--json"), 2)
    sandbox.settings(stripe_account="acct_theirs")
    plan = json_of(types("drift", "check", "--json"), 2)
    assert (plan["counts"]["kinds"], plan["counts"]["excluded_providers"]) == ({"wrong_account": 1}, ["stripe"])
    (finding,) = plan["items"][0]["findings"]
    for words in ("acct_sandbox", "acct_theirs", "STRIPE_SECRET_KEY"):
        assert words in finding["advice"]
    assert "wrong account" in types("drift", "check").stdout
    refused = types("drift", "repair", right["id"])
    assert isinstance(refused.exception, CommandFailedError)
    assert "acct_theirs" in str(refused.exception)
    assert not [call for call in sandbox.calls("stripe") if call.method == "POST" and call.path != "/v1/customers"]


@pytest.mark.slow
def test_drift_is_two_and_is_gone_after_apply(
    types: Type, acme: str, sandbox: SandboxClient, database: Database
) -> None:
    customer = rename_at_provider(sandbox, database, acme)
    plan = json_of(types("drift", "check", "--json"), 2)
    (drifted,) = plan["items"]
    assert (drifted["org_id"], plan["counts"]["kinds"]) == (acme, {"renamed": 1})
    (finding,) = drifted["findings"]
    assert (finding["ours"], finding["theirs"], finding["their_write"]["by"]) == ("Acme", "Mallory", "not us")
    (made,) = drifted["repairs"]
    assert made["calls"] == [f"POST /v1/customers/{customer}"]
    applied = json_of(types("drift", "repair", plan["id"][:12], "--json"), 0)
    assert (applied["organizations"], applied["not_repaired"]) == (1, [])
    assert types("drift", "check").exit_code == 0


def test_a_person_reads_what_differs_who_wrote_it_and_what_apply_sends(
    types: Type, acme: str, sandbox: SandboxClient, database: Database
) -> None:
    customer = rename_at_provider(sandbox, database, acme)
    shown = " ".join(types("drift", "check").stdout.split())
    assert f"Acme {acme}" in shown
    assert f"Stripe, renamed: name desired Acme, observed Mallory ({customer})" in shown
    assert "not by us (evt_" in shown
    assert f"repair sends: POST /v1/customers/{customer}" in shown
    assert re.search(r"`billing-sync drift repair \w{12}` repairs 1 organization with the requests listed\.", shown)
    assert "resolve yourself" not in shown


def test_what_no_repair_may_touch_is_counted_by_organization(
    types: Type, acme: str, sandbox: SandboxClient, database: Database
) -> None:
    with database.read() as session:
        customer = session.get_one(BillingLink, (acme, "stripe")).customer_id
    sandbox.patch("stripe", "customers", str(customer), metadata={"billing_sync_org_id": "org_of_others"})
    shown = " ".join(types("drift", "check").stdout.split())
    # The customer's own organization, and the unknown one that the customer names now.
    assert "2 organizations have only differences that you must resolve yourself: do what each → says." in shown


@pytest.mark.processes
@pytest.mark.usefixtures("acme")
def test_a_plan_that_there_is_not_is_a_wrong_word(environment: Mapping[str, str], tmp_path: Path) -> None:
    result = console.run(tmp_path, "drift", "repair", "0123456789ab", settings=environment)
    assert result.returncode == 2
    assert (
        result.stderr
        == "billing-sync: there is no report '0123456789ab'; `billing-sync drift check` creates one and prints its id\n"
    )


def test_a_plan_that_moved_is_refused_with_a_sentence(
    types: Type, acme: str, sandbox: SandboxClient, database: Database
) -> None:
    customer = rename_at_provider(sandbox, database, acme)
    plan = json_of(types("drift", "check", "--json"), 2)
    sandbox.patch("stripe", "customers", customer, name="Mallory & Sons")
    refused = types("drift", "repair", plan["id"]).exception
    assert isinstance(refused, CommandFailedError)
    assert str(refused).startswith(f"nothing was repaired: {acme} changed since drift report ")


@pytest.mark.processes
def test_what_cannot_be_told_is_one(environment: Mapping[str, str], tmp_path: Path) -> None:
    """Two has a meaning of its own here, so a setting that is wrong is one as well."""
    keyless = {name: value for name, value in environment.items() if name != "LAGO_API_KEY"}
    result = console.run(tmp_path, "drift", "check", settings=keyless)
    assert (result.returncode, "LAGO_API_KEY is missing" in result.stderr) == (1, True)
    away = {**environment, "LAGO_API_URL": "http://127.0.0.1:1"}
    result = console.run(tmp_path, "drift", "check", settings=away)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)


@pytest.mark.processes
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_run_that_is_killed_goes_on_where_it_was(
    database: Database, sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog, tmp_path: Path
) -> None:
    world = open_world(database, sandbox, plans, sandbox_server.url)
    in_sync(world, 800)
    for provider in world.providers.values():
        provider.close()
    sandbox.settings(latency_ms=300)
    url = database.url.render_as_string(hide_password=False)
    with deployment(url, "memory://", sandbox_server.url, tmp_path) as deployed:
        killed = deployed.start("drift", "check")
        until(lambda: sandbox.counters().stripe.of("GET /v1/customers") >= 4, "four pages listed")
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        sandbox.settings(latency_ms=0)
        result = deployed.run("drift", "check", "--json")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads(result.stdout)["counts"]["compared"] == 800
    # Eight pages, and at most one that was answered to a dead process.
    assert sandbox.counters().stripe.of("GET /v1/customers") <= 9


def test_a_schedule_makes_a_plan_and_one_line_that_a_monitor_can_count(
    app: BillingApp, acme: str, sandbox: SandboxClient, database: Database
) -> None:
    rename_at_provider(sandbox, database, acme)
    with capture_logs() as lines:
        plan = drift.run(app, A_DAY)
    assert plan is not None
    (line,) = [each for each in lines if each["event"] == "drift_checked"]
    assert (line["log_level"], line["drifted"], line["kinds"]) == ("warning", 1, {"renamed": 1})
    assert "Mallory" not in str(lines)
    assert drift.run(app, A_DAY) is None


@pytest.mark.usefixtures("acme")
def test_a_schedule_waits_for_a_biller_that_is_away(app: BillingApp, sandbox: SandboxClient) -> None:
    sandbox.settings(revoked_keys=[LAGO_KEY])
    with capture_logs() as lines:
        assert drift.run(app, A_DAY) is None
    assert [each["event"] for each in lines if each["event"].startswith("drift_check")] == ["drift_check_interrupted"]


def test_no_schedule_unless_one_is_set(environment: Mapping[str, str]) -> None:
    named = {name.lower(): value for name, value in environment.items()}
    assert "drift_check" not in build(Settings.model_validate(named)).conf.beat_schedule
    daily = build(Settings.model_validate({**named, "plan_every_hours": 24})).conf.beat_schedule
    assert (daily["drift_check"]["task"], daily["drift_check"]["args"]) == ("drift.check", [86_400.0])
