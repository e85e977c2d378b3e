"""What a business had in Lago keeps its external ids after its adoption: every request, webhook and check uses them."""

from __future__ import annotations

import json
from itertools import count
from urllib.parse import unquote

import pytest

from core.inbox import provider_webhooks
from core.ports.external_ids import ExternalIds
from core.ports.observed import ObservedState
from core.ports.quotes import PlanChangeQuery
from core.ports.spec import SubscriptionSpec
from core.reconcile import commands
from providers.lago.provider import LagoProvider
from providers.lago.webhooks import LagoWebhookParser
from sandbox.server import Sandbox
from tests.support.adopted import PAYER, Adopted, adopt_at_lago
from tests.support.drift_harness import DriftHarness, conflict_resolver_of
from tests.support.provider_webhooks import check_after_webhook
from tests.support.sync_world import SyncWorld

CUSTOMER, SUBSCRIPTION = "acme", "contract-7"
BOTH = Adopted(external_customer_id=CUSTOMER, external_subscription_id=SUBSCRIPTION)
WITHOUT_PAYER = Adopted(external_customer_id=CUSTOMER, external_subscription_id=SUBSCRIPTION, has_payer=False)
ADOPTED = [
    BOTH,
    Adopted(external_customer_id=CUSTOMER),
    Adopted(external_subscription_id=SUBSCRIPTION),
    Adopted(external_customer_id="acme / 7", external_subscription_id="né o?#50%"),
    Adopted(external_customer_id="株式会社", external_subscription_id="org_0df22f65"),
]
_NUMBERS = count(1)


def requests_to_lago(world: SyncWorld) -> list[str]:
    return [
        f"{call.method} {unquote(call.path)}?{unquote(call.query)} {call.body}" for call in world.sandbox.calls("lago")
    ]


def writes_to_lago(world: SyncWorld) -> list[str]:
    return [call.operation for call in world.sandbox.calls("lago") if call.method != "GET"]


def subscriptions(world: SyncWorld, status: str = "active") -> list[tuple[object, object]]:
    """The external ids and the plans of those with the status."""
    return [
        (row["external_id"], row["plan_code"]) for row in world.lago_objects("subscriptions") if row["status"] == status
    ]


def customer_in_lago(world: SyncWorld) -> dict[str, object]:
    """The only one: none was created beside it."""
    (customer,) = world.lago_objects("customers")
    return customer


def payer_in_lago(world: SyncWorld) -> object:
    configuration = customer_in_lago(world)["billing_configuration"]
    assert isinstance(configuration, dict)
    return configuration.get("provider_customer_id")


def receive(world: SyncWorld, webhook_type: str, object_type: str, **fields: object) -> None:
    """A webhook as Lago sends it, which is then processed."""
    payload = {
        "webhook_type": webhook_type,
        "object_type": object_type,
        "organization_id": world.providers["lago"].fetch_account().id,
        object_type: fields,
    }
    parser = LagoWebhookParser(lambda raw, signature: signature == "signed" and bool(raw))
    parsed = parser.parse(json.dumps(payload).encode(), "signed", f"webhook-{next(_NUMBERS)}")
    with world.database.write() as session:
        provider_webhooks.store(session, parsed, world.now)
    provider_webhooks.process(world.database, world.clock)


@pytest.mark.parametrize("adopted", ADOPTED, ids=repr)
def test_a_rename_and_plan_changes_reach_it_under_its_own_ids(world: SyncWorld, adopted: Adopted) -> None:
    org_id = adopt_at_lago(world, adopted)
    external_id = adopted.external_subscription_id or org_id
    world.rename(org_id, "Umbra GmbH")
    world.reconcile_until_idle(org_id)
    customer = customer_in_lago(world)
    assert (customer["external_id"], customer["name"]) == (adopted.external_customer_id or org_id, "Umbra GmbH")
    world.wait(10)
    world.change_plan(org_id, "enterprise")
    world.reconcile_until_idle(org_id)
    assert subscriptions(world) == [(external_id, "enterprise")]
    world.wait(10)
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    assert subscriptions(world, "pending") == [(external_id, "starter")]
    world.advance_time(days=32)
    check_after_webhook(world, org_id, "lago")
    assert subscriptions(world) == [(external_id, "starter")]
    assert world.organization(org_id).plan_tier == "starter"
    assert world.is_in_sync(org_id)
    assert customer_in_lago(world)["lago_id"] == customer["lago_id"]
    assert payer_in_lago(world) == PAYER


