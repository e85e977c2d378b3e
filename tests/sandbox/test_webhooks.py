"""The sandbox's webhooks: signed as the billers sign them, in order, three tries, never in anybody's way."""

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import stripe

from sandbox.client import SandboxClient, SandboxError
from sandbox.webhooks import MAX_DELIVERY_TRIES
from tests.support.waiting import until

SECRET = "whsec_test"


@dataclass
class SandboxWebhookReceiver:
    """Keeps what it is sent; refuses the first ``refusing``."""

    url: str
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    refusing: int = 0


@pytest.fixture
def receiver() -> Iterator[SandboxWebhookReceiver]:
    class SandboxWebhookHandler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            heard.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(500 if len(heard.got) <= heard.refusing else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), SandboxWebhookHandler)
    heard = SandboxWebhookReceiver(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield heard
    server.shutdown()
    server.server_close()


def test_an_event_of_stripe_is_the_one_in_its_list_and_opens_with_the_sdk(
    sandbox: SandboxClient, receiver: SandboxWebhookReceiver, billing: stripe.StripeClient
) -> None:
    sandbox.set_webhooks(stripe={"url": receiver.url, "secret": SECRET})
    (customer,) = sandbox.preload_stripe_customers([{"name": "Acme"}])
    sandbox.delete("stripe", "customers", customer["id"])
    until(lambda: len(receiver.got) == 2, "two deliveries")
    types = []
    for headers, body in receiver.got:
        event = stripe.Webhook.construct_event(body, headers["stripe-signature"], SECRET)
        types.append(event.type)
        assert billing.v1.events.retrieve(event.id).type == event.type
    assert types == ["customer.created", "customer.deleted"]


def test_lago_tells_of_a_scheduled_plan_only_if_it_is_taken_back(
    sandbox: SandboxClient, receiver: SandboxWebhookReceiver, lago: httpx.Client
) -> None:
    """Replaced by another downgrade or overtaken by an upgrade, it says nothing (lago.md 8, S2 to S4)."""
    sold = {"interval": "monthly", "amount_currency": "USD", "pay_in_advance": True}
    for code, cents in (("free", 0), ("starter", 1900), ("professional", 4900)):
        sandbox.preload_lago_plans([{"name": code, "code": code, "amount_cents": cents, **sold}])
    sandbox.preload_lago_customers([{"external_id": "org_1", "name": "Acme"}])
    sandbox.preload_lago_subscription("org_1", "starter", "org_1")
    sandbox.patch("lago", "subscriptions", "org_1", plan_code="free")
    sandbox.set_webhooks(lago={"url": receiver.url, "secret": SECRET})
    sandbox.patch("lago", "subscriptions", "org_1", plan_code="professional")
    sandbox.patch("lago", "subscriptions", "org_1", plan_code="starter")
    sandbox.patch("lago", "subscriptions", "org_1", plan_code="free")
    lago.delete("/subscriptions/org_1", params={"status": "pending"})
    until(lambda: sandbox.webhooks()["waiting"] == 0 and len(receiver.got) >= 7, "seven deliveries")
    told = [json.loads(body) for _, body in receiver.got]
    assert [(each["webhook_type"], each["subscription"]["plan_code"]) for each in told] == [
        ("subscription.updated", "starter"),
        ("subscription.terminated", "starter"),
        ("subscription.started", "professional"),
        ("subscription.updated", "professional"),
        ("subscription.updated", "professional"),
        ("subscription.updated", "professional"),  # taken back: the active one before the canceled one
        ("subscription.terminated", "free"),
    ]


def test_lago_tells_of_subscriptions_as_they_come_and_go(
    sandbox: SandboxClient, receiver: SandboxWebhookReceiver
) -> None:
    sold = {"interval": "monthly", "amount_currency": "USD", "pay_in_advance": True}
    for code, cents in (("free", 0), ("starter", 1900), ("professional", 4900)):
        sandbox.preload_lago_plans([{"name": code, "code": code, "amount_cents": cents, **sold}])
    sandbox.preload_lago_customers([{"external_id": "org_1", "name": "Acme"}])
    sandbox.set_webhooks(lago={"url": receiver.url, "secret": SECRET})
    sandbox.preload_lago_subscription("org_1", "starter", "org_1")
    sandbox.patch("lago", "subscriptions", "org_1", plan_code="professional")
    sandbox.patch("lago", "subscriptions", "org_1", plan_code="starter")
    sandbox.advance(40 * 24 * 3600)
    sandbox.patch("lago", "subscriptions", "org_1", plan_code="free")
    sandbox.delete("lago", "subscriptions", "org_1")
    sandbox.create("lago", "invoices", external_customer_id="org_1")
    until(lambda: sandbox.webhooks()["waiting"] == 0 and len(receiver.got) >= 12, "twelve deliveries")
    told = []
    for headers, body in receiver.got:
        digest = hmac.new(SECRET.encode(), body, hashlib.sha256).digest()
        assert headers["x-lago-signature"] == base64.b64encode(digest).decode()
        document = json.loads(body)
        assert document["organization_id"] == sandbox.settings()["lago_organization"]
        assert isinstance(document[document["object_type"]], dict)
        told.append(document["webhook_type"])
    assert told == [
        *("subscription.started",),  # starter
        *("subscription.updated", "subscription.terminated", "subscription.started"),  # upgrade
        *("subscription.updated",),  # downgrade scheduled
        *("subscription.terminated", "subscription.started"),  # it took effect at period end
        *("subscription.updated",),  # downgrade to free scheduled
        *("subscription.updated", "subscription.terminated"),  # ended, and what was scheduled says nothing
        *("invoice.payment_failure", "invoice.payment_status_updated"),
    ]
    assert len({headers["x-lago-unique-key"] for headers, _ in receiver.got}) == len(receiver.got)


@pytest.mark.slow
def test_what_is_refused_comes_again_under_its_id_three_times_at_most(
    sandbox: SandboxClient, receiver: SandboxWebhookReceiver
) -> None:
    receiver.refusing = 1
    sandbox.set_webhooks(lago={"url": receiver.url, "secret": SECRET})
    sandbox.preload_lago_customers([{"external_id": "org_1"}])
    until(lambda: len(receiver.got) == 2, "two deliveries")
    assert len({headers["x-lago-unique-key"] for headers, _ in receiver.got}) == 1
    receiver.refusing = 1000
    sandbox.preload_lago_customers([{"external_id": "org_2"}])
    until(lambda: len(receiver.got) == 2 + MAX_DELIVERY_TRIES, "every try")
    assert sandbox.webhooks()["deliveries"][-1]["tries"] == MAX_DELIVERY_TRIES
    receiver.refusing = 0
    sandbox.preload_lago_customers([{"external_id": "org_3"}])  # the one thread sends in order: a fourth try came first
    until(lambda: b"org_3" in receiver.got[-1][1], "the last delivery")
    assert len(receiver.got) == 3 + MAX_DELIVERY_TRIES


def test_an_endpoint_may_ask_for_webhooks_that_are_lost_doubled_and_in_any_order(
    sandbox: SandboxClient, receiver: SandboxWebhookReceiver
) -> None:
    endpoint: dict[str, object] = {"url": receiver.url, "secret": SECRET}
    sandbox.set_webhooks(stripe={**endpoint, "lost": 1.0})
    sandbox.preload_stripe_customers([{"name": "Acme"}])
    until(lambda: len(sandbox.webhooks()["deliveries"]) == 1, "a delivery that is lost")
    sandbox.set_webhooks(stripe={**endpoint, "doubled": 1.0, "shuffled": True})
    made = sandbox.preload_stripe_customers([{"name": f"Acme {number}"} for number in range(20)])
    until(lambda: len(receiver.got) == 2 * len(made), "two deliveries of each")
    ids = [json.loads(body)["data"]["object"]["id"] for _, body in receiver.got]
    in_order = [customer["id"] for customer in made]
    assert (ids[::2], sorted(ids[::2])) == (ids[1::2], sorted(in_order))
    assert ids[::2] != in_order
    assert sandbox.webhooks()["deliveries"][0]["status"] is None
    for wrong in ({"lost": 2}, {"doubled": "often"}):
        with pytest.raises(SandboxError, match="between 0 and 1"):
            sandbox.set_webhooks(stripe={**endpoint, **wrong})


@pytest.mark.slow
def test_lago_shows_the_state_of_the_moment_of_sending(
    sandbox: SandboxClient, receiver: SandboxWebhookReceiver
) -> None:
    """As recorded: a ``subscription.started`` arrived with the status terminated (lago.md 8, S14)."""
    plan = {"interval": "monthly", "amount_currency": "USD", "pay_in_advance": True, "amount_cents": 0}
    sandbox.preload_lago_plans([{"name": "free", "code": "free", **plan}])
    sandbox.preload_lago_customers([{"external_id": "org_1", "name": "Acme"}])
    sandbox.set_webhooks(lago={"url": receiver.url, "secret": SECRET})
    receiver.refusing = 2  # what comes after it waits for seconds
    sandbox.preload_lago_customers([{"external_id": "org_2", "name": "Umbrella"}])
    until(lambda: receiver.got, "the first try")
    sandbox.preload_lago_subscription("org_1", "free", "org_1")
    sandbox.delete("lago", "subscriptions", "org_1")
    sandbox.patch("lago", "customers", "org_1", name="Globex")
    sandbox.patch("lago", "customers", "org_1", name="Initech")
    until(lambda: len(receiver.got) >= 8, "three tries and five deliveries")
    documents = [json.loads(body) for _, body in receiver.got[3:]]
    seen = {(each["webhook_type"], each[each["object_type"]].get("status")) for each in documents}
    assert ("subscription.started", "terminated") in seen
    assert {each["customer"]["name"] for each in documents if each["object_type"] == "customer"} == {"Initech"}


def test_without_an_endpoint_nothing_is_sent_and_a_wrong_one_is_refused(
    sandbox: SandboxClient, receiver: SandboxWebhookReceiver
) -> None:
    sandbox.set_webhooks(stripe={"url": receiver.url, "secret": SECRET})
    sandbox.set_webhooks(stripe=None)
    sandbox.preload_stripe_customers([{"name": "Acme"}])
    assert sandbox.webhooks() == {"endpoints": {}, "deliveries": [], "waiting": 0, "dropped": 0}
    for wrong in ({"url": receiver.url}, {"url": "", "secret": "x"}):
        with pytest.raises(SandboxError, match="url and secret"):
            sandbox.set_webhooks(stripe=wrong)
    assert receiver.got == []


def test_invoices_are_found_by_customer_and_payment(sandbox: SandboxClient, lago: httpx.Client) -> None:
    sandbox.preload_lago_customers([{"external_id": "org_1"}, {"external_id": "org_2"}])
    made = sandbox.create("lago", "invoices", external_customer_id="org_1")
    query = "external_customer_id=org_1&payment_statuses[]=failed&statuses[]=finalized"
    assert [each["lago_id"] for each in lago.get(f"/invoices?{query}").json()["invoices"]] == [made["lago_id"]]
    assert lago.get(f"/invoices?{query.replace('org_1', 'org_2')}").json()["invoices"] == []
    sandbox.patch("lago", "invoices", made["lago_id"], payment_status="succeeded")
    assert lago.get(f"/invoices?{query}").json()["invoices"] == []
    with pytest.raises(SandboxError, match="payment_status must be one of"):
        sandbox.patch("lago", "invoices", made["lago_id"], payment_status="lost")


def _invoices(lago: httpx.Client, query: str) -> list[str]:
    rows = lago.get(f"/invoices?external_customer_id=org_1&{query}").json()["invoices"]
    return [each["lago_id"] for each in rows]


def test_a_lost_dispute_stays_with_the_payment_status_until_the_invoice_is_voided(
    sandbox: SandboxClient, lago: httpx.Client
) -> None:
    sandbox.preload_lago_customers([{"external_id": "org_1"}])
    invoice = sandbox.create("lago", "invoices", external_customer_id="org_1", payment_status="succeeded")["lago_id"]
    lost = sandbox.patch("lago", "invoices", invoice, payment_dispute_lost=True)
    assert lost["payment_status"] == "succeeded"
    for status in ("failed", "succeeded"):
        again = sandbox.patch("lago", "invoices", invoice, payment_status=status)
        assert again["payment_dispute_lost_at"] == lost["payment_dispute_lost_at"] is not None
    assert _invoices(lago, "payment_dispute_lost=true&statuses[]=finalized") == [invoice]
    assert _invoices(lago, "payment_statuses[]=failed") == []
    sandbox.patch("lago", "invoices", invoice, status="voided")
    assert _invoices(lago, "payment_dispute_lost=true&statuses[]=finalized") == []
    assert _invoices(lago, "payment_dispute_lost=true") == [invoice]
    with pytest.raises(SandboxError, match="finalized"):
        sandbox.patch("lago", "invoices", invoice, status="voided")


def test_an_invoice_that_nobody_pays_becomes_overdue_and_stays_pending(
    sandbox: SandboxClient, lago: httpx.Client
) -> None:
    sandbox.preload_lago_customers([{"external_id": "org_1"}])
    invoice = sandbox.create("lago", "invoices", external_customer_id="org_1", payment_status="pending")["lago_id"]
    overdue = sandbox.patch("lago", "invoices", invoice, payment_overdue=True)
    assert (overdue["payment_overdue"], overdue["payment_status"]) == (True, "pending")
    assert overdue["total_due_amount_cents"] == overdue["total_amount_cents"]
    assert _invoices(lago, "payment_overdue=true") == [invoice]
    sandbox.patch("lago", "invoices", invoice, payment_status="succeeded")
    assert _invoices(lago, "payment_overdue=true") == []
    with pytest.raises(SandboxError, match="not overdue"):
        sandbox.patch("lago", "invoices", invoice, payment_overdue=True)
