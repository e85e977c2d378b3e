"""A receipt says "in sync" when both billers hold the change, never before, and says why not until then."""

from __future__ import annotations

from sqlalchemy import update

from core.db.models.billing_links import BillingLink
from core.reporting import sync_status
from core.reporting.sync_status import VersionStatus
from tests.support.sync_world import SyncWorld, kill_worker


def version_status(world: SyncWorld, org_id: str, version: int | None = None) -> VersionStatus:
    with world.database.read() as session:
        status = sync_status.version_status(session, org_id, world.now, version)
    assert status is not None
    return status


def synced_by_provider(status: VersionStatus) -> dict[str, bool]:
    return {provider: provider_status.is_synced for provider, provider_status in status.providers.items()}


def test_a_change_is_held_one_biller_after_the_other(world: SyncWorld) -> None:
    org_id = world.create()
    fresh = version_status(world, org_id)
    assert (fresh.latest_version, fresh.version, fresh.in_sync) == (1, 1, False)
    assert {provider_status.link.status for provider_status in fresh.providers.values()} == {"queued"}
    world.run(org_id, "stripe")
    assert synced_by_provider(version_status(world, org_id, 1)) == {"stripe": True, "lago": False}
    world.reconcile_until_idle(org_id)
    done = version_status(world, org_id, 1)
    assert done.in_sync
    assert all(provider_status.link.synced_at for provider_status in done.providers.values())


def test_an_old_change_stays_held_while_a_newer_one_is_on_its_way(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    first = version_status(world, org_id).latest_version
    world.rename(org_id, "Acme Two")
    assert version_status(world, org_id, first).in_sync
    assert not version_status(world, org_id).in_sync


def test_nothing_is_held_after_a_crash_in_the_middle(world: SyncWorld) -> None:
    org_id = world.create()
    world.providers["stripe"].after_customer = kill_worker
    world.run_until_killed(org_id, "stripe")
    assert synced_by_provider(version_status(world, org_id, 1)) == {"stripe": False, "lago": False}


def test_nothing_is_held_while_a_create_is_not_known_to_have_ended(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    with world.database.write() as session:
        pending = {"operation": "create_subscription"}
        session.execute(update(BillingLink).where(BillingLink.provider == "stripe").values(intent=pending))
    assert synced_by_provider(version_status(world, org_id)) == {"stripe": False, "lago": True}


def test_what_a_late_worker_may_have_overwritten_is_not_held_until_it_is_made_again(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    version = version_status(world, org_id).latest_version
    world.rename(org_id, "Acme Two")
    with world.database.write() as session:
        session.execute(
            update(BillingLink)
            .where(BillingLink.provider == "lago")
            .values(customer_state="unknown", customer_fingerprint=None)
        )
    assert synced_by_provider(version_status(world, org_id, version)) == {"stripe": True, "lago": False}
    world.wait(10)
    world.reconcile_until_idle(org_id)
    assert version_status(world, org_id, version).in_sync


def test_an_unknown_organization_has_no_receipt(world: SyncWorld) -> None:
    with world.database.read() as session:
        assert sync_status.version_status(session, "org_no", world.now) is None
