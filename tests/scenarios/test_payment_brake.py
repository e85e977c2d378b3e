"""Five hundred organizations are re-priced at once by mistake: the limit's number is sent, and the rest waits."""

from __future__ import annotations

from collections import Counter

import pytest

from core.flow_control.payment_brake import PaymentLimit
from core.reconcile import payment_holds
from tests.support.sync_world import SyncWorld

ORGANIZATIONS = 500
LIMIT = PaymentLimit(changes=10, percent=2)
SENT = ORGANIZATIONS * 2 * LIMIT.percent // 100

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


@pytest.fixture
def repriced(world: SyncWorld) -> list[str]:
    """The ids. A script has put each of them on another plan, and the workers have done what they may."""
    world.payment_limit = LIMIT
    org_ids = [world.create(f"Org {number}", email=f"{number}@acme.test") for number in range(ORGANIZATIONS)]
    settle(world, org_ids)
    for org_id in org_ids:
        world.change_plan(org_id, "enterprise")
    settle(world, org_ids)
    return org_ids


def settle(world: SyncWorld, org_ids: list[str]) -> None:
    for org_id in org_ids:
        world.run(org_id, "stripe")
    world.wait(5)
    for org_id in org_ids:
        world.run(org_id, "lago")
    world.wait(60)


def plans(world: SyncWorld) -> Counter[str]:
    return Counter(str(each["plan_code"]) for each in world.lago_objects("subscriptions") if each["status"] == "active")


def waiting(world: SyncWorld) -> list[str]:
    with world.database.read() as session:
        return [each.org_id for each in payment_holds.list_on_hold(session, ORGANIZATIONS)]


def test_released_exactly_the_rest_is_sent(world: SyncWorld, repriced: list[str]) -> None:
    assert plans(world) == {"enterprise": SENT, "professional": ORGANIZATIONS - SENT}
    on_hold = waiting(world)
    assert len(on_hold) == ORGANIZATIONS - SENT
    world.advance_time(hours=2)
    settle(world, repriced)
    assert plans(world)["enterprise"] == SENT
    for org_id in on_hold:
        world.change(org_id, lambda change, found: payment_holds.release(change, found, world.catalog, "it is meant"))
    settle(world, repriced)
    assert plans(world) == {"enterprise": ORGANIZATIONS}
    assert all(world.is_in_sync(org_id) for org_id in repriced)


def test_dropped_nothing_more_is_sent(world: SyncWorld, repriced: list[str]) -> None:
    on_hold = waiting(world)
    for org_id in on_hold:
        world.change(org_id, lambda change, found: payment_holds.drop(change, found, "a wrong script"))
    world.advance_time(hours=2)
    settle(world, repriced)
    assert plans(world) == {"enterprise": SENT, "professional": ORGANIZATIONS - SENT}
    assert {world.organization(org_id).plan_tier for org_id in on_hold} == {"enterprise"}