def test_no_request_names_the_organization(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, BOTH)
    world.rename(org_id, "Umbra GmbH")
    world.change_plan(org_id, "starter")
    world.reconcile_until_idle(org_id)
    world.change_plan(org_id, "professional")
    world.change(org_id, commands.retry)
    check_after_webhook(world, org_id, "lago")
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    requests = requests_to_lago(world)
    assert len(requests) > 10
    assert [each for each in requests if org_id in each] == []


def test_the_deletion_ends_its_subscription(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, BOTH)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert subscriptions(world) == []
    assert subscriptions(world, "terminated") == [(SUBSCRIPTION, "professional")]
    assert world.is_in_sync(org_id)


def test_the_deletion_ends_no_subscription_of_another_customer_with_this_id(world: SyncWorld) -> None:
    """Its own one was ended in Lago, and the id was given to another customer."""
    org_id = adopt_at_lago(world, BOTH)
    world.sandbox.delete("lago", "subscriptions", SUBSCRIPTION)
    world.sandbox.preload_lago_customers([{"external_id": "globex", "name": "Globex"}])
    world.sandbox.preload_lago_subscription("globex", "starter", external_id=SUBSCRIPTION)
    world.change_status(org_id, "deleted")
    world.reconcile_until_idle(org_id)
    assert subscriptions(world) == [(SUBSCRIPTION, "starter")]
    assert "belongs to another customer" in str(world.link(org_id, "lago").error_message)


def test_nothing_is_created_in_place_of_a_customer_that_is_not_there(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, BOTH)
    world.sandbox.delete("lago", "customers", CUSTOMER)
    world.advance_time(minutes=10)
    world.sandbox.reset_calls()
    world.change(org_id, commands.retry)
    world.rename(org_id, "Umbra GmbH")
    world.reconcile_until_idle(org_id)
    assert writes_to_lago(world) == []
    assert world.link(org_id, "lago").state == "parked"


def test_a_retry_reads_it_under_its_own_ids_and_changes_nothing(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, BOTH)
    charged = world.sandbox.charges()
    world.change(org_id, commands.retry)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert writes_to_lago(world) == []
    assert (subscriptions(world), payer_in_lago(world)) == ([(SUBSCRIPTION, "professional")], PAYER)
    assert world.sandbox.charges() == charged


@pytest.mark.parametrize("external_id", [CUSTOMER, "株式会社", "acme / 7", "org_0df22f65"])
def test_a_webhook_that_names_only_the_external_id_reaches_the_link(world: SyncWorld, external_id: str) -> None:
    org_id = adopt_at_lago(world, Adopted(external_customer_id=external_id))
    receive(
        world,
        "invoice.payment_failure",
        "payment_provider_invoice_payment_error",
        lago_invoice_id="5f0b2b4e-0d3b-4a43-b1f3-000000000001",
        external_customer_id=external_id,
        provider_error="card_declined",
    )
    link = world.link(org_id, "lago")
    assert (link.checks_requested, link.payment_code) == (1, "card_declined")


def test_what_somebody_changes_in_lago_is_found_by_the_check(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, BOTH)
    world.sandbox.patch("lago", "subscriptions", SUBSCRIPTION, plan_code="enterprise")
    check_after_webhook(world, org_id, "lago")
    link = world.link(org_id, "lago")
    assert link.state == "on_hold"
    assert "is on enterprise, but billing-sync expects professional" in str(link.error_message)


@pytest.mark.parametrize("adopted", ADOPTED, ids=repr)
def test_a_drift_check_finds_no_difference_and_no_unknown_customer(
    world: SyncWorld, drift_harness: DriftHarness, adopted: Adopted
) -> None:
    adopt_at_lago(world, adopted)
    assert drift_harness.findings() == []
    # The account, and the two pages of each listing: no organization had to be read by itself.
    assert len(world.sandbox.calls("lago")) <= 3


