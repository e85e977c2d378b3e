"""Many organizations move to Stripe and back, and a worker is killed once in each move of each: no day is paid twice.

Lago bills whole days, also the one of an end (lago.md 5.6), and Stripe seconds. So the day of a move itself costs what
Lago takes for it, and in Stripe the part of it that Stripe charged.
"""

from __future__ import annotations

import calendar
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Final

import httpx
import pytest

from core.catalog import publishing
from core.ports.spec import Provider
from core.reconcile import charging_moves
from core.reconcile.charging_moves import MoveRules
from tests.money.payments import PaymentBooks
from tests.money.provider_books import ActionHistory, Books, Doc
from tests.money.tally import ChargedTwiceError
from tests.scenarios.test_charging_move import KILLS_TO_LAGO, KILLS_TO_STRIPE
from tests.support.charging_moves import refunding
from tests.support.drift_harness import DriftHarness
from tests.support.sync_world import SyncWorld, WorkerDiedError, do_nothing, kill_worker

SOLD_AT: Final = datetime(2031, 3, 10, 12, tzinfo=UTC)
TO_STRIPE_AT: Final = datetime(2031, 3, 15, 12, tzinfo=UTC)
TO_LAGO_AT: Final = datetime(2031, 3, 22, 12, tzinfo=UTC)
# Within the next month of both.
SEEN_AT: Final = datetime(2031, 4, 20, 12, tzinfo=UTC)
TIER: Final = "professional"
PRICE: Final = 4900
LONGER_THAN_A_LEASE: Final = 61
MOST_SWEEPS: Final = 15
# Amounts are whole cents, so what is computed from them is a part of a day off.
ROUNDING_DAYS: Final = 0.02

Kill = tuple[Provider, str]


@dataclass(kw_only=True)
class Movers:
    """The organizations, and the reads of both providers that go around the product."""

    world: SyncWorld
    reads: httpx.Client
    history: ActionHistory = field(default_factory=ActionHistory)
    customers: dict[str, str] = field(default_factory=dict)
    """The Stripe customer of each organization."""

    @property
    def org_ids(self) -> list[str]:
        return sorted(self.customers)

    def sell(self, count: int) -> None:
        self._set_clock(SOLD_AT)
        for number in range(count):
            org_id = self.world.create(f"Acme {number}", plan_tier=TIER)
            self.world.reconcile_until_idle(org_id)
            self.customers[org_id] = self.world.link(org_id, "stripe").customer_id or ""
            self.history.asked[org_id].add(TIER)
            self.check_attempt(org_id)
        self.check()

    def move(self, to: Provider, at: datetime, kills: list[Kill]) -> None:
        self._set_clock(at)
        self.world.set_charging_provider(to)
        with self.world.database.read() as session:
            listed = charging_moves.list_moves(session, MoveRules(catalog=refunding(self.world.catalog), to=to))
        assert [(each.org_id, each.state) for each in listed] == [(org_id, "can_move") for org_id in self.org_ids]
        for org_id in self.org_ids:
            self.history.words[org_id] += 1
            self.world.change(
                org_id,
                lambda change, organization: charging_moves.begin(
                    change, organization, self.world.catalog, to, is_expected=False
                ),
            )
        self._sweep({org_id: kills[number % len(kills)] for number, org_id in enumerate(self.org_ids)})

    def check_attempt(self, org_id: str) -> None:
        """Read who charges at both providers, after each attempt. ``check`` reads the rest after each sweep."""
        subscriptions = self._get("/v1/subscriptions", customer=self.customers[org_id])["data"]
        payer = self._get(f"/api/v1/customers/{org_id}")["customer"]["billing_configuration"].get(
            "provider_customer_id"
        )
        charging = [*(each["id"] for each in subscriptions), *([payer] if payer is not None else [])]
        if len(charging) > 1:
            message = f"{org_id} is charged by {charging}"
            raise ChargedTwiceError(message)

    def check(self) -> Books:
        books = Books(state=self.world.sandbox.state(), history=self.history, catalog=self.world.catalog)
        books.check(self.world.now)
        PaymentBooks(books=books).check()
        return books

    def _sweep(self, kills: dict[str, Kill]) -> None:
        """As workers do, until all are in sync. A killed attempt has its lease until it ends."""
        for _ in range(MOST_SWEEPS):
            behind = [org_id for org_id in self.org_ids if not self.world.is_in_sync(org_id)]
            if not behind:
                assert kills == {}, f"no kill at {kills}"
                return
            for org_id in behind:
                for provider in ("lago", "stripe"):
                    self._attempt(org_id, provider, kills)
            self.check()
            self.world.advance_time(seconds=LONGER_THAN_A_LEASE)
        message = f"not in sync after {MOST_SWEEPS} sweeps: {behind}"
        raise AssertionError(message)

    def _attempt(self, org_id: str, provider: Provider, kills: dict[str, Kill]) -> None:
        kill = kills.get(org_id)
        if kill is not None:
            setattr(self.world.providers[kill[0]], kill[1], kill_worker)
        try:
            self.world.run(org_id, provider)
        except WorkerDiedError:
            del kills[org_id]
        if kill is not None:
            setattr(self.world.providers[kill[0]], kill[1], do_nothing)
        self.check_attempt(org_id)

    def _get(self, path: str, **params: str) -> Doc:
        found = self.reads.get(path, params=params)
        found.raise_for_status()
        document: Doc = found.json()
        return document

    def _set_clock(self, moment: datetime) -> None:
        self.world.now = moment
        self.world.sandbox.set_clock(moment)


