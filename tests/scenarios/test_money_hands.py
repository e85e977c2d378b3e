"""Each hand of the money machine comes to what it is about: told once, in its shortest story."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest

from core.catalog.plans import Catalog
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.money.brake import paid_for
from tests.money.machine import ARRANGED_IN_STRIPE, MoneyStateMachine, staged
from tests.money.story import TIERS, Stage, Trouble
from tests.money.tally import SentUnaskedError, ShownLateError, Tally

pytestmark = pytest.mark.slow

LOST_CREDIT: Final[Trouble] = ("stripe", "POST /v1/credit_notes", "lost_answer", 1)
CHARGED_BY: Final = {"stripe": tuple(TIERS), "lago": ()}
EACH_PROVIDER = pytest.mark.parametrize("charged_by_stripe", CHARGED_BY.values(), ids=CHARGED_BY.keys())


@pytest.fixture
def machine(
    sqlite_template: Path, sandbox: SandboxClient, plans: Catalog, sandbox_server: Sandbox
) -> Iterator[MoneyStateMachine]:
    told = staged(Stage(sqlite_template, sandbox, sandbox_server.url, plans, Tally()))()
    yield told
    told.story.close()


def begin(machine: MoneyStateMachine, charged_by_stripe: tuple[str, ...], limit: int | None = None) -> None:
    machine.begin(
        charged_by_stripe=charged_by_stripe,
        costs_nothing_in_lago=False,
        first="professional",
        second="starter",
        then="nothing",
        limit=limit,
    )
    machine.money_is_right()


@pytest.mark.parametrize("tier", ["enterprise", "starter"])
@pytest.mark.parametrize("kind", ARRANGED_IN_STRIPE)
def test_what_is_arranged_in_stripe_holds_the_next_plan(machine: MoneyStateMachine, kind: str, tier: str) -> None:
    begin(machine, CHARGED_BY["stripe"])
    machine.arrange_by_hand(number=0, kind=kind, tier=tier, delivery="lost", then="nothing")
    machine.money_is_right()
    assert machine.tally.hands[f"arrange_by_hand : {ARRANGED_IN_STRIPE[kind]} : held"] == 1


@pytest.mark.parametrize("tier", ["enterprise", "starter"])
def test_a_planned_end_in_lago_holds_the_next_plan(machine: MoneyStateMachine, tier: str) -> None:
    begin(machine, CHARGED_BY["lago"])
    machine.arrange_by_hand(number=0, kind="pause", tier=tier, delivery="lost", then="nothing")
    machine.money_is_right()
    assert machine.tally.hands["arrange_by_hand : plan_an_end_in_lago : held"] == 1


@pytest.mark.parametrize("change", ["retry", "down and back"])
def test_a_price_of_its_own_is_kept(machine: MoneyStateMachine, change: str) -> None:
    begin(machine, CHARGED_BY["lago"])
    machine.give_it_a_price_of_its_own(number=0, change=change, tier="starter", then="nothing")
    machine.money_is_right()
    assert machine.tally.hands["give_it_a_price_of_its_own : kept"] == 1


@EACH_PROVIDER
@pytest.mark.parametrize("change", ["Globex", "retry", "down and back"])
def test_nobody_moves_to_the_price_of_today(
    machine: MoneyStateMachine, charged_by_stripe: tuple[str, ...], change: str
) -> None:
    begin(machine, charged_by_stripe)
    for move in (
        "sell_under_new_codes",
        "move_the_lookup_key",
        "rename_the_price_that_was_sold",
        "change_the_amount_in_lago",
    ):
        machine.move_a_price(number=0, move=move, change=change, tier="starter")
        machine.money_is_right()
    assert machine.world.catalog.plan("professional").former_codes.lago == ["professional"]


@pytest.mark.parametrize("deed", ["fail_in_stripe", "give_up_in_stripe", "pay_in_stripe"])
def test_whoever_leaves_gets_what_was_not_used_back_once(machine: MoneyStateMachine, deed: str) -> None:
    begin(machine, CHARGED_BY["stripe"])
    deeds = [deed, "pay_in_stripe"]
    machine.leave_invoices_unpaid(
        number=0, deeds=deeds, by={"hours": 25}, leaves=True, trouble=LOST_CREDIT, then="nothing"
    )
    machine.money_is_right()
    assert machine.tally.hands["leave_invoices_unpaid : left"] == 1
    credits_given = len(machine.story.books().state["credit_notes"])
    assert credits_given == (0 if deed == "give_up_in_stripe" else 1)


@EACH_PROVIDER
def test_a_scheduled_plan_is_lived_through(machine: MoneyStateMachine, charged_by_stripe: tuple[str, ...]) -> None:
    begin(machine, charged_by_stripe)
    machine.live_through_a_period_end(number=0, tier="starter", then="nothing")
    machine.money_is_right()
    assert machine.tally.hands["live_through_a_period_end : carried out"] == 1
    assert machine.world.organization(machine.org_ids[0]).plan_tier == "starter"


@EACH_PROVIDER
def test_a_plan_that_is_not_shown_for_an_hour_is_found(
    machine: MoneyStateMachine, charged_by_stripe: tuple[str, ...]
) -> None:
    """Our checks run and the day at which the organization is read is far: what the machine must not overlook."""
    begin(machine, charged_by_stripe)
    org_id = machine.org_ids[0]
    machine.story.change_plan(org_id, "starter")
    machine.story.settle(org_id)
    ends_at = machine.story.period_end(org_id)
    assert ends_at is not None
    with machine.world.database.write() as session:
        row = session.get_one(type(machine.world.organization(org_id)), org_id)
        row.downgrade_recheck_at = ends_at + timedelta(days=1)
    machine.world.advance_time(seconds=(ends_at - machine.world.now).total_seconds())
    with pytest.raises(ShownLateError, match="of sweeps"):
        machine.story.live_until(ends_at + timedelta(hours=3))


@EACH_PROVIDER
def test_a_change_waits_for_a_word_at_the_brake(machine: MoneyStateMachine, charged_by_stripe: tuple[str, ...]) -> None:
    begin(machine, charged_by_stripe, limit=0)
    story = machine.story
    (org_id, *_) = story.org_ids
    before = paid_for(story.books(), org_id)
    assert before is not None
    story.change_plan(org_id, "enterprise")
    story.settle(org_id)
    machine.money_is_right()
    assert paid_for(story.books(), org_id) == before
    machine.say_a_word_about_the_brake(number=0, word="release", count=1, then="until nothing is left")
    machine.money_is_right()
    assert paid_for(story.books(), org_id) != before
    assert machine.tally.hands["say_a_word_about_the_brake : release : something waited"] == 1


@EACH_PROVIDER
def test_a_change_that_goes_around_the_brake_is_seen(
    machine: MoneyStateMachine, charged_by_stripe: tuple[str, ...]
) -> None:
    begin(machine, charged_by_stripe, limit=0)
    story = machine.story
    story.settle(story.org_ids[0])
    limit, story.world.payment_limit = story.world.payment_limit, None
    story.change_plan(story.org_ids[0], "enterprise")
    story.then(story.org_ids[0], "until nothing is left")
    story.world.payment_limit = limit
    with pytest.raises(SentUnaskedError):
        machine.money_is_right()
