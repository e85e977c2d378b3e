"""A hint costs a look and nothing else: read in the link's turn, never written, once for any number of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import count

import httpx
import pytest
from sqlalchemy import event, select
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from core.compare.desired_state import PayerPolicy
from core.db.models.inbox import ProviderWebhook, WebhookEffect
from core.db.models.providers import ProviderStatus
from core.drift import conflict_resolver
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import LinkRef, ParsedWebhook, StoredResult
from core.ports.spec import CUSTOMER_DELETED, Provider
from core.reconcile import backoff, commands, due_links, payment_problems
from core.reporting import inbox_messages, sync_status
from core.reporting import overview as status_overview
from sandbox.server import Sandbox
from tests.support.strange_error import StrangeError
from tests.support.sync_world import SyncWorld, with_policy

NUMBERS = count(1)
BOTH: tuple[Provider, ...] = ("stripe", "lago")


def synced(world: SyncWorld, plan_tier: str = "professional", name: str = "Acme") -> str:
    org_id = world.create(name, plan_tier)
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.sandbox.reset_calls()
    return org_id


def parsed_webhook(
    world: SyncWorld, org_id: str, provider: Provider, effect: WebhookEffect | None = "check"
) -> ParsedWebhook:
    return ParsedWebhook(
        provider=provider,
        id=f"evt_{next(NUMBERS)}",
        type="customer.subscription.updated",
        effect=effect,
        customer_id=world.link(org_id, provider).customer_id,
        org_id=org_id if provider == "lago" else None,
    )


def store(world: SyncWorld, *webhooks: ParsedWebhook) -> list[StoredResult]:
    with world.database.write() as session:
        return [provider_webhooks.store(session, each, world.now) for each in webhooks]


def process(world: SyncWorld) -> list[LinkRef]:
    return provider_webhooks.process(world.database, world.clock)[1]


def check(  # noqa: PLR0913 - a hint has so many parts
    world: SyncWorld,
    org_id: str,
    provider: Provider,
    effect: WebhookEffect = "check",
    *,
    object_id: str | None = None,
    code: str | None = None,
) -> None:
    """The whole way of one hint: stored, counted, looked at."""
    store(world, replace(parsed_webhook(world, org_id, provider, effect), object_id=object_id, code=code))
    assert process(world) == [(provider, org_id)]
    world.reconcile_until_idle(org_id)
    world.wait(10)


def keep_ours(world: SyncWorld, org_id: str, provider: Provider) -> None:
    conflict_resolver.keep_ours(world.database, world.clock, org_id, provider)


def writes(world: SyncWorld) -> list[str]:
    return [call.operation for call in world.sandbox.calls() if call.method != "GET"]


def row(world: SyncWorld, name: str) -> ProviderWebhook:
    with world.database.read() as session:
        return session.scalars(select(ProviderWebhook).where(ProviderWebhook.id == name)).one()


@pytest.mark.parametrize("provider", BOTH)
def test_a_look_that_finds_nothing_changed_reads_and_changes_nothing_here_or_there(
    world: SyncWorld, provider: Provider
) -> None:
    org_id = synced(world)
    before, state = world.link(org_id, provider), world.sandbox.state()
    check(world, org_id, provider)
    after = world.link(org_id, provider)
    assert writes(world) == []
    assert world.sandbox.state() == state
    assert (after.checks_done, after.checks_requested) == (1, 1)
    unchanged = (
        "state",
        "applied_version",
        "desired_version",
        "applied_plan",
        "customer_fingerprint",
        "synced_at",
        "payment_status",
    )
    assert {name: getattr(after, name) for name in unchanged} == {name: getattr(before, name) for name in unchanged}
    assert world.count_requests() == ((2, 0) if provider == "stripe" else (0, 4))


@pytest.mark.slow
@pytest.mark.parametrize("provider", BOTH)
def test_a_burst_about_one_organization_costs_two_looks_at_most(world: SyncWorld, provider: Provider) -> None:
    org_id = synced(world)
    store(world, *[parsed_webhook(world, org_id, provider) for _ in range(30)])
    assert process(world) == [(provider, org_id)]
    one = world.run(org_id, provider)
    store(world, *[parsed_webhook(world, org_id, provider) for _ in range(30)])
    process(world)
    assert one.kind == "synced"
    world.reconcile_until_idle(org_id)
    world.wait(60)
    world.reconcile_until_idle(org_id)
    stripe, lago = world.count_requests()
    assert (stripe, lago) == ((4, 0) if provider == "stripe" else (0, 8))


def test_a_hint_in_mid_turn_is_looked_at_by_one_more(world: SyncWorld) -> None:
    org_id = synced(world)
    world.rename(org_id, "Acme Ltd")

    def somebody_changes_it() -> None:
        store(world, parsed_webhook(world, org_id, "stripe"))
        process(world)

    world.providers["stripe"].after_customer = somebody_changes_it
    assert world.run(org_id, "stripe").requeue_after is not None
    assert world.link(org_id, "stripe").checks_done < world.link(org_id, "stripe").checks_requested
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "stripe").checks_done == world.link(org_id, "stripe").checks_requested


def test_our_own_round_after_a_change_looks_behind_itself_and_rests(world: SyncWorld) -> None:
    """Whatever we do comes back as webhooks; they end in looks that write nothing, so there is no circle."""
    org_id = synced(world)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    world.sandbox.reset_calls()
    effects: tuple[WebhookEffect, ...] = ("started", "ended", "check")
    ours = world.link(org_id, "lago").subscription_id
    for effect in effects:
        store(world, replace(parsed_webhook(world, org_id, "lago", effect), object_id=ours))
        process(world)
        world.reconcile_until_idle(org_id)
        world.wait(10)
    assert writes(world) == []


@pytest.mark.parametrize("charging_provider", BOTH)
def test_a_customer_deleted_in_stripe_puts_the_link_on_hold_with_the_way_out(
    world: SyncWorld, charging_provider: Provider
) -> None:
    world.set_charging_provider(charging_provider)
    org_id = synced(world)
    customer_id = world.link(org_id, "stripe").customer_id
    world.sandbox.delete("stripe", "customers", str(customer_id))
    check(world, org_id, "stripe")
    link = world.link(org_id, "stripe")
    assert (link.state, link.error_code) == ("on_hold", CUSTOMER_DELETED)
    assert str(link.error_message).startswith(
        f"{customer_id} at Stripe: it was deleted in Stripe, which cannot be undone: set the right customer id"
    )
    assert writes(world) == []
    with world.database.read() as session:
        status = sync_status.version_status(session, org_id, world.now)
    assert status is not None
    assert {provider: held.is_synced for provider, held in status.providers.items()} == {"stripe": False, "lago": True}


def test_a_customer_deleted_in_lago_puts_the_link_on_hold_and_makes_no_other(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.delete("lago", "customers", org_id)
    check(world, org_id, "lago", "ended", object_id=world.link(org_id, "lago").subscription_id)
    link = world.link(org_id, "lago")
    assert link.state == "on_hold"
    assert "Lago knows no such customer: it was deleted" in str(link.error_message)
    assert world.lago_objects("customers") == []
    assert writes(world) == []


def test_a_subscription_that_ended_in_lago_is_not_charged_again_before_a_person_says_so(world: SyncWorld) -> None:
    org_id = synced(world)
    charged = len(world.sandbox.charges())
    world.sandbox.delete("lago", "subscriptions", org_id)
    after_its_end = len(world.sandbox.charges())
    check(world, org_id, "lago", "ended", object_id=world.link(org_id, "lago").subscription_id)
    link = world.link(org_id, "lago")
    assert (link.state, after_its_end >= charged) == ("on_hold", True)
    assert "ended at Lago, but not by billing-sync, so it is not created again automatically" in str(link.error_message)
    assert len(world.sandbox.charges()) == after_its_end
    keep_ours(world, org_id, "lago")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert world.link(org_id, "lago").state == "active"
    assert [each["status"] for each in world.lago_objects("subscriptions") if each["status"] == "active"] == ["active"]


def test_a_subscription_that_ended_in_stripe_is_for_a_person(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    ours = world.link(org_id, "stripe").subscription_id
    world.sandbox.delete("stripe", "subscriptions", str(ours))
    check(world, org_id, "stripe", "ended", object_id=ours)
    link = world.link(org_id, "stripe")
    assert link.state == "on_hold"
    assert str(link.error_message).startswith(
        f"subscription {ours}: it was ended in Stripe, not by us. To charge again"
    )
    assert writes(world) == []


@pytest.mark.parametrize("tier", ["starter", "enterprise"])
def test_a_plan_changed_in_lago_is_shown_and_not_changed_back(world: SyncWorld, tier: str) -> None:
    org_id = synced(world, "professional")
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code=tier)
    check(world, org_id, "lago")
    link = world.link(org_id, "lago")
    assert link.state == "on_hold"
    assert f"`billing-sync resolve {org_id} --theirs` to " in str(link.error_message)
    assert writes(world) == []
    assert world.organization(org_id).plan_tier == "professional"


def test_a_plan_changed_in_lago_is_ours_again_when_a_person_says_so(world: SyncWorld) -> None:
    org_id = synced(world, "professional")
    world.sandbox.patch("lago", "subscriptions", org_id, plan_code="starter")
    check(world, org_id, "lago")
    keep_ours(world, org_id, "lago")
    world.reconcile_until_idle(org_id)
    ours = world.link(org_id, "lago")
    assert (ours.state, ours.applied_plan, ours.applied_next_plan) == ("active", "professional", None)


def test_a_foreign_subscription_is_named_and_neither_joined_nor_ended(world: SyncWorld) -> None:
    org_id = synced(world)
    rogue = rogue_on(world, str(world.link(org_id, "stripe").customer_id))
    check(world, org_id, "stripe", "started", object_id=rogue)
    link = world.link(org_id, "stripe")
    assert (link.state, link.subscription_id) == ("on_hold", None)
    assert rogue in str(link.error_message)
    assert "end the subscription in Stripe" in str(link.error_message)
    assert writes(world) == []


@pytest.mark.parametrize("charging_provider", BOTH)
def test_a_downgrade_that_took_effect_settles_the_plan(world: SyncWorld, charging_provider: Provider) -> None:
    world.set_charging_provider(charging_provider)
    org_id = synced(world, "professional")
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.advance_time(days=32)
    check(world, org_id, charging_provider)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("starter", None)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert all(world.link(org_id, provider).state == "active" for provider in BOTH)


def test_a_failed_payment_is_shown_until_it_is_paid_and_changes_no_plan(world: SyncWorld) -> None:
    org_id = synced(world)
    invoice = world.sandbox.create("lago", "invoices", external_customer_id=org_id, error_code="insufficient_funds")
    check(world, org_id, "lago", "payment_failed", code="insufficient_funds")
    link = world.link(org_id, "lago")
    since = link.payment_since
    assert (link.payment_status, link.payment_code, link.state) == ("failed", "insufficient_funds", "active")
    check(world, org_id, "lago")
    assert world.link(org_id, "lago").payment_since == since
    world.sandbox.patch("lago", "invoices", invoice["lago_id"], payment_status="succeeded")
    check(world, org_id, "lago")
    link = world.link(org_id, "lago")
    assert (link.payment_status, link.payment_since, link.payment_code) == (None, None, None)
    assert world.organization(org_id).plan_tier == "professional"
    assert writes(world) == []


def test_a_payment_that_failed_at_stripe_is_read_from_the_customer(world: SyncWorld) -> None:
    world.set_charging_provider("stripe")
    org_id = synced(world)
    customer_id = world.link(org_id, "stripe").customer_id
    invoice = world.sandbox.create("stripe", "invoices", customer=customer_id)
    check(world, org_id, "stripe", "payment_failed", code="invoice.payment_failed")
    link = world.link(org_id, "stripe")
    assert (link.payment_status, link.payment_code, link.state) == ("failed", "invoice.payment_failed", "active")
    world.sandbox.patch("stripe", "invoices", invoice["id"], status="paid")
    check(world, org_id, "stripe")
    assert world.link(org_id, "stripe").payment_status is None


def test_a_failure_that_was_paid_before_it_was_heard_of_is_never_shown(world: SyncWorld) -> None:
    org_id = synced(world)
    check(world, org_id, "lago", "payment_failed", code="card_declined")
    link = world.link(org_id, "lago")
    assert (link.payment_status, link.payment_code) == (None, None)


def payment(world: SyncWorld, org_id: str) -> tuple[str | None, str | None]:
    link = world.link(org_id, "lago")
    return link.payment_status, link.payment_code


def close_dispute(world: SyncWorld, org_id: str) -> bool:
    with world.database.write() as session:
        return payment_problems.close_dispute(session, org_id)


def lost_dispute(world: SyncWorld, org_id: str) -> str:
    """A paid invoice whose dispute is lost, as Lago reports it."""
    invoice = world.sandbox.create("lago", "invoices", external_customer_id=org_id, payment_status="succeeded")
    world.sandbox.patch("lago", "invoices", invoice["lago_id"], payment_dispute_lost=True)
    check(world, org_id, "lago", "payment_failed", code="fraudulent")
    return str(invoice["lago_id"])


def test_a_lost_dispute_is_shown_until_its_invoice_is_voided(world: SyncWorld) -> None:
    org_id = synced(world)
    invoice = lost_dispute(world, org_id)
    assert payment(world, org_id) == ("dispute_lost", "fraudulent")
    assert world.link(org_id, "lago").state == "active"
    # Whether Lago counts the invoice as paid says nothing: the bank has the money.
    for status in ("failed", "succeeded"):
        world.sandbox.patch("lago", "invoices", invoice, payment_status=status)
        check(world, org_id, "lago")
        assert payment(world, org_id)[0] == ("failed" if status == "failed" else "dispute_lost")
    world.sandbox.patch("lago", "invoices", invoice, status="voided")
    check(world, org_id, "lago")
    assert payment(world, org_id) == (None, None)
    assert writes(world) == []


def test_a_lost_dispute_that_an_operator_closed_counts_no_more_and_the_next_one_does(world: SyncWorld) -> None:
    org_id = synced(world)
    lost_dispute(world, org_id)
    assert close_dispute(world, org_id)
    assert payment(world, org_id) == (None, None)
    check(world, org_id, "lago")
    assert payment(world, org_id) == (None, None)
    assert not close_dispute(world, org_id)
    world.wait(60)
    lost_dispute(world, org_id)
    assert payment(world, org_id) == ("dispute_lost", "fraudulent")


def test_an_invoice_that_nobody_pays_is_shown_once_it_is_overdue(world: SyncWorld) -> None:
    org_id = synced(world)
    invoice = world.sandbox.create("lago", "invoices", external_customer_id=org_id, payment_status="pending")
    check(world, org_id, "lago")
    assert payment(world, org_id) == (None, None)
    world.sandbox.patch("lago", "invoices", invoice["lago_id"], payment_overdue=True)
    check(world, org_id, "lago", "payment_failed", code="invoice.payment_overdue")
    assert payment(world, org_id) == ("overdue", "invoice.payment_overdue")
    since = world.link(org_id, "lago").payment_since
    check(world, org_id, "lago")
    assert world.link(org_id, "lago").payment_since == since
    world.sandbox.patch("lago", "invoices", invoice["lago_id"], payment_status="succeeded")
    check(world, org_id, "lago")
    assert payment(world, org_id) == (None, None)


@pytest.mark.parametrize(("charging_provider", "cents"), [("stripe", 4900), ("lago", 0)])
def test_an_overdue_invoice_that_nobody_has_to_pay_is_no_problem(
    world: SyncWorld, charging_provider: Provider, cents: int
) -> None:
    world.set_charging_provider(charging_provider)
    org_id = synced(world)
    invoice = world.sandbox.create(
        "lago", "invoices", external_customer_id=org_id, payment_status="pending", amount_cents=cents
    )
    world.sandbox.patch("lago", "invoices", invoice["lago_id"], payment_overdue=True)
    check(world, org_id, "lago", "payment_failed", code="invoice.payment_overdue")
    assert payment(world, org_id) == (None, None)


def test_why_nobody_can_pay_is_shown_before_that_nobody_did(world: SyncWorld) -> None:
    org_id = synced(world)
    check(world, org_id, "lago", "payer_rejected", code="resource_missing")
    invoice = world.sandbox.create("lago", "invoices", external_customer_id=org_id, payment_status="pending")
    world.sandbox.patch("lago", "invoices", invoice["lago_id"], payment_overdue=True)
    check(world, org_id, "lago")
    assert payment(world, org_id) == ("payer_rejected", "resource_missing")
    check(world, org_id, "lago", "payer_accepted")
    assert payment(world, org_id)[0] == "overdue"


def test_a_payer_that_is_not_taken_is_shown_until_it_is(world: SyncWorld) -> None:
    org_id = synced(world)
    check(world, org_id, "lago", "payer_rejected", code="resource_missing")
    link = world.link(org_id, "lago")
    assert (link.payment_status, link.payment_code) == ("payer_rejected", "resource_missing")
    check(world, org_id, "lago")
    assert world.link(org_id, "lago").payment_status == "payer_rejected"
    check(world, org_id, "lago", "payer_accepted")
    assert world.link(org_id, "lago").payment_status is None


def test_what_lago_reports_of_a_payer_that_we_know_costs_no_check(world: SyncWorld) -> None:
    org_id = synced(world)
    ours = world.link(org_id, "lago").payer_id
    reported = parsed_webhook(world, org_id, "lago", "payer_reported")
    store(world, replace(reported, id="ours", object_id=ours))
    assert process(world) == []
    assert row(world, "ours").state == "ignored"
    for payer in (None, "cus_theirs"):
        store(world, replace(reported, id=f"theirs {payer}", object_id=payer))
        assert process(world) == [("lago", org_id)]


def test_a_rejected_payer_is_right_again_once_lago_could_write_to_it(world: SyncWorld) -> None:
    org_id = synced(world)
    check(world, org_id, "lago", "payer_rejected", code="resource_missing")
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    assert payment(world, org_id) == (None, None)
    assert world.link(org_id, "lago").payment_since is None


def test_a_link_that_is_made_first_proves_nothing_about_its_payer(world: SyncWorld) -> None:
    """Lago answers 200 and reports later that Stripe does not know the payer."""
    without_payer = with_policy(world, PayerPolicy(sends_payer_to_lago=False))
    org_id = synced(without_payer)
    check(without_payer, org_id, "lago", "payer_rejected", code="resource_missing")
    world.now = without_payer.now
    world.rename(org_id, "Acme GmbH")
    world.run(org_id, "lago")
    assert world.link(org_id, "lago").payer_id is not None
    assert payment(world, org_id) == ("payer_rejected", "resource_missing")


def test_a_payer_that_is_rejected_during_our_write_stays_rejected(world: SyncWorld) -> None:
    org_id = synced(world)
    check(world, org_id, "lago", "payer_rejected", code="resource_missing")
    world.rename(org_id, "Acme GmbH")

    def meanwhile() -> None:
        store(world, replace(parsed_webhook(world, org_id, "lago", "payer_rejected"), code="resource_missing"))
        process(world)

    world.providers["lago"].after_customer = meanwhile
    world.run(org_id, "lago")
    assert payment(world, org_id) == ("payer_rejected", "resource_missing")


def test_what_a_turn_made_is_kept_also_where_its_check_puts_it_on_hold(world: SyncWorld) -> None:
    org_id = world.create()
    store(world, ParsedWebhook(provider="stripe", id="early", type="invoice.paid", effect="check", org_id=org_id))
    assert process(world) == [("stripe", org_id)]
    rogues: list[str] = []

    def somebody_sells_it_something() -> None:
        (customer,) = world.stripe_objects("customers")
        rogues.append(rogue_on(world, str(customer["id"])))

    world.providers["stripe"].after_customer = somebody_sells_it_something
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "stripe")
    (customer,) = world.stripe_objects("customers")
    assert (link.state, link.customer_id, link.intent) == ("on_hold", customer["id"], None)
    world.sandbox.delete("stripe", "subscriptions", rogues[0])
    keep_ours(world, org_id, "stripe")
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert len(world.stripe_objects("customers")) == 1


def rogue_on(world: SyncWorld, customer_id: str) -> str:
    (price,) = world.sandbox.preload_stripe_prices(
        [{"currency": "usd", "unit_amount": 500, "recurring": {"interval": "month"}, "product_data": {"name": "x"}}]
    )
    return str(world.sandbox.preload_stripe_subscription(customer_id, price["id"])["id"])


def test_what_this_link_knows_costs_no_look(world: SyncWorld) -> None:
    org_id = synced(world)
    ours = str(world.link(org_id, "lago").subscription_id)
    store(world, replace(parsed_webhook(world, org_id, "lago", "started"), object_id=ours, id="a"))
    store(world, replace(parsed_webhook(world, org_id, "lago", "ended"), object_id="the row before an upgrade", id="b"))
    assert process(world) == []
    assert {row(world, name).state for name in "ab"} == {"ignored"}
    assert world.count_requests() == (0, 0)


def test_whoever_is_unknown_or_deleted_costs_nothing_and_the_row_says_why(world: SyncWorld) -> None:
    org_id = synced(world)
    store(
        world, ParsedWebhook(provider="stripe", id="s", type="invoice.paid", effect="check", customer_id="cus_somebody")
    )
    store(world, ParsedWebhook(provider="lago", id="l", type="invoice.voided", effect="check", org_id="org_somebody"))
    store(world, ParsedWebhook(provider="lago", id="n", type="payment.succeeded", effect="payer_accepted"))
    assert process(world) == []
    assert {row(world, name).reason for name in "sln"} == {"not about one of our customers"}
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    world.sandbox.reset_calls()
    store(world, replace(parsed_webhook(world, org_id, "lago", "ended"), id="d"))
    assert process(world) == []
    assert "is deleted" in str(row(world, "d").reason)
    assert world.count_requests() == (0, 0)


def test_another_account_or_mode_is_refused_and_has_no_effect(world: SyncWorld) -> None:
    org_id = synced(world)
    refused = store(
        world,
        replace(parsed_webhook(world, org_id, "stripe"), account_id="acct_other"),
        replace(parsed_webhook(world, org_id, "stripe"), livemode=True),
        replace(parsed_webhook(world, org_id, "lago"), account_id="0c0ffee0-0000-4000-8000-000000000000"),
    )
    assert [each.state for each in refused] == ["rejected"] * 3
    assert process(world) == []
    assert world.link(org_id, "stripe").checks_requested == 0
    assert "live mode, but this database belongs to test mode" in str(refused[1].reason)


def test_the_same_hint_is_one_row_however_often_and_however_many_bring_it(world: SyncWorld) -> None:
    org_id = synced(world)
    same = parsed_webhook(world, org_id, "stripe")
    found: list[StoredResult] = []
    threads = [threading.Thread(target=lambda: found.extend(store(world, same))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.repeated for each in found) == [False] + [True] * 7
    assert process(world) == [("stripe", org_id)]
    assert store(world, same) == [StoredResult(state="handled", reason=None, repeated=True)]
    assert process(world) == []


def test_a_link_that_waits_for_a_person_is_not_woken_and_looks_when_it_goes_on(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.delete("stripe", "customers", str(world.link(org_id, "stripe").customer_id))
    check(world, org_id, "stripe")
    world.sandbox.reset_calls()
    store(world, replace(parsed_webhook(world, org_id, "stripe"), id="again"))
    assert process(world) == []
    world.reconcile_until_idle(org_id)
    assert (row(world, "again").state, world.count_requests()) == ("handled", (0, 0))


def test_the_sweep_hands_over_a_link_whose_ring_was_lost(world: SyncWorld) -> None:
    org_id = synced(world)
    store(world, parsed_webhook(world, org_id, "lago"))
    process(world)
    with world.database.write() as session:
        assert due_links.dispatch(session, "lago", 10, world.now) == []
    world.wait(backoff.MAX_QUEUE_DELAY_SECONDS * 2)
    with world.database.write() as session:
        assert due_links.dispatch(session, "lago", 10, world.now) == [org_id]


def test_what_nobody_handled_comes_due_again_and_what_is_old_goes(world: SyncWorld) -> None:
    org_id = synced(world)
    fresh, dull = parsed_webhook(world, org_id, "stripe"), parsed_webhook(world, org_id, "stripe", None)
    store(world, fresh, dull)
    with world.database.write() as session:
        assert (provider_webhooks.dispatch(session, world.now), provider_webhooks.dispatch(session, world.now)) == (
            1,
            0,
        )
    world.wait(provider_webhooks.WEBHOOK_REDISPATCH_AFTER.total_seconds())
    with world.database.write() as session:
        assert provider_webhooks.any_due(session, world.now)
        assert provider_webhooks.dispatch(session, world.now) == 1
    world.wait((provider_webhooks.PROVIDER_WEBHOOK_RETENTION + timedelta(days=1)).total_seconds())
    assert provider_webhooks.delete_expired(world.database, world.clock) == 1
    with world.database.read() as session:
        assert session.scalars(select(ProviderWebhook.id)).all() == [fresh.id]


def test_a_look_that_fails_is_tried_again_like_any_work(world: SyncWorld) -> None:
    org_id = synced(world)
    world.sandbox.add_fault("lago", "GET /api/v1/customers/{id}", "500_before", times=9)
    store(world, parsed_webhook(world, org_id, "lago"))
    process(world)
    outcome = world.run(org_id, "lago")
    assert outcome.kind == "retry"
    assert world.link(org_id, "lago").checks_done == 0
    world.sandbox.clear_faults()
    world.wait(60)
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "lago")
    assert (link.checks_done, link.error_kind, link.attempts) == (1, None, 0)


def test_an_organization_that_is_looked_at_stays_in_sync(world: SyncWorld) -> None:
    org_id = synced(world)
    store(world, parsed_webhook(world, org_id, "stripe"))
    process(world)
    with world.database.read() as session:
        status = sync_status.version_status(session, org_id, world.now)
        overview = status_overview.summarize(session)
    assert status is not None
    assert status.in_sync
    assert (overview.providers["stripe"].in_sync, overview.providers["stripe"].behind) == (1, 0)


@pytest.mark.parametrize("charging_provider", BOTH)
def test_a_downgrade_that_came_is_not_undone_where_the_look_after_it_fails(
    world: SyncWorld, charging_provider: Provider
) -> None:
    world.set_charging_provider(charging_provider)
    org_id = synced(world, "professional")
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.advance_time(days=32)
    charged = len(world.sandbox.charges())
    due_links.recheck_due_downgrades(world.database, 10, world.now, world.management)
    store(world, parsed_webhook(world, org_id, charging_provider))
    process(world)
    world.sandbox.add_fault(charging_provider, customer_reads(charging_provider), "500_before", times=9)
    world.run(org_id, charging_provider)
    world.sandbox.clear_faults()
    world.wait(60)
    world.reconcile_until_idle(org_id)
    organization = world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("starter", None)
    assert len(world.sandbox.charges()) == charged
    assert world.is_in_sync(org_id)


@pytest.mark.parametrize("check_fails", [False, True])
@pytest.mark.parametrize("charging_provider", BOTH)
def test_a_charger_that_gives_way_wakes_the_other_also_where_it_looks(
    world: SyncWorld, sandbox_server: Sandbox, charging_provider: Provider, *, check_fails: bool
) -> None:
    if charging_provider == "stripe":
        world = with_policy(world, PayerPolicy())
    other: Provider = "lago" if charging_provider == "stripe" else "stripe"
    world.set_charging_provider(charging_provider, "starter")
    world.set_charging_provider(other, "enterprise")
    org_id = synced(world, "starter")
    world.change_plan(org_id, "enterprise")
    world.run(org_id, other)
    assert world.link(org_id, other).error_code == "double_charging"
    if charging_provider == "lago":
        nobody = {"external_id": org_id, "billing_configuration": {"payment_provider": None}}
        headers = {"Authorization": "Bearer sandbox"}
        httpx.post(f"{sandbox_server.url}/api/v1/customers", json={"customer": nobody}, headers=headers)
    store(world, parsed_webhook(world, org_id, charging_provider))
    process(world)
    if check_fails:
        world.sandbox.add_fault(charging_provider, customer_reads(charging_provider), "500_before", times=9)
        world.run(org_id, charging_provider)
        world.sandbox.clear_faults()
        world.wait(60)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert {world.link(org_id, each).state for each in BOTH} == {"active"}


def customer_reads(provider: Provider) -> str:
    return "GET /v1/customers/{id}" if provider == "stripe" else "GET /api/v1/customers/{id}"


def test_of_a_payer_that_was_refused_and_then_taken_the_later_word_counts(world: SyncWorld) -> None:
    org_id = synced(world)
    store(world, replace(parsed_webhook(world, org_id, "lago", "payer_rejected"), id="b", code="resource_missing"))
    world.wait(1)
    store(world, replace(parsed_webhook(world, org_id, "lago", "payer_accepted"), id="a"))
    world.wait(1)
    with world.database.write() as session:
        provider_webhooks.dispatch(session, world.now)
    process(world)
    assert world.link(org_id, "lago").payment_status is None


@pytest.mark.parametrize("what", ["ended", "lowered"])
def test_what_somebody_did_in_lago_is_not_undone_by_another_change_here(world: SyncWorld, what: str) -> None:
    org_id = synced(world)
    if what == "ended":
        world.sandbox.delete("lago", "subscriptions", org_id)
    else:
        world.sandbox.patch("lago", "subscriptions", org_id, plan_code="starter")
    check(world, org_id, "lago")
    before = world.lago_objects("subscriptions")
    charged = len(world.sandbox.charges())
    world.rename(org_id, "Acme GmbH")
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "lago")
    assert (link.state, link.error_code) == ("on_hold", "changed_at_provider")
    assert link.applied_version < link.desired_version
    assert len(world.sandbox.charges()) == charged
    assert world.lago_objects("subscriptions") == before


@pytest.mark.parametrize("heard_of", [True, False])
def test_one_that_ended_in_lago_is_not_charged_again_when_the_day_of_its_downgrade_comes(
    world: SyncWorld, *, heard_of: bool
) -> None:
    org_id = synced(world, "professional")
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.sandbox.delete("lago", "subscriptions", org_id)
    if heard_of:
        check(world, org_id, "lago", "ended", object_id=world.link(org_id, "lago").subscription_id)
        assert world.link(org_id, "lago").state == "on_hold"
    charged = len(world.sandbox.charges())
    world.advance_time(days=32)
    assert due_links.recheck_due_downgrades(world.database, 10, world.now, world.management) == 1
    world.reconcile_until_idle(org_id)
    assert world.link(org_id, "lago").state == ("on_hold" if heard_of else "parked")
    assert len(world.sandbox.charges()) == charged
    if heard_of:
        keep_ours(world, org_id, "lago")
    else:
        world.change(org_id, commands.retry)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert [each["status"] for each in world.lago_objects("subscriptions")].count("active") == 1


def replay(world: SyncWorld, webhook_id: str, provider: Provider = "lago") -> StoredResult | None:
    with world.database.write() as session:
        return provider_webhooks.replay(session, provider, webhook_id, world.now)


def test_a_webhook_that_was_processed_is_processed_again_on_request(world: SyncWorld) -> None:
    org_id = synced(world)
    webhook = parsed_webhook(world, org_id, "lago")
    store(world, webhook)
    assert process(world) == [("lago", org_id)]
    assert replay(world, webhook.id) == StoredResult(state="stored", reason=None, repeated=False)
    assert replay(world, webhook.id) == StoredResult(state="stored", reason=None, repeated=True)
    with world.database.read() as session:
        assert provider_webhooks.any_due(session, world.now)
    assert process(world) == [("lago", org_id)]
    assert world.link(org_id, "lago").checks_requested == 2
    assert replay(world, "evt_none") is None


def test_a_replay_takes_nothing_back_that_a_later_webhook_said_of_a_payer(world: SyncWorld) -> None:
    org_id = synced(world)
    rejected = replace(parsed_webhook(world, org_id, "lago", "payer_rejected"), code="resource_missing")
    store(world, rejected)
    process(world)
    world.wait(1)
    check(world, org_id, "lago", "payer_accepted")
    refused = replay(world, rejected.id)
    assert refused is not None
    assert refused.repeated
    assert "the later webhook" in (refused.reason or "")
    assert process(world) == []
    assert world.link(org_id, "lago").payment_status is None


def test_a_webhook_of_another_account_stays_rejected_until_the_account_is_ours(world: SyncWorld) -> None:
    org_id = synced(world)
    foreign = replace(parsed_webhook(world, org_id, "stripe"), account_id="acct_other")
    with world.database.write() as session:
        own = session.get_one(ProviderStatus, "stripe")
        own.account_id = "acct_ours"
    assert [each.state for each in store(world, foreign)] == ["rejected"]
    refused = replay(world, foreign.id, "stripe")
    assert refused is not None
    assert (refused.state, refused.repeated) == ("rejected", True)
    with world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").account_id = "acct_other"
    assert replay(world, foreign.id, "stripe") == StoredResult(state="stored", reason=None, repeated=False)


@contextmanager
def failing_link(world: SyncWorld, org_id: str, error: Exception) -> Iterator[None]:
    """No check can be requested of this organization's links."""

    def fail(*arguments: object) -> None:
        if str(arguments[2]).startswith("UPDATE billing_links") and org_id in str(arguments[3]):
            raise error

    event.listen(world.database.engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(world.database.engine, "before_cursor_execute", fail)


def test_a_webhook_that_fails_delays_no_other_is_rejected_in_the_end_and_can_be_replayed(world: SyncWorld) -> None:
    failing, other = synced(world), synced(world, name="Other")
    failed = parsed_webhook(world, failing, "stripe")
    store(world, failed, parsed_webhook(world, other, "stripe"))
    since = world.now
    with failing_link(world, failing, StrangeError("nobody-may-read-this")), capture_logs() as logs:
        assert process(world) == [("stripe", other)]
        waiting = row(world, failed.id)
        assert (waiting.state, waiting.due_at - since) == ("stored", provider_webhooks.MIN_WEBHOOK_RETRY_WAIT)
        assert str(waiting.reason).startswith(
            "the program failed unexpectedly (StrangeError at test_provider_webhooks.py:"
        )
        assert provider_webhooks.process(world.database, world.clock) == (0, [])
        while row(world, failed.id).state == "stored":
            world.now = row(world, failed.id).due_at
            store(world, parsed_webhook(world, other, "stripe"))
            with world.database.write() as session:
                assert provider_webhooks.dispatch(session, world.now) == 2
            assert process(world)[-1] == ("stripe", other)
    assert row(world, failed.id).state == "rejected"
    assert len([each for each in logs if each["event"] == "provider_webhook_failed_unexpectedly"]) == 9
    assert "nobody-may-read-this" not in f"{logs} {row(world, failed.id).reason}"
    with world.database.read() as session:
        (shown,), _ = inbox_messages.list_messages(session, ["rejected"], 10)
    assert (shown.id, shown.reason) == (failed.id, row(world, failed.id).reason)
    assert replay(world, failed.id, "stripe") == StoredResult(state="stored", reason=None, repeated=False)
    assert process(world) == [("stripe", failing)]
    assert (row(world, failed.id).state, row(world, failed.id).reason) == ("handled", None)


def test_an_outage_of_the_database_fails_no_webhook(world: SyncWorld) -> None:
    org_id = synced(world)
    webhook = parsed_webhook(world, org_id, "stripe")
    store(world, webhook)
    outage = OperationalError("UPDATE", {}, Exception("the server is gone"))
    with failing_link(world, org_id, outage), pytest.raises(OperationalError):
        process(world)
    assert (row(world, webhook.id).state, row(world, webhook.id).reason) == ("stored", None)
    assert process(world) == [("stripe", org_id)]
