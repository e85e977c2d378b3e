"""Organizations that were sold a former code are moved to another price: listed, applied, noticed, started, done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from core.catalog.plans import ChargingProvider
from core.flow_control.payment_brake import PaymentLimit
from core.price_moves import due, table
from core.price_moves.table import PriceMoveFileError
from core.reconcile import payment_holds
from tests.support.adoption_harness import AdoptionHarness
from tests.support.drift_harness import DriftHarness
from tests.support.former_codes import NEW, SOLD, give_new_code, plans_at, sold
from tests.support.price_moves import PriceMoves
from tests.support.sync_world import SyncWorld, kill_worker

pytestmark = pytest.mark.slow


@pytest.fixture(params=["lago", "stripe"])
def moves(request: pytest.FixtureRequest, world: SyncWorld) -> Iterator[PriceMoves]:
    provider: ChargingProvider = request.param
    if provider == "stripe":
        world.set_charging_provider("stripe")
    harness = AdoptionHarness(world=world, url=world.url)
    yield PriceMoves(world=world, provider=provider, harness=harness)
    harness.close()


def paid(moves: PriceMoves) -> list[int]:
    """The amounts of all invoices of the provider that charges."""
    charges = [each for each in moves.world.sandbox.charges() if each["provider"] == moves.provider]
    return [int(each["amount"]) for each in charges if each["amount"]]


def settle(moves: PriceMoves, org_id: str) -> None:
    moves.sweep()
    moves.world.reconcile_until_idle(org_id)


def test_listed_with_both_amounts_and_the_day_and_nothing_is_changed(moves: PriceMoves, tmp_path: Path) -> None:
    org_id = sold(moves.world)
    give_new_code(moves.world)
    rows = moves.rows(notice_days=10)
    (row,) = rows
    assert (row.org_id, row.amount_before, row.amount_after, row.currency) == (org_id, 4900, 5400, "USD")
    assert row.effective_at == moves.world.now + timedelta(days=10)
    assert row.reason is None
    assert moves.through_file(tmp_path, rows) == rows
    assert moves.harness.writes() == []


def test_at_once_after_its_notice(moves: PriceMoves, drift_harness: DriftHarness) -> None:
    world = moves.world
    org_id = sold(world)
    give_new_code(world)
    rows = moves.rows(notice_days=10)
    assert [each.kind for each in moves.apply(rows)] == ["applied"]
    assert [each.kind for each in moves.apply(rows)] == ["already_applied"]
    settle(moves, org_id)
    (notice,) = moves.notices(org_id)
    assert (notice["amount_before"], notice["amount_after"], notice["tier"]) == (4900, 5400, "professional")
    assert plans_at(world, org_id, moves.provider) == (SOLD[moves.provider], None)
    world.advance_time(days=9)
    settle(moves, org_id)
    assert plans_at(world, org_id, moves.provider) == (SOLD[moves.provider], None)
    world.advance_time(days=1, minutes=1)
    settle(moves, org_id)
    assert plans_at(world, org_id, moves.provider) == (NEW, None)
    world.advance_time(minutes=11)
    settle(moves, org_id)
    assert moves.move(org_id).state == "done"
    assert len(moves.notices(org_id)) == 1
    assert drift_harness.findings() == []


@pytest.mark.parametrize("amount_change", [500, -500, 0])
def test_at_the_end_of_the_period_the_old_price_until_then_and_the_new_one_from_then(
    moves: PriceMoves, drift_harness: DriftHarness, amount_change: int
) -> None:
    world = moves.world
    org_id = sold(world)
    assert paid(moves) == [4900]
    give_new_code(world, amount_change=amount_change)
    (row,) = moves.rows(at_period_end=True, notice_days=5)
    moves.apply([row])
    assert row.effective_at is not None
    for until_then in (timedelta(days=5), timedelta(hours=12)):
        world.advance_time(seconds=(row.effective_at - until_then - world.now).total_seconds())
        settle(moves, org_id)
    settle(moves, org_id)
    assert len(moves.notices(org_id)) == 1
    assert plans_at(world, org_id, moves.provider)[0] == SOLD[moves.provider]
    assert paid(moves) == [4900]
    assert drift_harness.findings() == []
    for _ in range(4):
        world.advance_time(hours=9)
        settle(moves, org_id)
    amounts = paid(moves)
    assert (amounts[0], sum(amounts[1:])) == (4900, 4900 + amount_change), amounts
    assert plans_at(world, org_id, moves.provider) == (NEW, None)
    assert moves.move(org_id).state == "done"
    assert world.organization(org_id).plan_tier == "professional"
    assert drift_harness.findings() == []


def test_a_lower_price_in_lago_waits_for_the_end_of_the_period(moves: PriceMoves) -> None:
    sold(moves.world)
    give_new_code(moves.world, amount_change=-500)
    (row,) = moves.rows()
    assert (row.reason is None) == (moves.provider == "stripe")


def test_who_cannot_be_moved_is_listed_with_the_reason_and_is_not_moved(moves: PriceMoves) -> None:
    world = moves.world
    org_id = sold(world)
    give_new_code(world)
    world.change_plan(org_id, "starter")
    (row,) = moves.rows()
    assert row.reason == "its plan changes to starter at the end of the period"
    assert [each.kind for each in moves.apply([row])] == ["not_listed"]


def test_who_changed_since_the_list_is_left_and_two_files_do_not_overlap(moves: PriceMoves) -> None:
    world = moves.world
    org_id = sold(world)
    give_new_code(world)
    (row,) = moves.rows()
    world.rename(org_id, "Globex")
    world.reconcile_until_idle(org_id)
    assert [each.kind for each in moves.apply([row])] == ["left"]
    (row,) = moves.rows()
    moves.apply([row])
    later = replace(row, effective_at=world.now + timedelta(days=1))
    assert [each.kind for each in moves.apply([later])] == ["overlaps"]
    assert [each.reason for each in moves.rows()] == ["it is moved by another file already"]


def test_a_file_whose_amount_was_changed_is_refused_by_its_line(moves: PriceMoves, tmp_path: Path) -> None:
    sold(moves.world)
    give_new_code(moves.world)
    moves.through_file(tmp_path, moves.rows())
    path = tmp_path / "moves.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("5400", "5500"), encoding="utf-8")
    with pytest.raises(PriceMoveFileError, match="line 2, column new_amount: it is not as it was written"):
        table.read(path)


def test_withdrawn_before_it_starts_nothing_is_sent(moves: PriceMoves) -> None:
    world = moves.world
    org_id = sold(world)
    give_new_code(world)
    moves.apply(moves.rows(notice_days=5))
    moves.sweep()
    world.change(org_id, lambda change, _: due.withdraw(change, org_id, SOLD[moves.provider], NEW))
    world.advance_time(days=40)
    settle(moves, org_id)
    assert moves.move(org_id).state == "withdrawn"
    assert plans_at(world, org_id, moves.provider) == (SOLD[moves.provider], None)


@pytest.mark.parametrize("is_expected", [True, False])
def test_only_an_expected_move_takes_no_place_of_the_hour(moves: PriceMoves, is_expected: bool) -> None:  # noqa: FBT001
    world = moves.world
    org_id = sold(world)
    give_new_code(world)
    world.payment_limit = PaymentLimit(changes=0)
    moves.apply(moves.rows(), is_expected=is_expected)
    settle(moves, org_id)
    settle(moves, org_id)
    assert (plans_at(world, org_id, moves.provider)[0] == NEW) == is_expected
    if not is_expected:
        assert world.link(org_id, moves.provider).error_code == "plan_change_on_hold"
        world.change(org_id, lambda change, found: payment_holds.release(change, found, world.catalog, "it is meant"))
        settle(moves, org_id)
    assert plans_at(world, org_id, moves.provider)[0] == NEW


def test_what_the_brake_holds_can_be_withdrawn_and_a_release_then_sends_nothing(moves: PriceMoves) -> None:
    world = moves.world
    org_id = sold(world)
    give_new_code(world)
    world.payment_limit = PaymentLimit(changes=0)
    moves.apply(moves.rows())
    settle(moves, org_id)
    settle(moves, org_id)
    assert world.link(org_id, moves.provider).error_code == "plan_change_on_hold"
    world.change(org_id, lambda change, found: payment_holds.drop(change, found, "it was wrong"))
    world.change(org_id, lambda change, _: due.withdraw(change, org_id, SOLD[moves.provider], NEW))
    world.change(org_id, lambda change, found: payment_holds.release(change, found, world.catalog, "it was wrong"))
    settle(moves, org_id)
    assert moves.move(org_id).state == "withdrawn"
    assert plans_at(world, org_id, moves.provider) == (SOLD[moves.provider], None)
    assert world.is_in_sync(org_id)


def test_a_start_after_the_end_of_the_period_waits_for_the_next_one_and_says_so(moves: PriceMoves) -> None:
    """As after an outage of all workers, once the notice has come."""
    world = moves.world
    org_id = sold(world)
    give_new_code(world)
    moves.apply(moves.rows(at_period_end=True, notice_days=10))
    day = moves.move(org_id).effective_at
    world.advance_time(seconds=(day - timedelta(days=9, hours=12) - world.now).total_seconds())
    moves.sweep()
    assert len(moves.notices(org_id)) == 1
    world.advance_time(days=15)
    settle(moves, org_id)
    later = moves.move(org_id)
    assert plans_at(world, org_id, moves.provider)[0] == SOLD[moves.provider]
    assert (later.effective_at > day, later.effective_at > world.now) == (True, True)
    world.advance_time(seconds=(later.effective_at - timedelta(days=9, hours=12) - world.now).total_seconds())
    moves.sweep()
    days = {each["effective_at"] for each in moves.notices(org_id)}
    assert days == {day.isoformat(), later.effective_at.isoformat()}


@pytest.mark.parametrize("amount_change", [500, -500])
def test_without_days_of_notice_it_starts_at_the_end_of_the_period_all_the_same(
    moves: PriceMoves, amount_change: int
) -> None:
    world = moves.world
    org_id = sold(world)
    give_new_code(world, amount_change=amount_change)
    moves.apply(moves.rows(at_period_end=True))
    for _ in range(36):
        world.advance_time(days=1)
        settle(moves, org_id)
    assert len(moves.notices(org_id)) == 1
    assert (moves.move(org_id).state, plans_at(world, org_id, moves.provider)) == ("done", (NEW, None))


def test_who_is_charged_by_the_other_provider_is_not_moved(moves: PriceMoves) -> None:
    sold(moves.world)
    give_new_code(moves.world)
    other: ChargingProvider = "stripe" if moves.provider == "lago" else "lago"
    moves.world.set_charging_provider(other)
    rows = replace(moves, provider=other).rows()
    assert len(rows) == (1 if other == "lago" else 0), "Stripe has sold nothing while Lago charged"
    assert all(f"charging move --to {other}" in str(row.reason) for row in rows)


def test_killed_in_the_middle_of_apply_and_of_the_start_each_is_moved_once(moves: PriceMoves) -> None:
    world = moves.world
    org_ids = sorted(world.create(name) for name in ("Acme", "Globex", "Initech"))
    for org_id in org_ids:
        world.reconcile_until_idle(org_id)
    give_new_code(world)
    rows = moves.rows()
    applied = moves.applier().apply(rows[:2])  # as far as it came
    next(applied)
    assert [each.kind for each in moves.apply(rows)] == ["already_applied", "already_applied", "applied"]
    moves.step(1)  # one notice, then it is killed
    moves.sweep()
    moves.step(1)
    moves.sweep()
    world.wait(60)
    world.providers[moves.provider].after_subscription = kill_worker
    world.run_until_killed(org_ids[0], moves.provider)
    world.expire_lease()
    for org_id in org_ids:
        world.reconcile_until_idle(org_id)
    assert [len(moves.notices(org_id)) for org_id in org_ids] == [1, 1, 1]
    assert [plans_at(world, org_id, moves.provider) for org_id in org_ids] == [(NEW, None)] * 3
    assert sum(paid(moves)) == 3 * (4900 + 500)


def test_a_notice_that_comes_too_late_moves_the_day_on(moves: PriceMoves) -> None:
    """As after an outage of all workers: nobody is moved sooner after the notice than was said."""
    world = moves.world
    org_id = sold(world)
    give_new_code(world)
    moves.apply(moves.rows(notice_days=10))
    world.advance_time(days=9)
    settle(moves, org_id)
    (notice,) = moves.notices(org_id)
    assert notice["effective_at"] == (world.now + timedelta(days=10)).isoformat()
    world.advance_time(days=9)
    settle(moves, org_id)
    assert plans_at(world, org_id, moves.provider)[0] == SOLD[moves.provider]
