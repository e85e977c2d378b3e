"""Other services are told: by ``up`` alone, and by workers, relay and beat on Postgres and Redis, each event once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError
from standardwebhooks.webhooks import Webhook

from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.webhooks import WebhookDelivery
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from sandbox.server import Sandbox
from tasks import sweep
from tests.support import console
from tests.support.deployment import Deployment, deployment
from tests.support.waiting import until
from tests.support.webhook_receiver import ReceivedRequest, ReceiverReply, WebhookReceiver, receiving
from worker.config.settings import Settings
from worker.wiring.celery_app import build

pytestmark = pytest.mark.processes

SECRET = "a signing secret that nobody may read"
SIGNED = {"WEBHOOK_SIGNING_SECRET": SECRET, "WEBHOOK_ALLOW_PRIVATE": "true"}


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with receiving() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


def create(database: Database, plans: Catalog, name: str) -> str:
    with database.write() as session:
        new = NewOrganization(name=name, plan_tier="starter")
        return commands.create(ChangeContext(session, utc_now()), new, plans).id


def verified_event(sent: ReceivedRequest, secret: str) -> dict[str, Any]:
    """What it says, once its signature was verified."""
    found: dict[str, Any] = Webhook(secret).verify(sent.body, dict(sent.headers))
    return found


def states(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.scalars(select(WebhookDelivery.state)))


def test_up_tells_when_both_billers_hold_an_organization(
    folder: Path, receiver: WebhookReceiver, plans: Catalog
) -> None:
    added = console.run(folder, "webhooks", "add", receiver.url, "--event", "organization.synced", settings=SIGNED)
    assert added.returncode == 0, added.stderr
    secret = added.stdout.strip()
    with console.running(folder, "up", settings=SIGNED | {"API_PORT": "0"}) as up:
        up.wait_for_output("billing-sync is up")
        database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
        org_id = create(database, plans, "Acme")
        [sent] = receiver.wait(1)
        up.until(lambda: states(database) == ["delivered"], "it is written down")
        database.close()
        assert up.stop() == 0
    event = verified_event(sent, secret)
    assert (event["type"], event["subject"]) == ("organization.synced", org_id)
    assert event["data"]["version"] >= 1


def test_a_person_sees_what_was_given_up_and_sends_it_again(
    folder: Path, receiver: WebhookReceiver, plans: Catalog
) -> None:
    receiver.replies = [ReceiverReply(status=410), ReceiverReply()]
    added = console.run(
        folder, "webhooks", "add", receiver.url, "--event", "organization.created", "--json", settings=SIGNED
    )
    endpoint = json.loads(added.stdout)
    assert (endpoint["events"], endpoint["secret"][:6]) == (["organization.created"], "whsec_")
    with console.running(folder, "up", settings=SIGNED | {"API_PORT": "0"}) as up:
        up.wait_for_output("billing-sync is up")
        database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
        org_id = create(database, plans, "Acme")
        up.until(lambda: states(database) == ["failed"], "it is given up")
        shown = console.run(folder, "webhooks", "failed", "--json")
        [failed] = json.loads(shown.stdout)["failed"]
        assert (failed["org_id"], failed["status"], failed["attempts"]) == (org_id, 410, 1)
        [listed] = json.loads(console.run(folder, "webhooks", "list", "--json").stdout)["webhooks"]
        assert (listed["failed"], listed["disabled_reason"]) == (1, "the endpoint responded 410 Gone")
        assert "1 event will be resent" in console.run(folder, "webhooks", "replay", endpoint["id"]).stdout
        up.until(lambda: states(database) == ["delivered"], "it is taken")
        database.close()
    first, second = receiver.requests
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)
    assert endpoint["secret"] not in up.output


def test_words_that_lead_nowhere_are_said_so(folder: Path) -> None:
    unsigned = console.run(folder, "webhooks", "add", "https://hooks.example.com")
    assert (unsigned.returncode, "WEBHOOK_SIGNING_SECRET" in unsigned.stderr) == (2, True)
    private = console.run(folder, "webhooks", "add", "http://127.0.0.1:9/", settings={"WEBHOOK_SIGNING_SECRET": SECRET})
    assert (private.returncode, "WEBHOOK_ALLOW_PRIVATE" in private.stderr) == (2, True)
    short = console.run(folder, "webhooks", "list", settings={"WEBHOOK_SIGNING_SECRET": "too-short"})
    assert (short.returncode, "WEBHOOK_SIGNING_SECRET" in short.stderr) == (2, True)
    unknown = console.run(folder, "webhooks", "replay", "we_1", "--since", "2026-11-23")
    assert (unknown.returncode, "webhooks list" in unknown.stderr) == (2, True)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_holds_webhooks_up_keeps_no_biller_waiting(database: Database, plans: Catalog, tmp_path: Path) -> None:
    create(database, plans, "Acme")
    with database.write() as session:
        session.execute(update(BillingLink).values(next_sweep_at=utc_now()))
        session.execute(text("ALTER TABLE webhook_deliveries RENAME TO away"))
    app = build(
        Settings.model_validate(
            {
                "data_dir": tmp_path,
                "database_url": database.url.render_as_string(hide_password=False),
                "celery_broker_url": "memory://",
                "plans_file": DEFAULT_PLANS_FILE,
                "stripe_secret_key": "sk_test_nobody",
                "stripe_api_base": "http://127.0.0.1:1",
                "lago_api_key": "nobody",
                "lago_api_url": "http://127.0.0.1:1",
                "lago_stripe_provider_code": "stripe_main",
            }
        )
    )
    try:
        with pytest.raises(OperationalError):
            sweep.run(app)
    finally:
        app.close_runtime()
    with database.read() as session:
        assert session.scalars(select(BillingLink.org_id).where(BillingLink.next_sweep_at <= utc_now())).all() == []


@pytest.fixture
def deployed(postgres_url: str, redis_url: str, sandbox_server: Sandbox, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(postgres_url, redis_url, sandbox_server.url, tmp_path) as ready:
        ready.environment |= SIGNED
        yield ready


@pytest.mark.usefixtures("sandbox")
def test_two_workers_and_two_relays_tell_each_event_once_and_a_slow_service_keeps_no_other_waiting(
    deployed: Deployment, receiver: WebhookReceiver, postgres_url: str, plans: Catalog
) -> None:
    database = Database(postgres_url)
    database.upgrade()
    with receiving() as slow:
        slow.replies = [ReceiverReply(after=30)]
        for url in (slow.url, receiver.url):
            assert deployed.run("webhooks", "add", url, "--event", "organization.created").returncode == 0
        for process in ("worker", "worker", "relay", "relay", "beat"):
            deployed.start(process)
        made = {create(database, plans, f"Company Number {number}") for number in range(40)}
        sent = receiver.wait(40)
        until(lambda: states(database).count("delivered") == 40, "all is written down")
    assert {json.loads(each.body)["subject"] for each in sent} == made
    assert len(receiver.requests) == 40
    assert 1 <= len(slow.requests) <= 4
    database.close()
