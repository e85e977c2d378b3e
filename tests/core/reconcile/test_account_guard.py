"""A key of another account or mode sends nothing: not at the start, not later, and a person is told both ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from core.db.models.providers import ProviderStatus
from core.flow_control import circuit_breaker
from core.flow_control.circuit_breaker import OpenBreaker
from core.ports.errors import MisconfiguredError, UnavailableError
from core.reconcile.account_guard import AccountGuard, WrongAccountError
from providers.stripe.provider import StripeProvider
from sandbox.server import Sandbox
from tests.support.sync_world import CREATE_CUSTOMER_REQUEST, HookedProvider, SyncWorld

LIVE_KEY = "sk_live_51NobodyMayReadThisKey1234"


def provider_status(world: SyncWorld, provider: str = "stripe") -> ProviderStatus:
    with world.database.read() as session:
        return session.get_one(ProviderStatus, provider)


def open_breaker(world: SyncWorld) -> OpenBreaker | None:
    with world.database.read() as session:
        return circuit_breaker.open_breakers(session).get("stripe")


def another_process(world: SyncWorld) -> SyncWorld:
    """It has not asked whose key it has."""
    return SyncWorld(
        database=world.database, sandbox=world.sandbox, catalog=world.catalog, providers=world.providers, now=world.now
    )


@contextmanager
def with_key(world: SyncWorld, url: str, key: str) -> Iterator[AccountGuard]:
    provider = StripeProvider(key, url, ending=world.catalog.ending, clock=world.clock)
    yield AccountGuard(database=world.database, providers={"stripe": HookedProvider(provider)}, clock=world.clock)
    provider.close()


def test_the_account_is_kept_at_first_use_and_with_every_id_that_is_made_there(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    stripe, lago = world.link(org_id, "stripe"), world.link(org_id, "lago")
    assert (provider_status(world).account_id, provider_status(world).livemode) == ("acct_sandbox", False)
    assert (stripe.account_id, stripe.livemode) == ("acct_sandbox", False)
    assert lago.account_id == provider_status(world, "lago").account_id == world.sandbox.settings()["lago_organization"]
    assert (lago.livemode, provider_status(world, "lago").livemode) == (None, None)


def test_a_process_asks_once_and_a_turn_asks_nothing(world: SyncWorld) -> None:
    process = another_process(world)
    assert process.account_guard.confirm() == []
    process.reconcile_until_idle(process.create())
    asked = [call.operation for call in world.sandbox.calls() if "account" in call.path or "organizations" in call.path]
    assert asked == ["GET /v1/account", "GET /api/v1/organizations"]


def test_a_key_of_another_account_is_refused_with_both_ids_and_four_digits(
    world: SyncWorld, sandbox_server: Sandbox
) -> None:
    world.reconcile_until_idle(world.create())
    world.sandbox.settings(stripe_account="acct_other")
    with (
        with_key(world, sandbox_server.url, "sk_test_51NobodyMayReadThisKey1234") as accounts,
        pytest.raises(WrongAccountError) as refused,
    ):
        accounts.confirm()
    sentence = str(refused.value)
    assert "acct_sandbox" in sentence
    assert "acct_other" in sentence
    assert "…1234" in sentence
    assert "Nobody" not in sentence
    assert "STRIPE_SECRET_KEY" in sentence


def test_a_key_of_the_other_mode_is_refused_though_the_account_is_the_same(
    world: SyncWorld, sandbox_server: Sandbox
) -> None:
    world.reconcile_until_idle(world.create())
    with (
        with_key(world, sandbox_server.url, LIVE_KEY) as accounts,
        pytest.raises(WrongAccountError, match=r"acct_sandbox in test mode.*acct_sandbox in live mode"),
    ):
        accounts.confirm()


def test_another_lago_organization_is_refused_too(world: SyncWorld) -> None:
    world.reconcile_until_idle(world.create())
    world.sandbox.settings(lago_organization="2b2b")
    with pytest.raises(WrongAccountError, match=r"LAGO_API_KEY.*2b2b"):
        world.account_guard.confirm()


def test_an_account_in_which_nothing_was_made_may_be_left_for_another(world: SyncWorld) -> None:
    world.sandbox.settings(stripe_account="acct_right")
    assert another_process(world).account_guard.confirm() == []
    assert provider_status(world).account_id == "acct_right"


def test_a_create_that_is_on_its_way_counts_as_made(world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "lost_answer")
    world.run(org_id, "stripe")
    world.sandbox.settings(stripe_account="acct_other")
    with pytest.raises(WrongAccountError):
        another_process(world).account_guard.confirm()


def test_a_biller_that_is_away_is_asked_before_the_first_write(world: SyncWorld) -> None:
    process = another_process(world)
    world.sandbox.add_fault("stripe", "GET /v1/account", "500_before", times=2)
    (unasked,) = process.account_guard.confirm()
    assert isinstance(unasked, UnavailableError)
    org_id = process.create()
    assert process.run(org_id, "stripe").kind == "retry"
    assert world.stripe_objects("customers") == []
    process.reconcile_until_idle(org_id)
    assert len(world.stripe_objects("customers")) == 1
    assert world.sandbox.counters().stripe.operations == {"GET /v1/account": 3, CREATE_CUSTOMER_REQUEST: 1}


def test_a_worker_that_could_not_ask_and_has_another_accounts_key_stops_the_biller_and_sends_nothing(
    world: SyncWorld,
) -> None:
    world.reconcile_until_idle(world.create())
    process = another_process(world)
    world.sandbox.add_fault("stripe", "GET /v1/account", "500_before")
    process.account_guard.start()
    world.sandbox.settings(stripe_account="acct_other")
    org_id = process.create("Other")
    assert process.run(org_id, "stripe").kind == "waiting"
    link = world.link(org_id, "stripe")
    assert (link.attempts, link.error_kind, link.lease_until) == (0, None, None)
    found = open_breaker(world)
    assert found is not None
    assert (found.reason, found.probe_at) == ("wrong_account", None)
    assert "acct_other" in found.message
    assert len(world.stripe_objects("customers")) == 1
    world.sandbox.settings(stripe_account="acct_sandbox")
    another_process(world).account_guard.start()
    assert open_breaker(world) is None
    world.reconcile_until_idle(org_id)
    assert len(world.stripe_objects("customers")) == 2


def test_a_worker_whose_account_was_left_for_another_meanwhile_sends_nothing(world: SyncWorld) -> None:
    world.sandbox.settings(stripe_account="acct_right")
    another_process(world).account_guard.confirm()
    assert world.run(world.create(), "stripe").kind == "waiting"
    found = open_breaker(world)
    assert found is not None
    assert found.reason == "wrong_account"
    assert world.stripe_objects("customers") == []


def test_ids_of_another_account_park_their_organization_alone_until_it_has_its_own(world: SyncWorld) -> None:
    org_id = world.create()
    world.reconcile_until_idle(org_id)
    with world.database.write() as session:
        session.get_one(ProviderStatus, "stripe").account_id = "acct_right"
    world.sandbox.settings(stripe_account="acct_right")
    process = another_process(world)
    process.account_guard.confirm()
    process.rename(org_id, "Renamed")
    process.wait(60)
    assert process.run(org_id, "stripe").kind == "parked"
    link = world.link(org_id, "stripe")
    assert link.error_code == "wrong_account"
    assert "acct_sandbox" in (link.error_message or "")
    process.set_customer_id(org_id, "stripe", "cus_elsewhere")
    assert world.link(org_id, "stripe").account_id is None
    process.reconcile_until_idle(process.create("Fine"))


def test_a_key_that_is_refused_at_the_start_stops_its_biller_before_any_organization_meets_it(world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.settings(revoked_keys=["sk_test_sandbox"])
    process = another_process(world)
    (unasked,) = process.account_guard.start()
    assert isinstance(unasked, MisconfiguredError)
    world.count_requests()
    process.run(org_id, "stripe")
    assert world.count_requests() == (0, 0)
    assert process.run(org_id, "lago").kind != "parked"


def test_a_biller_that_does_not_tell_whose_key_it_is_is_stopped_and_parks_nobody(world: SyncWorld) -> None:
    body = '{"status": 404, "error": "Not Found", "code": "resource_not_found"}'
    world.sandbox.add_fault("lago", "GET /api/v1/organizations", "status", times=0, status=404, body=body)
    process = another_process(world)
    org_id = process.create()
    process.run(org_id, "stripe")
    assert process.run(org_id, "lago").kind == "retry"
    assert world.link(org_id, "lago").error_kind == "misconfigured"
    assert world.lago_objects("customers") == []


def test_who_only_passes_by_with_a_refused_key_stops_nobody(world: SyncWorld) -> None:
    world.sandbox.settings(revoked_keys=["sk_test_sandbox"])
    (unasked,) = another_process(world).account_guard.confirm()
    assert isinstance(unasked, MisconfiguredError)
    assert open_breaker(world) is None


def test_a_start_with_a_good_key_has_those_tried_at_once_that_met_the_refusal(world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.settings(revoked_keys=["sk_test_sandbox"])
    assert world.run(org_id, "stripe").kind == "retry"
    world.sandbox.settings(revoked_keys=[])
    process = another_process(world)
    process.account_guard.start()
    assert open_breaker(world) is None
    assert process.run(org_id, "stripe").kind == "synced"
