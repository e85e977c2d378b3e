"""A receipt says "in sync" when both billers hold the change, never before, and says why not until then."""

from __future__ import annotations

from sqlalchemy import update

from core.db.models.billing_links import BillingLink
from core.reconcile.attempt import UNKNOWN
from core.reporting import sync_status
from core.reporting.sync_status import VersionStatus
from tests.core.fakes import World, kill_worker


def ask(world: World, org_id: str, through: int | None = None) -> VersionStatus:
    with world.database.read() as session:
        receipt = sync_status.version_status(session, org_id, world.now, through)
    assert receipt is not None
    return receipt


def holds(receipt: VersionStatus) -> dict[str, bool]:
    return {provider: standing.is_synced for provider, standing in receipt.providers.items()}


def test_a_change_is_held_one_biller_after_the_other(world: World) -> None:
    org_id = world.create()
    fresh = ask(world, org_id)
    assert (fresh.latest_version, fresh.version, fresh.in_sync) == (1, 1, False)
    assert {standing.link.status for standing in fresh.providers.values()} == {"queued"}
    world.run(org_id, "stripe")
    assert holds(ask(world, org_id, 1)) == {"stripe": True, "lago": False}
    world.reconcile_until_idle(org_id)
    done = ask(world, org_id, 1)
    assert done.in_sync
    assert all(standing.link.synced_at for standing in done.providers.values())


def test_an_old_change_stays_held_while_a_newer_one_is_on_its_way(world: World) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    first = ask(world, org_id).latest_version
    world.rename(org_id, "Acme Two")
    assert ask(world, org_id, first).in_sync
    assert not ask(world, org_id).in_sync


def test_nothing_is_held_after_a_crash_in_the_middle(world: World) -> None:
    org_id = world.create()
    world.providers["stripe"].after_customer = kill_worker
    world.run_until_killed(org_id, "stripe")
    assert holds(ask(world, org_id, 1)) == {"stripe": False, "lago": False}


def test_nothing_is_held_while_a_create_is_not_known_to_have_ended(world: World) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    with world.database.write() as session:
        pending = {"operation": "create_subscription"}
        session.execute(update(BillingLink).where(BillingLink.provider == "stripe").values(intent=pending))
    assert holds(ask(world, org_id)) == {"stripe": False, "lago": True}


def test_what_a_late_worker_may_have_overwritten_is_not_held_until_it_is_made_again(world: World) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    through = ask(world, org_id).latest_version
    world.rename(org_id, "Acme Two")
    with world.database.write() as session:
        session.execute(update(BillingLink).where(BillingLink.provider == "lago").values(customer_fingerprint=UNKNOWN))
    assert holds(ask(world, org_id, through)) == {"stripe": True, "lago": False}
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert ask(world, org_id, through).in_sync


def test_an_unknown_organization_has_no_receipt(world: World) -> None:
    with world.database.read() as session:
        assert sync_status.version_status(session, "org_no", world.now) is None