@pytest.fixture
def movers(world: SyncWorld) -> Iterator[Movers]:
    with httpx.Client(base_url=world.url, headers={"Authorization": "Bearer sk_test_sandbox"}) as reads:
        yield Movers(world=world, reads=reads)


def name_usage_plan(world: SyncWorld) -> None:
    plan = world.catalog.plan(TIER).model_copy(update={"lago_usage_plan_code": f"{TIER}_usage"})
    world.catalog = world.catalog.model_copy(update={"plans": {**world.catalog.plans, TIER: plan}})
    publishing.publish(world.catalog, world.providers.values())


def check_subscriptions(books: Books, org_id: str, *, at_stripe: int, plan_code: str, payer: str | None) -> None:
    assert len(books.stripe_customers(org_id)) == 1
    assert [each["status"] for each in books.stripe_subscriptions(org_id)] == ["active"] * at_stripe
    found = [(each["status"], each["plan_code"]) for each in books.lago_subscriptions(org_id)]
    assert found == [("active", plan_code)]
    assert books.payer(org_id) == payer


def paid_days_at_lago(books: Books, org_id: str) -> dict[date, float]:
    """What Lago billed while it had a payer, less what it credited, as parts of days."""
    paid: defaultdict[date, float] = defaultdict(float)
    for each in books.state["charges"]:
        at = datetime.fromisoformat(each["at"])
        if each["provider"] != "lago" or each["customer"] != org_id or each["price"] == 0:
            continue
        if each["amount"] > 0 and TO_STRIPE_AT <= at < TO_LAGO_AT:
            continue  # it had no payer: check_attempt
        month = calendar.monthrange(at.year, at.month)[1]
        days = round(abs(each["amount"]) * month / PRICE)
        first = at.day if each["amount"] > 0 else month - days + 1
        assert first + days - 1 == month, f"not up to the end of the month: {each}"
        for day in range(first, month + 1):
            paid[date(at.year, at.month, day)] += 1 if each["amount"] > 0 else -1
    return paid


def paid_days_in_stripe(books: Books, org_id: str) -> dict[date, float]:
    """What Stripe invoiced, less its credit notes. A credit note is for the end of the period."""
    paid: defaultdict[date, float] = defaultdict(float)
    for invoice in books.state["invoices"]:
        if books.history.owners.get(invoice["customer"]) != org_id or invoice["status"] == "void":
            continue
        (line,) = invoice["lines"]["data"]
        start, end = (datetime.fromtimestamp(line["period"][name], UTC) for name in ("start", "end"))
        credited = sum(each["amount"] for each in books.state["credit_notes"] if each["invoice"] == invoice["id"])
        until = end - (end - start) * (credited / line["amount"])
        day = start.replace(hour=0, minute=0, second=0)
        while day < until:
            part = min(until, day + timedelta(days=1)) - max(start, day)
            paid[day.date()] += part / timedelta(days=1)
            day += timedelta(days=1)
    return paid