def test_a_drift_repair_writes_it_under_its_own_ids(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = adopt_at_lago(world, BOTH)
    world.rename(org_id, "Umbra GmbH")
    world.reconcile_until_idle(org_id)
    world.wait(10)
    world.sandbox.patch("lago", "customers", CUSTOMER, name="Mallory")
    report = drift_harness.check()
    (drift,) = drift_harness.drifts(report)
    # Lago has written the name to its payer, too.
    assert [(each.kind, each.provider) for each in drift.findings] == [("renamed", "lago"), ("renamed", "stripe")]
    assert drift_harness.repair(report).not_repaired == []
    assert customer_in_lago(world)["name"] == "Umbra GmbH"
    assert drift_harness.findings() == []


def test_another_customer_under_the_organizations_id_is_not_its_own(
    world: SyncWorld, drift_harness: DriftHarness
) -> None:
    org_id = adopt_at_lago(world, BOTH)
    world.sandbox.preload_lago_customers([{"external_id": org_id, "name": "Stranger"}])
    world.sandbox.preload_lago_subscription(org_id, "starter", external_id=org_id)
    check_after_webhook(world, org_id, "lago")
    assert world.link(org_id, "lago").state == "active"
    assert drift_harness.findings() == []


def test_usage_quote_and_invoices_are_read_under_its_own_ids(world: SyncWorld, sandbox_server: Sandbox) -> None:
    org_id = adopt_at_lago(world, BOTH)
    ids = ExternalIds(customer_id=CUSTOMER, subscription_id=SUBSCRIPTION)
    spec = SubscriptionSpec(org_id=org_id, customer_id="", plan_code="professional", external_ids=ids)
    query = PlanChangeQuery(spec=spec, subscription_id=None, list_price=0, currency="USD")
    lago = LagoProvider(sandbox_server.url, "sandbox", payment_provider_code=None, ending=world.catalog.ending)
    assert lago.usage_and_preview.usage(org_id, ids) is not None
    assert lago.usage_and_preview.quote(query).next == world.catalog.plan("professional").amount
    lago.reader.read_payment(org_id, ObservedState(), is_charging=True, external_ids=ids)
    lago.close()
    requests = requests_to_lago(world)
    assert [each for each in requests if org_id in each] == []
    assert sum(f"external_customer_id={CUSTOMER}" in each for each in requests) == 2


def test_who_was_adopted_without_a_payer_gets_none(world: SyncWorld, drift_harness: DriftHarness) -> None:
    org_id = adopt_at_lago(world, WITHOUT_PAYER)
    world.rename(org_id, "Umbra GmbH")
    world.reconcile_until_idle(org_id)
    world.change(org_id, commands.retry)
    check_after_webhook(world, org_id, "lago")
    assert world.is_in_sync(org_id)
    assert (customer_in_lago(world)["name"], payer_in_lago(world)) == ("Umbra GmbH", None)
    assert drift_harness.findings() == []


def set_payer_in_lago(world: SyncWorld) -> None:
    configuration = {"payment_provider": "stripe", "provider_customer_id": PAYER}
    world.sandbox.patch("lago", "customers", CUSTOMER, billing_configuration=configuration)


@pytest.mark.parametrize("is_checked", [True, False])
def test_a_payer_that_somebody_sets_later_is_a_conflict(world: SyncWorld, *, is_checked: bool) -> None:
    org_id = adopt_at_lago(world, WITHOUT_PAYER)
    set_payer_in_lago(world)
    if is_checked:
        check_after_webhook(world, org_id, "lago")
    else:
        world.rename(org_id, "Umbra GmbH")
        world.reconcile_until_idle(org_id)
    link = world.link(org_id, "lago")
    assert (link.state, link.error_code, link.payer_id) == ("on_hold", "payer_changed", None)
    assert "was adopted without a payer" in str(link.error_message)
    assert conflict_resolver_of(world).take_theirs(org_id, "lago") == [f"Stripe customer {PAYER}"]
    world.reconcile_until_idle(org_id)
    link = world.link(org_id, "lago")
    assert (link.payer_id, link.without_payer) == (PAYER, False)
    assert world.is_in_sync(org_id)


def test_a_payer_that_somebody_sets_later_and_takes_out_again_leaves_it_without(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, WITHOUT_PAYER)
    set_payer_in_lago(world)
    check_after_webhook(world, org_id, "lago")
    world.sandbox.patch("lago", "customers", CUSTOMER, billing_configuration={"payment_provider": None})
    world.keep_ours(org_id)
    world.reconcile_until_idle(org_id)
    assert world.is_in_sync(org_id)
    assert payer_in_lago(world) is None


def test_another_customer_id_is_not_looked_up_under_the_adopted_one(world: SyncWorld) -> None:
    org_id = adopt_at_lago(world, WITHOUT_PAYER)
    world.set_customer_id(org_id, "lago", "lago-of-another")
    link = world.link(org_id, "lago")
    assert (link.external_customer_id, link.external_subscription_id, link.without_payer) == (None, None, False)
