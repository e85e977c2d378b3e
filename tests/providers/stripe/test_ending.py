"""What an organization that leaves owes in Stripe: the time it had, on any invoice. Each credit is given once."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from core.ports.errors import ProviderError
from core.ports.observed import ObservedCredit
from core.ports.provider import Subscription
from core.ports.spec import LastKnown, SubscriptionSpec
from providers.stripe.ending import unused_amount, unused_credits
from providers.stripe.provider import StripeProvider
from providers.stripe.responses import StripeInvoice, StripeInvoiceLine, StripePage, StripePeriod
from sandbox.server import Sandbox
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.stripe_world import ENDING, StripeCallRecorder, StripeWorld

ORG = "org_1"
CREDIT = "POST /v1/credit_notes"
CANCEL = "DELETE /v1/subscriptions/{id}"
FINALIZE = "POST /v1/invoices/{id}/finalize"


@pytest.fixture
def customer(world: StripeWorld) -> str:
    world.sell_all()
    fields = {"name": "Acme", "email": "ap@acme.test", "metadata[billing_sync_org_id]": ORG}
    return str(world.post("/v1/customers", fields)["id"])


def known(customer: str, made: Subscription | None = None) -> LastKnown:
    return LastKnown(customer_id=customer, confirmed=True, subscription_id=made.id if made else None)


def sell(world: StripeWorld, customer: str, plan: str, made: Subscription | None = None) -> Subscription:
    spec = SubscriptionSpec(org_id=ORG, customer_id=customer, plan_code=plan, has_billing_email=True)
    return world.provider.ensure_subscription(spec, known(customer, made), InMemoryAttempt(now=world.now))


def end(
    world: StripeWorld, customer: str, made: Subscription, provider: StripeProvider | None = None
) -> ObservedCredit | None:
    attempt = InMemoryAttempt(now=world.now)
    return (provider or world.provider).end_subscription(known(customer, made), ORG, attempt)


def pay(world: StripeWorld, customer: str) -> None:
    world.post(f"/v1/invoices/{world.invoices(customer)[0]['id']}/pay", {"paid_out_of_band": "true"})


def balance(world: StripeWorld, customer: str) -> int:
    (found,) = [each for each in world.customers() if each["id"] == customer]
    return int(found["balance"])


def unused_of(invoice: dict[str, Any], world: StripeWorld, customer: str) -> int:
    """Rounded up, in whole cents, from the seconds that Stripe shows."""
    (line,) = invoice["lines"]["data"]
    (subscription,) = world.subscriptions(customer)
    start, stop = line["period"]["start"], line["period"]["end"]
    return -int(-line["amount"] * (stop - subscription["ended_at"]) // (stop - start))


def test_paid_time_that_is_left_is_credited_to_the_balance(world: StripeWorld, customer: str) -> None:
    made = sell(world, customer, "professional")
    pay(world, customer)
    world.advance(timedelta(days=10))
    end(world, customer, made)
    (invoice,) = world.invoices(customer)
    assert 0 < unused_of(invoice, world, customer) < 4900
    assert balance(world, customer) == -unused_of(invoice, world, customer)
    assert (invoice["status"], invoice["post_payment_credit_notes_amount"]) == ("paid", -balance(world, customer))


def test_credit_on_the_balance_is_told_without_another_request_also_by_a_repeat(
    world: StripeWorld, customer: str
) -> None:
    made = sell(world, customer, "professional")
    pay(world, customer)
    world.advance(timedelta(days=10))
    world.clear_calls()
    told = end(world, customer, made)
    assert told == ObservedCredit(amount=-balance(world, customer), currency="USD")
    assert set(world.calls()) == {CANCEL, "GET /v1/invoices", "GET /v1/credit_notes", CREDIT}
    assert end(world, customer, made) == told


def test_no_credit_is_told_where_the_open_invoice_was_reduced(world: StripeWorld, customer: str) -> None:
    made = sell(world, customer, "professional")
    world.advance(timedelta(days=10))
    assert end(world, customer, made) == ObservedCredit(amount=0)


def test_open_invoice_of_the_running_period_is_reduced(world: StripeWorld, customer: str) -> None:
    made = sell(world, customer, "professional")
    world.advance(timedelta(days=10))
    end(world, customer, made)
    (invoice,) = world.invoices(customer)
    assert invoice["status"] == "open"
    assert invoice["amount_remaining"] == 4900 - unused_of(invoice, world, customer)
    assert balance(world, customer) == 0


def test_draft_of_the_running_period_is_finalized_and_reduced(world: StripeWorld, customer: str) -> None:
    made = sell(world, customer, "professional")
    world.advance(timedelta(minutes=20))
    world.clear_calls()
    end(world, customer, made)
    assert world.calls().count(FINALIZE) == 1
    (invoice,) = world.invoices(customer)
    assert (invoice["status"], invoice["amount_remaining"]) == ("open", 4900 - unused_of(invoice, world, customer))
    assert invoice["amount_remaining"] < 10


def test_draft_of_a_paused_collection_stays_a_draft(world: StripeWorld, customer: str) -> None:
    """Somebody decided not to bill it yet."""
    made = sell(world, customer, "professional")
    world.post(f"/v1/subscriptions/{made.id}", {"pause_collection[behavior]": "keep_as_draft"})
    world.advance(timedelta(minutes=20))
    world.clear_calls()
    end(world, customer, made)
    assert not {FINALIZE, CREDIT} & set(world.calls())
    assert [each["status"] for each in world.invoices(customer)] == ["draft"]


def test_invoice_of_a_period_that_has_ended_is_not_touched(world: StripeWorld, customer: str) -> None:
    made = sell(world, customer, "professional")
    world.advance(timedelta(days=40))
    end(world, customer, made)
    running_period, ended_period = world.invoices(customer)
    assert running_period["pre_payment_credit_notes_amount"] > 0
    assert (ended_period["status"], ended_period["amount_remaining"]) == ("open", 4900)


@pytest.mark.parametrize("status", ["void", "mark_uncollectible"])
def test_invoice_that_nobody_collects_stays_as_it_is(world: StripeWorld, customer: str, status: str) -> None:
    made = sell(world, customer, "professional")
    world.advance(timedelta(days=10))
    world.post(f"/v1/invoices/{world.invoices(customer)[0]['id']}/{status}", {})
    world.clear_calls()
    end(world, customer, made)
    assert CREDIT not in world.calls()


def test_upgrade_that_waits_for_its_invoice_is_paid_up_to_the_end(world: StripeWorld, customer: str) -> None:
    """20 days of 49.00 would be owed from its day on; 5 of them were used."""
    made = sell(world, customer, "starter")
    pay(world, customer)
    world.advance(timedelta(days=10))
    sell(world, customer, "professional", made)
    world.advance(timedelta(days=5))
    end(world, customer, made)
    invoices = world.invoices(customer)
    paid = sum(each["total"] - each["pre_payment_credit_notes_amount"] for each in invoices) + balance(world, customer)
    (line,) = invoices[-1]["lines"]["data"]
    days = (line["period"]["end"] - line["period"]["start"]) / timedelta(days=1).total_seconds()
    assert abs(paid - (1900 * 10 + 4900 * 5) / days) < 5


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        (CANCEL, "lost_answer"),
        (CREDIT, "lost_answer"),
        (CREDIT, "500_before"),
        ("GET /v1/invoices", "500_before"),
        ("GET /v1/credit_notes", "500_before"),
    ],
)
@pytest.mark.parametrize("is_paid", [True, False])
def test_repeat_after_a_failure_credits_once(
    world: StripeWorld, customer: str, operation: str, kind: str, *, is_paid: bool
) -> None:
    made = sell(world, customer, "professional")
    if is_paid:
        pay(world, customer)
    world.advance(timedelta(days=10))
    world.fault(operation, kind, times=5)
    with pytest.raises(ProviderError):
        end(world, customer, made)
    world.advance(timedelta(days=2))  # the key is forgotten by then, and the share is still that of the end
    world.forgive()
    end(world, customer, made)
    end(world, customer, made)
    (invoice,) = world.invoices(customer)
    notes = invoice["pre_payment_credit_notes_amount"] + invoice["post_payment_credit_notes_amount"]
    assert notes == unused_of(invoice, world, customer)


def test_a_credit_that_was_interrupted_is_given_before_a_new_subscription(world: StripeWorld, customer: str) -> None:
    """The organization comes back before its end was finished. It paid for this period once already."""
    made = sell(world, customer, "professional")
    pay(world, customer)
    world.advance(timedelta(days=10))
    world.fault(CREDIT, "500_before", times=5)
    with pytest.raises(ProviderError):
        end(world, customer, made)
    world.forgive()
    ending = replace(known(customer, made), ending_started=True)
    spec = SubscriptionSpec(org_id=ORG, customer_id=customer, plan_code="professional", has_billing_email=True)
    again = world.provider.ensure_subscription(spec, ending, InMemoryAttempt(now=world.now))
    assert again.id != made.id
    first = world.invoices(customer)[-1]
    assert first["post_payment_credit_notes_amount"] > 0


def test_a_subscription_whose_create_was_not_answered_is_ended_and_credited_once(
    world: StripeWorld, customer: str
) -> None:
    """Its id was never stored, so a repeat finds it by the customer only, and ended already."""
    attempt = InMemoryAttempt(now=world.now)
    world.fault("POST /v1/subscriptions", "lost_answer")
    spec = SubscriptionSpec(org_id=ORG, customer_id=customer, plan_code="professional", has_billing_email=True)
    with pytest.raises(ProviderError):
        world.provider.ensure_subscription(spec, known(customer), attempt)
    world.advance(timedelta(hours=2))
    world.fault(CREDIT, "500_before", times=5)
    with pytest.raises(ProviderError):
        world.provider.end_subscription(known(customer), ORG, attempt)
    world.forgive()
    world.provider.end_subscription(known(customer), ORG, attempt)
    world.provider.end_subscription(known(customer), ORG, attempt)
    (found,) = world.subscriptions(customer)
    (invoice,) = world.invoices(customer)
    assert found["status"] == "canceled"
    assert invoice["pre_payment_credit_notes_amount"] == unused_of(invoice, world, customer)


def test_all_subscriptions_are_ended_before_a_credit_is_refused(world: StripeWorld, customer: str) -> None:
    sell(world, customer, "professional")
    world.post(
        "/v1/subscriptions",
        {
            "customer": customer,
            "items[0][price]": world.price("starter"),
            "metadata[billing_sync_org_id]": ORG,
            "collection_method": "send_invoice",
            "days_until_due": "30",
        },
    )
    world.advance(timedelta(days=10))
    world.fault("GET /v1/invoices", "500_before", times=5)
    with pytest.raises(ProviderError):
        world.provider.end_subscription(known(customer), ORG, InMemoryAttempt(now=world.now))
    assert [each["status"] for each in world.subscriptions(customer)] == ["canceled", "canceled"]


def test_what_somebody_else_ended_is_not_credited(world: StripeWorld, customer: str) -> None:
    made = sell(world, customer, "professional")
    pay(world, customer)
    world.advance(timedelta(days=10))
    world.delete(f"/v1/subscriptions/{made.id}")
    end(world, customer, made)
    assert balance(world, customer) == 0


def test_nothing_is_credited_where_the_policy_says_so(
    world: StripeWorld, customer: str, sandbox: tuple[Sandbox, StripeCallRecorder]
) -> None:
    made = sell(world, customer, "professional")
    pay(world, customer)
    world.advance(timedelta(days=10))
    keeping = ENDING.model_copy(update={"stripe_prorate": False})
    provider = StripeProvider("sk_test_provider", sandbox[0].url, ending=keeping, clock=world.now)
    end(world, customer, made, provider)
    provider.close()
    assert balance(world, customer) == 0


def line(amount: int, start: int, stop: int) -> StripeInvoiceLine:
    return StripeInvoiceLine(id="il", amount=amount, period=StripePeriod(start=start, end=stop))


def invoice(name: str, status: str, *lines: StripeInvoiceLine) -> StripeInvoice:
    total = sum(each.amount for each in lines)
    page = StripePage[StripeInvoiceLine](data=list(lines))
    return StripeInvoice(id=name, status=status, total=total, amount_remaining=max(0, total), lines=page)


def test_share_is_rounded_up_to_the_cent() -> None:
    assert unused_amount(line(1000, 0, 300), 200) == 334
    assert unused_amount(line(-1000, 0, 300), 200) == -333
    assert unused_amount(line(1000, 0, 300), 300) == 0
    assert unused_amount(line(1000, 100, 300), 50) == 1000


def test_credit_that_stripe_lost_with_a_negative_invoice_is_given_on_the_paid_one() -> None:
    """Three seats became one at 100 of 300: -2000 of the second third and the last waits, and is lost at the end."""
    lost = invoice("in_2", "uncollectible", line(-2000, 100, 300), line(667, 100, 300))
    paid = invoice("in_1", "paid", line(3000, 0, 300))
    (credit,) = unused_credits([lost, paid], 200)
    # Owed: 1000 for a third of three seats, and half of 667. Paid: 3000.
    assert (credit.invoice.id, 3000 - credit.amount) == ("in_1", 1000 + 333)
