"""Stripe's invoices, balances and credit notes as stripe.md 9 has them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import stripe

from sandbox.client import SandboxClient

STARTS = datetime(2027, 5, 1, tzinfo=UTC)
HALF = datetime(2027, 5, 16, 12, tzinfo=UTC)
AN_HOUR = timedelta(seconds=3602)
Doc = dict[str, Any]


@pytest.fixture
def prices(sandbox: SandboxClient) -> dict[str, str]:
    sandbox.set_clock(STARTS)
    made = sandbox.preload_stripe_prices(
        {
            "lookup_key": key,
            "currency": "usd",
            "unit_amount": cents,
            "recurring": {"interval": "month"},
            "product_data": {"name": key},
        }
        for key, cents in (("free", 0), ("odd", 1999), ("odder", 9999), ("low", 10000), ("high", 20000))
    )
    return {price["lookup_key"]: price["id"] for price in made}


class StripeCaller:
    """One customer at Stripe, called without the SDK."""

    def __init__(self, raw: httpx.Client, sandbox: SandboxClient, prices: dict[str, str]) -> None:
        self.raw, self.sandbox, self.prices = raw, sandbox, prices
        self.customer = self.send("POST", "customers", name="Acme", email="a@acme.test")["id"]

    def send(self, method: str, path: str, **fields: str) -> Doc:
        answer = self._send(method, path, fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def refused(self, method: str, path: str, **fields: str) -> str:
        answer = self._send(method, path, fields)
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"]["message"])

    def _send(self, method: str, path: str, fields: dict[str, str]) -> httpx.Response:
        if method == "POST":
            return self.raw.post(f"/v1/{path}", data=fields)
        return self.raw.request(method, f"/v1/{path}", params=fields)

    def subscribe(self, price: str, **fields: str) -> Doc:
        by_invoice = fields or {"collection_method": "send_invoice", "days_until_due": "30"}
        return self.send(
            "POST", "subscriptions", customer=self.customer, **{"items[0][price]": self.prices[price]}, **by_invoice
        )

    def change(self, subscription: Doc, price: str, behavior: str = "create_prorations", quantity: int = 1) -> Doc:
        """Prorated from ``HALF`` if it is later than that: the clock runs on, and a second less is a cent less."""
        item = {
            "items[0][id]": subscription["items"]["data"][0]["id"],
            "items[0][price]": self.prices[price],
            "items[0][quantity]": str(quantity),
        }
        if self.sandbox.clock() >= HALF:
            item["proration_date"] = str(int(HALF.timestamp()))
        return self.send("POST", f"subscriptions/{subscription['id']}", proration_behavior=behavior, **item)

    def invoices(self, **filters: str) -> list[Doc]:
        """Oldest first."""
        return list(reversed(self.send("GET", "invoices", customer=self.customer, **filters)["data"]))

    def only_invoice(self) -> Doc:
        (invoice,) = self.invoices()
        return invoice

    def balance(self) -> int:
        return int(self.send("GET", f"customers/{self.customer}")["balance"])

    def transactions(self) -> list[tuple[str, int, int]]:
        """Oldest first: type, amount, balance after it."""
        found = self.send("GET", f"customers/{self.customer}/balance_transactions")["data"]
        return [(each["type"], each["amount"], each["ending_balance"]) for each in reversed(found)]


@pytest.fixture
def account(raw: httpx.Client, sandbox: SandboxClient, prices: dict[str, str]) -> StripeCaller:
    return StripeCaller(raw, sandbox, prices)


def amounts(invoice: Doc) -> list[int]:
    return [line["amount"] for line in invoice["lines"]["data"]]


def outline(invoice: Doc) -> tuple[str, str, int, int]:
    return invoice["billing_reason"], invoice["status"], invoice["total"], invoice["amount_due"]


def test_the_first_invoice_that_is_sent_is_a_draft_for_an_hour_and_then_stays_open(
    account: StripeCaller, sandbox: SandboxClient
) -> None:
    made = account.subscribe("low")
    draft = account.only_invoice()
    assert made["latest_invoice"] == draft["id"]
    assert outline(draft) == ("subscription_create", "draft", 10000, 10000)
    assert (draft["number"], draft["auto_advance"], draft["ending_balance"]) == (None, True, None)
    sandbox.advance(AN_HOUR)
    sent = account.only_invoice()
    assert outline(sent) == ("subscription_create", "open", 10000, 10000)
    assert sent["number"].endswith("-0001")
    assert sent["due_date"] == draft["created"] + 30 * 24 * 3600
    sandbox.advance(timedelta(days=20))
    assert account.only_invoice()["status"] == "open"
    events = account.send("GET", "events", limit="100")["data"]
    of_invoices = [event["type"] for event in reversed(events) if event["type"].startswith("invoice.")]
    assert of_invoices == ["invoice.created", "invoice.finalized", "invoice.sent"]


def test_a_free_invoice_is_paid_at_once(account: StripeCaller) -> None:
    account.subscribe("free")
    invoice = account.only_invoice()
    assert outline(invoice) == ("subscription_create", "paid", 0, 0)
    assert invoice["attempt_count"] == 0


def test_what_is_charged_automatically_is_paid_at_once_and_left_open_if_incomplete(
    account: StripeCaller, sandbox: SandboxClient
) -> None:
    account.subscribe("low", payment_behavior="default_incomplete")
    assert account.only_invoice()["status"] == "open"
    sandbox.advance(timedelta(hours=24))
    assert account.only_invoice()["status"] == "void"
    account.subscribe("low", default_payment_method="pm_1")
    paid = account.invoices()[-1]
    assert (paid["status"], paid["amount_paid"], paid["attempt_count"]) == ("paid", 10000, 1)
    sandbox.advance(timedelta(days=31, hours=2))
    assert outline(account.invoices()[-1]) == ("subscription_cycle", "paid", 10000, 10000)


def test_the_payment_of_an_incomplete_subscription_activates_it(account: StripeCaller) -> None:
    made = account.subscribe("low", payment_behavior="default_incomplete")
    invoice = account.only_invoice()["id"]
    assert "There is no `default_payment_method`" in account.refused("POST", f"invoices/{invoice}/pay")
    account.send("POST", f"invoices/{invoice}/pay", payment_method="pm_1")
    assert account.send("GET", f"subscriptions/{made['id']}")["status"] == "active"


def test_each_status_allows_what_stripe_allows(account: StripeCaller) -> None:
    account.subscribe("low")
    invoice = f"invoices/{account.only_invoice()['id']}"
    assert "isn't open" in account.refused("POST", f"{invoice}/void")
    assert "isn't open" in account.refused("POST", f"{invoice}/mark_uncollectible")
    assert "created by subscriptions" in account.refused("DELETE", invoice)
    assert account.send("POST", f"{invoice}/finalize")["status"] == "open"
    assert "already finalized" in account.refused("POST", f"{invoice}/finalize")
    assert "only delete draft" in account.refused("DELETE", invoice)
    assert account.send("POST", f"{invoice}/mark_uncollectible")["status"] == "uncollectible"
    assert "already been marked" in account.refused("POST", f"{invoice}/mark_uncollectible")
    paid = account.send("POST", f"{invoice}/pay", paid_out_of_band="true")
    assert (paid["status"], paid["attempted"], paid["amount_remaining"]) == ("paid", False, 0)
    assert "already paid" in account.refused("POST", f"{invoice}/pay")
    assert "cannot be voided" in account.refused("POST", f"{invoice}/void")


def test_a_draft_of_a_subscription_is_dropped_in_three_steps(account: StripeCaller, sandbox: SandboxClient) -> None:
    account.subscribe("low")
    invoice = f"invoices/{account.only_invoice()['id']}"
    assert account.send("POST", invoice, auto_advance="false")["automatically_finalizes_at"] is None
    sandbox.advance(AN_HOUR)
    assert account.only_invoice()["status"] == "draft"
    account.send("POST", f"{invoice}/finalize", auto_advance="false")
    voided = account.send("POST", f"{invoice}/void")
    assert (voided["status"], voided["amount_due"], voided["auto_advance"]) == ("void", 10000, False)
    assert voided["status_transitions"]["voided_at"] is not None


def test_lists_filter_by_subscription_and_status(account: StripeCaller, sandbox: SandboxClient) -> None:
    one, two = account.subscribe("low"), account.subscribe("high")
    sandbox.advance(AN_HOUR)
    paid = account.invoices(subscription=two["id"])[0]["id"]
    account.send("POST", f"invoices/{paid}/pay", paid_out_of_band="true")
    assert [each["id"] for each in account.invoices(status="paid")] == [paid]
    assert [each["total"] for each in account.invoices(status="open")] == [10000]
    assert [each["total"] for each in account.invoices(subscription=one["id"])] == [10000]
    assert account.invoices(status="void") == []


def test_a_renewal_bills_the_prorations_that_wait(account: StripeCaller, sandbox: SandboxClient) -> None:
    made = account.subscribe("low")
    sandbox.set_clock(HALF)
    account.change(made, "high")
    pending = account.send("GET", "invoiceitems", customer=account.customer, pending="true")["data"]
    assert sorted(item["amount"] for item in pending) == [-5000, 10000]
    sandbox.set_clock(datetime(2027, 6, 1, 0, 30, tzinfo=UTC))
    renewal = account.invoices()[-1]
    assert outline(renewal) == ("subscription_cycle", "draft", 25000, 25000)
    assert amounts(renewal) == [-5000, 10000, 20000]
    assert account.send("GET", "invoiceitems", pending="true")["data"] == []
    sandbox.advance(AN_HOUR)
    assert account.invoices()[-1]["status"] == "open"


def test_an_upgrade_that_invoices_at_once_has_its_lines_only(account: StripeCaller, sandbox: SandboxClient) -> None:
    made = account.subscribe("low")
    sandbox.set_clock(HALF)
    account.change(made, "high", "always_invoice")
    first, upgrade = account.invoices()
    assert outline(upgrade) == ("subscription_update", "draft", 5000, 5000)
    assert (upgrade["period_start"], first["total"]) == (int(STARTS.timestamp()), 10000)


def test_each_line_is_rounded_down_by_itself(account: StripeCaller, sandbox: SandboxClient) -> None:
    """Half of 19.99 is credited as 10.00, half of 99.99 is charged as 49.99: not the sum is rounded, nor to nearest."""
    made = account.subscribe("odd")
    sandbox.set_clock(HALF)
    account.change(made, "odder", "always_invoice")
    assert amounts(account.invoices()[-1]) == [-1000, 4999]


def test_a_changed_quantity_is_credited_and_charged_whole(account: StripeCaller, sandbox: SandboxClient) -> None:
    made = account.subscribe("low")
    sandbox.set_clock(HALF)
    account.change(made, "low", "always_invoice", quantity=3)
    assert amounts(account.invoices()[-1]) == [-5000, 15000]


def test_a_credit_is_worked_out_from_what_was_billed(account: StripeCaller, sandbox: SandboxClient) -> None:
    """A lower price that was set without proration waits for the renewal; this period was paid at the higher one."""
    made = account.subscribe("high")
    account.change(made, "low", "none")
    sandbox.set_clock(HALF)
    account.send("DELETE", f"subscriptions/{made['id']}", prorate="true")
    (credit,) = account.send("GET", "invoiceitems", pending="true")["data"]
    assert credit["amount"] == -10000


def test_the_final_invoice_that_only_credits_never_reaches_the_balance(
    account: StripeCaller, sandbox: SandboxClient
) -> None:
    made = account.subscribe("low")
    sandbox.set_clock(HALF)
    account.send("DELETE", f"subscriptions/{made['id']}", prorate="true", invoice_now="true")
    first, final = account.invoices()
    assert outline(final) == ("subscription_cycle", "uncollectible", -5000, 0)
    assert (final["number"], account.balance()) == (None, 0)
    assert (first["status"], first["auto_advance"], first["amount_due"]) == ("open", False, 10000)


def test_an_end_without_proration_removes_what_waits_and_bills_nothing(
    account: StripeCaller, sandbox: SandboxClient
) -> None:
    made = account.subscribe("low")
    sandbox.set_clock(HALF)
    account.change(made, "high")
    account.send("DELETE", f"subscriptions/{made['id']}")
    assert account.send("GET", "invoiceitems")["data"] == []
    assert len(account.invoices()) == 1


def test_a_final_invoice_with_a_charge_is_sent(account: StripeCaller, sandbox: SandboxClient) -> None:
    made = account.subscribe("low")
    sandbox.set_clock(HALF)
    account.change(made, "high")
    account.send("DELETE", f"subscriptions/{made['id']}", invoice_now="true")
    assert outline(account.invoices()[-1]) == ("subscription_cycle", "draft", 5000, 5000)


def test_credit_pays_for_the_next_invoice_and_a_debt_is_charged_with_it(account: StripeCaller) -> None:
    balance = f"customers/{account.customer}/balance_transactions"
    account.send("POST", balance, amount="-12000", currency="usd")
    for price, due, left in (("low", 0, -2000), ("low", 8000, 0)):
        account.subscribe(price)
        invoice = account.send("POST", f"invoices/{account.invoices()[-1]['id']}/finalize")
        assert (invoice["amount_due"], invoice["ending_balance"]) == (due, left)
    assert [each["status"] for each in account.invoices()] == ["paid", "open"]
    account.send("POST", balance, amount="300", currency="usd")
    account.subscribe("low")
    last = account.send("POST", f"invoices/{account.invoices()[-1]['id']}/finalize")
    assert (last["starting_balance"], last["amount_due"], last["ending_balance"]) == (300, 10300, 0)
    assert account.transactions() == [
        ("adjustment", -12000, -12000),
        ("applied_to_invoice", 10000, -2000),
        ("applied_to_invoice", 2000, 0),
        ("adjustment", 300, 300),
        ("applied_to_invoice", -300, 0),
    ]


def test_a_void_gives_back_what_the_balance_paid(account: StripeCaller) -> None:
    account.send("POST", f"customers/{account.customer}", balance="-3000")
    account.subscribe("low")
    invoice = account.only_invoice()["id"]
    assert account.send("POST", f"invoices/{invoice}/finalize")["amount_due"] == 7000
    assert account.balance() == 0
    account.send("POST", f"invoices/{invoice}/void")
    assert account.balance() == -3000
    assert account.transactions()[-1] == ("unapplied_from_invoice", -3000, -3000)


def test_a_credit_note_lowers_an_open_invoice_and_pays_it_when_nothing_is_left(
    account: StripeCaller, sandbox: SandboxClient
) -> None:
    account.subscribe("low")
    sandbox.advance(AN_HOUR)
    invoice = account.only_invoice()["id"]
    shown = account.send("GET", "credit_notes/preview", invoice=invoice, amount="4000")
    assert (shown["type"], shown["pre_payment_amount"]) == ("pre_payment", 4000)
    assert account.send("GET", "credit_notes", invoice=invoice)["data"] == []
    note = account.send("POST", "credit_notes", invoice=invoice, amount="4000", reason="order_change")
    lowered = account.only_invoice()
    assert (lowered["status"], lowered["amount_due"], lowered["amount_remaining"]) == ("open", 6000, 6000)
    assert (lowered["total"], lowered["pre_payment_credit_notes_amount"]) == (10000, 4000)
    assert note["number"] == f"{lowered['number']}-CN-01"
    assert account.balance() == 0
    account.send("POST", f"credit_notes/{note['id']}/void")
    assert account.only_invoice()["amount_due"] == 10000
    account.send("POST", "credit_notes", invoice=invoice, amount="10000")
    assert outline(account.only_invoice()) == ("subscription_create", "paid", 10000, 0)


def test_a_credit_note_of_a_paid_invoice_goes_to_the_balance(account: StripeCaller, sandbox: SandboxClient) -> None:
    account.subscribe("low")
    sandbox.advance(AN_HOUR)
    invoice = account.only_invoice()
    account.send("POST", f"invoices/{invoice['id']}/pay", paid_out_of_band="true")
    line = invoice["lines"]["data"][0]["id"]
    part = {"lines[0][type]": "invoice_line_item", "lines[0][invoice_line_item]": line, "lines[0][amount]": "4000"}
    assert "must equal" in account.refused("POST", "credit_notes", invoice=invoice["id"], **part)
    note = account.send("POST", "credit_notes", invoice=invoice["id"], credit_amount="4000", **part)
    assert (note["type"], note["post_payment_amount"]) == ("post_payment", 4000)
    assert note["lines"]["data"][0]["invoice_line_item"] == line
    assert account.balance() == -4000
    assert account.transactions() == [("credit_note", -4000, -4000)]
    assert (account.only_invoice()["amount_paid"], account.only_invoice()["post_payment_credit_notes_amount"]) == (
        10000,
        4000,
    )
    too_much = account.refused("POST", "credit_notes", invoice=invoice["id"], amount="6001", credit_amount="6001")
    assert "at most 6000" in too_much


def test_a_draft_takes_no_credit_note(account: StripeCaller) -> None:
    account.subscribe("low")
    assert "draft" in account.refused("POST", "credit_notes", invoice=account.only_invoice()["id"], amount="1")


def test_the_sdk_reads_invoices_and_credit_notes(
    billing: stripe.StripeClient, account: StripeCaller, sandbox: SandboxClient
) -> None:
    made = account.subscribe("low")
    sandbox.advance(AN_HOUR)
    (invoice,) = billing.v1.invoices.list({"subscription": made["id"], "expand": ["data.customer"]}).data
    assert isinstance(invoice.customer, stripe.Customer)
    note = billing.v1.credit_notes.create({"invoice": invoice.id, "amount": 100, "expand": ["invoice"]})
    assert isinstance(note.invoice, stripe.Invoice)
    found = billing.v1.subscriptions.retrieve(made["id"], {"expand": ["latest_invoice"]})
    assert isinstance(found.latest_invoice, stripe.Invoice)
    assert found.latest_invoice.amount_due == 9900
    parent = billing.v1.invoices.retrieve(invoice.id, {"expand": ["parent.subscription_details.subscription"]}).parent
    assert parent is not None
    assert parent.subscription_details is not None
    assert isinstance(parent.subscription_details.subscription, stripe.Subscription)


def test_the_invoices_of_a_paused_subscription_become_what_the_pause_says(
    account: StripeCaller, sandbox: SandboxClient
) -> None:
    for behavior in ("void", "mark_uncollectible", "keep_as_draft"):
        made = account.subscribe("low")
        account.send("POST", f"subscriptions/{made['id']}", **{"pause_collection[behavior]": behavior})
    sandbox.set_clock(datetime(2027, 6, 1, 2, tzinfo=UTC))
    renewals = [each["status"] for each in account.invoices() if each["billing_reason"] == "subscription_cycle"]
    assert renewals == ["void", "uncollectible", "draft"]


def test_invoices_survive_a_restart_of_their_subscription_period(account: StripeCaller, sandbox: SandboxClient) -> None:
    made = account.subscribe("free")
    sandbox.set_clock(HALF)
    account.change(made, "low")
    _, started = account.invoices()
    assert outline(started) == ("subscription_update", "draft", 10000, 10000)
    assert abs(started["lines"]["data"][0]["period"]["start"] - HALF.timestamp()) < 60