def check_no_day_is_paid_twice(books: Books, org_id: str) -> set[date]:
    """Returns the days that somebody was paid for."""
    lago, stripe = paid_days_at_lago(books, org_id), paid_days_in_stripe(books, org_id)
    moved_on = {TO_STRIPE_AT.date(), TO_LAGO_AT.date()}
    for day in {*lago, *stripe}:
        most = max(lago.get(day, 0), stripe.get(day, 0)) if day in moved_on else lago.get(day, 0) + stripe.get(day, 0)
        if most > 1 + ROUNDING_DAYS:
            message = f"{org_id} paid {lago.get(day, 0)} of {day} to Lago and {stripe.get(day, 0)} to Stripe"
            raise ChargedTwiceError(message)
    return {day for day in {*lago, *stripe} if lago.get(day, 0) + stripe.get(day, 0) > ROUNDING_DAYS}


def check_credits(books: Books, org_id: str) -> None:
    """Lago credits the whole days after the end, and Stripe the seconds after it, each once."""
    at_lago = [
        each["amount"]
        for each in books.state["charges"]
        if each["provider"] == "lago" and each["customer"] == org_id and each["reason"] == "termination_credit"
    ]
    # Half up, as Lago rounds: 16 of 31 days.
    assert at_lago == [-((2 * PRICE * (31 - TO_STRIPE_AT.day) + 31) // (2 * 31))]
    (customer,) = books.stripe_customers(org_id)
    notes = [each for each in books.state["credit_notes"] if each["customer"] == customer["id"]]
    assert [each["status"] for each in notes] == ["issued"]
    PaymentBooks(books=books).check_that_it_left(org_id)


def move_there_and_back(movers: Movers, count: int, code_at_stripe: str) -> None:
    movers.sell(count)
    movers.move("stripe", TO_STRIPE_AT, KILLS_TO_STRIPE)
    books = movers.check()
    for org_id in movers.org_ids:
        check_subscriptions(books, org_id, at_stripe=1, plan_code=code_at_stripe, payer=None)
        assert check_no_day_is_paid_twice(books, org_id)
    movers.move("lago", TO_LAGO_AT, KILLS_TO_LAGO)
    books = movers.check()
    for org_id in movers.org_ids:
        payer = movers.customers[org_id]
        check_subscriptions(books, org_id, at_stripe=0, plan_code=TIER, payer=payer)
        check_credits(books, org_id)
    assert DriftHarness(movers.world).findings() == []


def check_the_next_month(movers: Movers, unpaid: set[date]) -> None:
    """Each day since the sale is paid once, but for ``unpaid``."""
    movers.world.advance_time(seconds=(SEEN_AT - movers.world.now).total_seconds())
    books = movers.check()
    days = {SOLD_AT.date() + timedelta(days=number) for number in range(52)}
    for org_id in movers.org_ids:
        assert days - check_no_day_is_paid_twice(books, org_id) == unpaid


AFTER_THE_MOVE_BACK: Final = {date(2031, 3, day) for day in range(TO_LAGO_AT.day + 1, 32)}


@pytest.mark.timeout(300)
def test_many_move_to_stripe_and_back(movers: Movers) -> None:
    move_there_and_back(movers, 8, TIER)
    # Lago billed these days when nobody paid it, and does not bill them again.
    check_the_next_month(movers, AFTER_THE_MOVE_BACK)


@pytest.mark.timeout(300)
def test_many_move_to_stripe_and_back_with_a_usage_plan(movers: Movers) -> None:
    name_usage_plan(movers.world)
    move_there_and_back(movers, 8, f"{TIER}_usage")
    check_the_next_month(movers, set())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_two_hundred_move_to_stripe_and_back(movers: Movers) -> None:
    move_there_and_back(movers, 200, TIER)
    check_the_next_month(movers, AFTER_THE_MOVE_BACK)
