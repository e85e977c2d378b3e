"""The whole way of a webhook, as it is in a deployment: the sandbox signs and sends, the API stores, a worker looks."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.catalog import plans as plan_catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support import console
from tests.support.deployment import answers, deployment, free_port, in_sync
from tests.support.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.processes

WHSEC, LAGO_SECRET = "whsec_nobody_may_read_this", "lago-hmac-nobody-may-read-this"
NUMBERS = count(1)


@dataclass
class SandboxApp:
    """``billing-sync up``, its API and its sandbox; Stripe charges for ``enterprise``, Lago for the rest."""

    folder: Path
    running: console.ConsoleProcess
    http: httpx.Client
    sandbox: SandboxClient
    key: dict[str, str] = field(default_factory=dict)

    def organization(self, plan_tier: str = "professional") -> str:
        made = self.http.post(
            "/api/organizations",
            json={"name": f"Acme {next(NUMBERS)}", "plan_tier": plan_tier, "billing_email": "ap@acme.test"},
            headers=self.key,
        )
        org_id = str(made.json()["org_id"])
        self.until(lambda: self.sync(org_id)["in_sync"], "in sync")
        return org_id

    def sync(self, org_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/api/organizations/{org_id}/sync", headers=self.key).json())

    def link(self, org_id: str, provider: str) -> dict[str, Any]:
        return dict(self.sync(org_id)["providers"][provider])

    def ids(self, org_id: str) -> tuple[str, str]:
        found = self.http.get(f"/api/organizations/{org_id}", headers=self.key).json()
        return found["stripe_customer_id"], found["lago_customer_id"]

    def billing_sync(self, *words: str) -> subprocess.CompletedProcess[str]:
        return console.run(self.folder, *words)

    def messages(self, *statuses: str) -> list[dict[str, Any]]:
        words = [word for status in statuses for word in ("--status", status)]
        ended = self.billing_sync("inbox", "list", "--json", "--limit", "1000", *words)
        assert ended.returncode == 0, ended.stderr
        return list(json.loads(ended.stdout)["messages"])

    def until(self, condition: Callable[[], bool], what: str) -> None:
        self.running.until(condition, what)

    def quiet(self) -> None:
        """All webhooks are delivered, and for longer than a rest nobody asks the billers anything."""
        self.until(lambda: self.sandbox.webhooks()["waiting"] == 0, "delivered")
        before, since = self._calls(), time.monotonic()

        def rests() -> bool:
            nonlocal before, since
            if (now := self._calls()) != before:
                before, since = now, time.monotonic()
            return time.monotonic() - since > 2.5

        self.until(rests, "quiet")

    def _calls(self) -> int:
        counters = self.sandbox.counters()
        return counters.stripe.total + counters.lago.total

    def conflict(self, org_id: str, provider: str) -> str:
        """The sentence, once the link is on hold."""
        self.until(lambda: self.link(org_id, provider)["status"] == "on_hold", "on hold")
        return str(self.link(org_id, provider)["error"]["message"])


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxApp]:
    folder = console.prepare(tmp_path_factory.mktemp("up"))
    plans = folder / "plans.toml"
    plans.write_text(stripe_charges_for("enterprise", plans.read_text()))
    with console.running(folder, "up", settings={"API_PORT": "0"}) as running:
        running.wait_for_output("/docs;")
        words = running.output.split()
        api = next(word.rstrip(";").removeprefix("(") for word in words if word.rstrip(";").endswith("/docs"))[:-5]
        sandbox = words[words.index("sandbox") + 1]
        with (
            httpx.Client(base_url=api, trust_env=False, timeout=60) as http,
            SandboxClient(sandbox) as client,
        ):
            opened = SandboxApp(folder, running, http, client)
            scopes = ("--scope", "organizations:write", "--scope", "organizations:read")
            key = opened.billing_sync("keys", "create", "tests", *scopes).stdout.strip()
            opened.key = {"Authorization": f"Bearer {key}"}
            yield opened


def stripe_charges_for(tier: str, plans: str) -> str:
    """The catalog with this plan charged by Stripe."""
    head = f"[plans.{tier}]\n"
    assert head in plans
    return plans.replace(head, f'{head}charged_by = "stripe"\n')


def test_a_customer_deleted_in_stripe_ends_on_hold_with_a_sentence(up: SandboxApp) -> None:
    org_id = up.organization()
    stripe_id, _ = up.ids(org_id)
    up.sandbox.delete("stripe", "customers", stripe_id)
    assert up.conflict(org_id, "stripe").startswith(f"{stripe_id} at Stripe: it was deleted in Stripe, which cannot")
    shown = up.billing_sync("parked").stdout
    assert f"{stripe_id} at Stripe: it was deleted" in shown.replace("\n  ", " ")


def test_a_customer_deleted_in_lago_ends_on_hold_and_is_not_made_again(up: SandboxApp) -> None:
    org_id = up.organization()
    up.sandbox.delete("lago", "customers", org_id)
    assert "Lago knows no such customer: it was deleted" in up.conflict(org_id, "lago")
    assert [each for each in up.sandbox.state()["lago"]["customers"] if each["external_id"] == org_id] == []


def test_a_subscription_that_somebody_ended_is_on_hold_at_the_biller_that_charges(up: SandboxApp) -> None:
    at_lago, at_stripe = up.organization(), up.organization("enterprise")
    up.sandbox.delete("lago", "subscriptions", at_lago)
    assert "ended at Lago, but not by billing-sync" in up.conflict(at_lago, "lago")
    stripe_id, _ = up.ids(at_stripe)
    (theirs,) = [each for each in up.sandbox.state()["stripe"]["subscriptions"] if each["customer"] == stripe_id]
    up.sandbox.delete("stripe", "subscriptions", theirs["id"])
    assert "ended in Stripe, not by us" in up.conflict(at_stripe, "stripe")


def test_a_plan_that_somebody_changed_is_shown_and_taken_over_by_resolve(up: SandboxApp) -> None:
    org_id = up.organization("starter")
    up.sandbox.patch("lago", "subscriptions", org_id, plan_code="professional")
    assert "and did not make this change" in up.conflict(org_id, "lago")
    theirs = [each for each in up.sandbox.state()["lago"]["subscriptions"] if each["external_id"] == org_id]
    assert [each["plan_code"] for each in theirs if each["status"] == "active"] == ["professional"]
    resolved = up.billing_sync("resolve", org_id, "--theirs", "--yes")
    assert "Taken over from Lago: plan professional." in resolved.stdout, resolved.stderr
    up.until(lambda: up.link(org_id, "lago")["in_sync"], "in sync")


def test_a_foreign_subscription_is_neither_joined_nor_ended(up: SandboxApp) -> None:
    org_id = up.organization()
    stripe_id, _ = up.ids(org_id)
    (price,) = up.sandbox.preload_stripe_prices(
        [{"currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}, "product_data": {"name": "x"}}]
    )
    rogue = up.sandbox.preload_stripe_subscription(stripe_id, price["id"])
    assert rogue["id"] in up.conflict(org_id, "stripe")
    (still,) = [each for each in up.sandbox.state()["stripe"]["subscriptions"] if each["id"] == rogue["id"]]
    assert (still["status"], still["metadata"]) == ("active", {})


def test_a_failed_payment_is_shown_until_it_is_paid_and_lowers_no_plan(up: SandboxApp) -> None:
    at_lago, at_stripe = up.organization(), up.organization("enterprise")
    theirs = up.sandbox.create("lago", "invoices", external_customer_id=at_lago, error_code="card_declined")
    up.until(lambda: up.link(at_lago, "lago")["payment"] is not None, "shown")
    payment = up.link(at_lago, "lago")["payment"]
    assert (payment["status"], payment["code"], payment["since"] is not None) == ("failed", "card_declined", True)
    assert "an invoice could not be charged, since" in up.billing_sync("status", at_lago).stdout

    stripe_id, _ = up.ids(at_stripe)
    ours = up.sandbox.create("stripe", "invoices", customer=stripe_id)
    up.until(lambda: up.link(at_stripe, "stripe")["payment"] is not None, "shown")
    assert up.link(at_stripe, "stripe")["payment"]["code"] == "invoice.payment_failed"

    for org_id, plan in ((at_lago, "professional"), (at_stripe, "enterprise")):
        assert up.sync(org_id)["in_sync"]
        assert up.http.get(f"/api/organizations/{org_id}", headers=up.key).json()["plan_tier"] == plan
    up.sandbox.patch("lago", "invoices", theirs["lago_id"], payment_status="succeeded")
    up.sandbox.patch("stripe", "invoices", ours["id"], status="paid")
    up.until(lambda: up.link(at_lago, "lago")["payment"] is None, "paid at Lago")
    up.until(lambda: up.link(at_stripe, "stripe")["payment"] is None, "paid at Stripe")


def test_a_payer_that_is_removed_in_lago_ends_on_hold_with_a_sentence(up: SandboxApp) -> None:
    org_id = up.organization()
    up.sandbox.patch("lago", "customers", org_id, billing_configuration={"payment_provider": None})
    assert "Lago charges nobody for the organization" in up.conflict(org_id, "lago")


def test_a_payer_that_lago_cannot_use_is_shown(up: SandboxApp) -> None:
    org_id = up.organization()
    up.sandbox.create("lago", "payer_errors", external_customer_id=org_id, error_code="resource_missing")
    up.until(lambda: up.link(org_id, "lago")["payment"] is not None, "shown")
    assert up.link(org_id, "lago")["payment"]["status"] == "payer_rejected"
    up.sandbox.create("lago", "payers", external_customer_id=org_id)
    up.until(lambda: up.link(org_id, "lago")["payment"] is None, "taken")


def test_what_we_do_ourselves_comes_back_and_ends_in_silence(up: SandboxApp) -> None:
    """Each of our writes is told to us; were a look to write, or a webhook to be believed, it would never end."""
    org_id = up.organization("starter")
    for tier in ("professional", "starter"):
        up.http.patch(f"/api/organizations/{org_id}/plan", json={"plan_tier": tier}, headers=up.key)
        up.until(lambda: up.sync(org_id)["in_sync"], f"on {tier}")
    up.quiet()
    delivered = len(up.sandbox.webhooks()["deliveries"])
    time.sleep(1)
    up.quiet()
    assert len(up.sandbox.webhooks()["deliveries"]) == delivered
    assert up.sandbox.webhooks()["dropped"] == 0


def test_what_another_account_sent_is_shown_to_a_person(up: SandboxApp) -> None:
    org_id = up.organization()
    account = up.sandbox.settings()["lago_organization"]
    up.sandbox.settings(lago_organization="99999999-0000-4000-8000-000000000000")
    try:
        up.sandbox.create("lago", "payers", external_customer_id=org_id)
        up.until(lambda: up.sandbox.webhooks()["deliveries"][-1]["status"] == 200, "answered")
    finally:
        up.sandbox.settings(lago_organization=account)
    (refused,) = up.messages("rejected")
    assert (refused["source"], refused["type"]) == ("lago", "customer.payment_provider_created")
    assert "this database belongs to" in refused["reason"]
    assert "1 rejected" in up.billing_sync("status").stdout


def test_deployed_the_relay_wakes_a_worker_and_without_a_relay_the_sweep_does(
    postgres_url: str, redis_url: str, sandbox: SandboxClient, sandbox_server: Sandbox, tmp_path: Path
) -> None:
    database = Database(postgres_url)
    database.upgrade()
    port = free_port()
    with deployment(postgres_url, redis_url, sandbox_server.url, tmp_path) as deployed:
        deployed.environment |= {"STRIPE_WEBHOOK_SECRET": WHSEC, "LAGO_WEBHOOK_SECRET": LAGO_SECRET}
        assert deployed.run("plans", "push").returncode == 0
        relay = deployed.start("relay")
        for arguments in (("worker",), ("beat",), ("api", "--port", str(port))):
            deployed.start(*arguments)
        until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the API")
        hooks = {"stripe": WHSEC, "lago": LAGO_SECRET}
        at = f"http://127.0.0.1:{port}/webhooks"
        badly = {"doubled": 1.0, "shuffled": True}
        sandbox.set_webhooks(
            **{name: {"url": f"{at}/{name}", "secret": secret, **badly} for name, secret in hooks.items()}
        )
        org_id = made(database)
        until(lambda: in_sync(database), "in sync")

        customer_id = link(database, org_id, "stripe").customer_id
        sandbox.delete("stripe", "customers", str(customer_id))
        until(lambda: link(database, org_id, "stripe").state == "on_hold", "on hold")

        relay.send_signal(signal.SIGTERM)
        relay.wait(PATIENCE_SECONDS)
        sandbox.create("lago", "invoices", external_customer_id=org_id)
        until(lambda: link(database, org_id, "lago").payment_status == "failed", "shown")
    database.close()


def made(database: Database) -> str:
    with database.write() as session:
        new = NewOrganization(name="Deployed", plan_tier="professional")
        return commands.create(ChangeContext(session, utc_now()), new, plan_catalog.load()).id


def link(database: Database, org_id: str, provider: str) -> BillingLink:
    with database.read() as session:
        return session.get_one(BillingLink, (org_id, provider))


def test_a_downgrade_that_took_effect_settles_the_tier(up: SandboxApp) -> None:
    """The last one: it moves the sandbox's clock."""
    org_id = up.organization("professional")
    up.http.patch(f"/api/organizations/{org_id}/plan", json={"plan_tier": "starter"}, headers=up.key)
    up.until(lambda: up.sync(org_id)["in_sync"], "scheduled")
    assert up.http.get(f"/api/organizations/{org_id}", headers=up.key).json()["pending_plan_tier"] == "starter"
    up.sandbox.advance(32 * 24 * 3600)

    def settled() -> bool:
        found = up.http.get(f"/api/organizations/{org_id}", headers=up.key).json()
        return (found["plan_tier"], found["pending_plan_tier"]) == ("starter", None)

    up.until(settled, "settled")
