"""What each change costs, counted: requests to the billers exactly, statements to the database at most.

A look at whose key it is costs each process one more request at its start (``core.reconcile.account_guard``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import event

from core.compare.desired_state import PayerPolicy
from core.db.models.organizations import Membership, Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from tests.support.sync_world import SyncWorld, with_policy

LAGO_ONLY = PayerPolicy(sends_payer_to_lago=False)

Doing = Callable[[SyncWorld, str], None]

CHANGES: dict[str, tuple[Doing, tuple[int, int]]] = {
    "renamed": (lambda world, org_id: world.rename(org_id, "Globex"), (1, 1)),
    "a higher plan": (lambda world, org_id: world.change_plan(org_id, "enterprise"), (0, 2)),
    "a lower plan": (lambda world, org_id: world.change_plan(org_id, "starter"), (0, 2)),
    "another address": (
        lambda world, org_id: world.change(
            org_id,
            lambda change, organization: commands.change_billing_details(
                change, organization, world.catalog, billing_email="new@acme.test"
            ),
        ),
        (1, 1),
    ),
    "a member more": (lambda world, org_id: world.add_member(org_id, "user_2"), (0, 0)),
    "another role": (
        lambda world, org_id: world.change(
            org_id,
            lambda change, organization: memberships.change_role(change, _seat(change, organization), "billing_admin"),
        ),
        (0, 0),
    ),
    "the same name": (lambda world, org_id: world.rename(org_id, "Acme"), (0, 0)),
    "the same plan": (lambda world, org_id: world.change_plan(org_id, "professional"), (0, 0)),
    "suspended": (lambda world, org_id: world.change_status(org_id, "suspended"), (0, 0)),
}


@contextmanager
def _statements(world: SyncWorld) -> Iterator[list[str]]:
    """Sent to the database meanwhile; where a transaction begins aside."""
    sent: list[str] = []

    def note(*about: object) -> None:
        if not str(about[2]).startswith("BEGIN"):
            sent.append(str(about[2]))

    event.listen(world.database.engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(world.database.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_costs_these_calls_and_no_other(world: SyncWorld, name: str) -> None:
    org_id = world.create()
    world.add_member(org_id, "user_1")
    world.reconcile_until_idle(org_id)
    world.count_requests()
    change, calls = CHANGES[name]
    change(world, org_id)
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == calls
    world.reconcile_until_idle(org_id)
    assert world.count_requests() == (0, 0)


def test_a_new_organization_costs_one_call_to_stripe_and_two_to_lago(world: SyncWorld) -> None:
    world.count_requests()
    world.reconcile_until_idle(world.create())
    assert world.count_requests() == (1, 2)


def test_an_attempt_that_changes_a_customer_takes_eight_statements(world: SyncWorld) -> None:
    """Two for the lease, two to renew it with the state that becomes unknown and to store what is sent, three to end
    (lock, link, history), and one for the other link or for the event that both have the change.
    """
    world = with_policy(world, LAGO_ONLY)
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.rename(org_id, "Globex")
    with _statements(world) as first:
        world.run(org_id, "stripe")
    with _statements(world) as last:
        world.run(org_id, "lago")
    assert world.is_in_sync(org_id)
    assert (len(first), len(last)) == (8, 8), (first, last)


def test_a_message_that_finds_nothing_to_do_takes_two_statements(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    with _statements(world) as sent:
        world.run(org_id, "stripe")
    assert len(sent) == 2, sent


def _seat(change: ChangeContext, organization: Organization) -> Membership:
    found = memberships.lock(change.session, organization.id, "user_1")
    assert found is not None
    return found
