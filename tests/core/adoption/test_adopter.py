"""Adopting what is at the providers: identities are stored, and nothing is written there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from sqlalchemy import func, select

from core.adoption import guards
from core.adoption.guards import NotAdoptedError
from core.adoption.provider_objects import ProviderObjects
from core.compare.desired_state import PayerPolicy
from core.db.models.events import Event
from core.db.models.history import LinkHistory
from core.db.models.organizations import Organization
from core.ports.inventory import Inventory, InventoryCustomer
from core.ports.spec import Provider
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness
from tests.support.sync_world import SyncWorld

ReadT = TypeVar("ReadT")


@pytest.fixture
def theirs(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[AdoptionHarness]:
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    yield harness
    harness.close()


def test_a_new_organization_gets_the_identities_names_and_plan_that_are_there(theirs: AdoptionHarness) -> None:
    stripe, lago = theirs.stripe_customer(), theirs.lago_customer(plan="professional")
    row = theirs.row(stripe=stripe, lago=lago)
    result = theirs.adopt(row)
    assert (result.kind, result.is_new, result.remarks) == ("adopted", True, ())
    assert theirs.writes() == []
    organization = theirs.world.organization(str(result.org_id))
    assert (organization.name, organization.billing_email) == ("Acme at Lago", "bill@acme.test")
    assert (organization.plan_tier, organization.status) == ("professional", "active")
    at_stripe, at_lago = (theirs.world.link(organization.id, each) for each in ("stripe", "lago"))
    assert (at_stripe.customer_id, at_stripe.ownership, at_stripe.marks) == (stripe, "adopted", "due")
    assert (at_lago.external_customer_id, at_lago.external_subscription_id) == ("acme", "contract")
    assert (at_lago.applied_plan, at_lago.sold_plan, at_lago.sold_price_id) == ("professional", "professional", "4900")
    assert (at_lago.payer_id, at_lago.payer_confirmed, at_lago.without_payer) == (stripe, True, False)
    assert {link.customer_state for link in (at_stripe, at_lago)} == {"applied"}


def test_a_second_application_finds_the_organization_and_changes_nothing(theirs: AdoptionHarness) -> None:
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional"))
    first = theirs.adopt(row)
    theirs.world.sandbox.reset_calls()
    again = theirs.adopt(row)
    assert (again.kind, again.org_id) == ("already_adopted", first.org_id)
    assert theirs.world.sandbox.calls() == []
    with theirs.world.database.read() as session:
        assert session.scalar(select(func.count(Organization.id))) == 1
        assert session.scalars(select(Event.type).order_by(Event.seq)).all() == [
            "organization.created",
            "organization.adopted",
        ]
        assert session.scalars(select(LinkHistory.kind)).all() == ["adopted", "adopted"]


def events(theirs: AdoptionHarness) -> list[str]:
    with theirs.world.database.read() as session:
        return list(session.scalars(select(Event.type).order_by(Event.seq)))


def test_a_managed_reconcile_after_it_writes_nothing(theirs: AdoptionHarness) -> None:
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional"))
    charged = theirs.world.sandbox.charges()
    result = theirs.adopt(row, with_marks=False)
    theirs.world.reconcile_until_idle(str(result.org_id))
    assert theirs.world.is_in_sync(str(result.org_id))
    assert theirs.writes() == []
    assert theirs.world.sandbox.charges() == charged


def test_an_organization_that_exists_gets_their_name_and_address_unless_the_row_says_ours(
    theirs: AdoptionHarness,
) -> None:
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional"))
    with_theirs = theirs.world.create("Acme", "professional", "ap@acme.test")
    assert theirs.adopt(replace(row, org_id=with_theirs, email_source="stripe")).kind == "adopted"
    organization = theirs.world.organization(with_theirs)
    assert (organization.name, organization.billing_email) == ("Acme at Lago", "pay@acme.test")
    assert events(theirs) == [
        "organization.created",
        "organization.renamed",
        "organization.billing_details_changed",
        "organization.adopted",
    ]


def test_ours_stays_and_is_not_written_to_them(theirs: AdoptionHarness) -> None:
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional"))
    org_id = theirs.world.create("Acme", "professional", "ap@acme.test")
    result = theirs.adopt(replace(row, org_id=org_id, name_source="ours", email_source="ours"), with_marks=False)
    assert result.kind == "adopted"
    assert theirs.world.organization(org_id).name == "Acme"
    theirs.world.reconcile_until_idle(org_id)
    assert theirs.writes() == []


@pytest.mark.parametrize("is_new", [True, False])
def test_two_runs_at_once_adopt_a_row_once(theirs: AdoptionHarness, *, is_new: bool) -> None:
    """Both have read. What the second one read is older than what the first one stored."""
    org_id = None if is_new else theirs.world.create("Acme", "professional")
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional"), org_id=org_id)
    before = events(theirs)
    both_have_read = threading.Barrier(2, timeout=30)

    def read(provider: Provider, read_inventory: Callable[[Inventory], ReadT]) -> ReadT:
        found = theirs.read(provider, read_inventory)
        if provider == "lago":
            both_have_read.wait()
        return found

    adopters = [replace(theirs.adopter(), read=read) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda adopter: next(adopter.apply([row])), adopters))
    assert sorted(result.kind for result in results) == ["adopted", "already_adopted"]
    assert len({result.org_id for result in results}) == 1
    created = ["organization.created"] if is_new else ["organization.renamed", "organization.billing_details_changed"]
    assert events(theirs)[len(before) :] == [*created, "organization.adopted"]


def test_a_plan_that_is_sold_no_longer_is_adopted_as_it_is_paid(theirs: AdoptionHarness) -> None:
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional"))
    old = theirs.world.catalog.plan("professional").model_copy(update={"offered": False})
    plans = theirs.world.catalog.plans | {"professional": old}
    theirs.world.catalog = theirs.world.catalog.model_copy(update={"plans": plans})
    result = theirs.adopt(row)
    assert result.kind == "adopted"
    assert theirs.world.organization(str(result.org_id)).plan_tier == "professional"


def change_name(theirs: AdoptionHarness) -> None:
    theirs.world.sandbox.patch("stripe", "customers", "cus_theirs", name="Acme GmbH")


def change_price(theirs: AdoptionHarness) -> None:
    theirs.world.sandbox.patch("lago", "subscriptions", "contract", plan_overrides={"amount_cents": 4000})


def change_plan(theirs: AdoptionHarness) -> None:
    theirs.world.sandbox.patch("lago", "subscriptions", "contract", plan_code="enterprise")


def remove_customer(theirs: AdoptionHarness) -> None:
    theirs.world.sandbox.delete("lago", "customers", "acme")


def subscribe_again(theirs: AdoptionHarness) -> None:
    theirs.world.sandbox.preload_lago_subscription("acme", "starter", external_id="second")


def end_subscription(theirs: AdoptionHarness) -> None:
    theirs.world.sandbox.delete("lago", "subscriptions", "contract")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            change_name,
            "it changed: name at Stripe was Acme at Stripe and is Acme GmbH: run `billing-sync adopt discover` again",
        ),
        (change_price, "amount at Lago was 49.00 USD and is 40.00 USD"),
        (
            change_plan,
            "price at Lago was professional and is enterprise; amount at Lago was 49.00 USD and is 99.00 USD",
        ),
        (remove_customer, "customer acme is no longer at Lago"),
        (subscribe_again, "customer acme has 2 subscriptions at Lago"),
        (end_subscription, "external subscription id at Lago was contract and is none"),
    ],
)
def test_a_row_that_changed_meanwhile_is_left_and_named(
    theirs: AdoptionHarness, change: Callable[[AdoptionHarness], object], reason: str
) -> None:
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional"))
    change(theirs)
    result = theirs.adopt(row)
    assert result.kind == "left"
    assert reason in str(result.reason)
    assert_nothing_stored(theirs)


def assert_nothing_stored(theirs: AdoptionHarness) -> None:
    assert events(theirs) == []
    with theirs.world.database.read() as session:
        assert session.scalar(select(func.count(Organization.id))) == 0


def test_nobody_pays_for_a_customer_without_a_payer_and_it_gets_none(theirs: AdoptionHarness) -> None:
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional", payer=None))
    result = theirs.adopt(row, with_marks=False)
    assert result.kind == "adopted"
    assert "Lago charges nobody, because the customer has no payer, and it is given none" in result.remarks[0]
    assert theirs.world.link(str(result.org_id), "lago").without_payer


def test_a_connection_to_stripe_that_is_configured_later_gives_it_no_payer(theirs: AdoptionHarness) -> None:
    world = theirs.world
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional", payer=None))
    world.policy = PayerPolicy(sends_payer_to_lago=False)
    org_id = str(theirs.adopt(row).org_id)
    world.policy = PayerPolicy(sends_payer_to_lago=True)
    world.rename(org_id, "Acme Inc")
    world.reconcile_until_idle(org_id)
    (customer,) = world.lago_objects("customers")
    assert customer["name"] == "Acme Inc"
    assert "cus_theirs" not in str(customer["billing_configuration"])


def test_another_payer_is_refused_also_without_a_connection_to_stripe(theirs: AdoptionHarness) -> None:
    row = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional", payer="cus_other"))
    theirs.world.policy = PayerPolicy(sends_payer_to_lago=False)
    assert "Lago charges the Stripe customer cus_other" in str(theirs.adopt(row).reason)


def test_what_will_be_created_is_said(theirs: AdoptionHarness) -> None:
    without_subscription = theirs.adopt(theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer()))
    assert without_subscription.remarks == (
        "a subscription to professional will begin at Lago once the organization is managed",
    )
    only_stripe = theirs.adopt(theirs.row(stripe=theirs.stripe_customer("cus_other", name="Globex")))
    assert only_stripe.remarks == (
        "a customer with a subscription will be created at Lago once the organization is managed",
    )


def test_what_begins_in_lago_where_stripe_charges_is_paid_by_nobody(theirs: AdoptionHarness) -> None:
    theirs.world.set_charging_provider("stripe")
    assert theirs.adopt(theirs.row(stripe=theirs.stripe_customer())).remarks == (
        "a subscription to professional_monthly_usd will begin at Stripe once the organization is managed",
        (
            "a customer with a subscription will be created at Lago once the organization is managed; Stripe charges, "
            "so nobody pays for it in Lago"
        ),
    )


def test_an_id_of_its_own_that_lago_cannot_address_is_refused(theirs: AdoptionHarness) -> None:
    side = theirs.side("lago", theirs.lago_customer(plan="professional"))
    found = ProviderObjects(
        customer=InventoryCustomer(id=side.customer_id, external_id="acme.com", name="Acme", is_addressable=False)
    )
    row = theirs.row(lago="acme")
    with pytest.raises(NotAdoptedError, match=r"cannot address the external id 'acme\.com', because it has a dot"):
        guards.refuse_objects(row, guards.plan_of(row, theirs.world.catalog), {"lago": found}, theirs.world.catalog)


@pytest.mark.parametrize(
    ("given", "fields", "reason"),
    [
        (
            {"payer": "cus_other"},
            {},
            "Lago charges the Stripe customer cus_other, and the Stripe customer in the row is cus",
        ),
        ({"plan": "starter"}, {}, "it is on starter at Lago, which is plan starter, and the row says professional"),
        ({}, {"plan_tier": "gold"}, "plan_tier gold is not in plans.toml, which has"),
        ({}, {"plan_tier": None}, "the row names no plan_tier"),
        ({}, {"org_id": "org_none"}, "there is no organization org_none"),
        (
            {"price": 4000},
            {},
            "it pays 40.00 USD a month, and plan professional costs 49.00 USD a month: write `adopt-keep",
        ),
        (
            {"price": 4000},
            {"action": "change-to-catalog"},
            "Lago cannot change a price of its own to the price of the same",
        ),
        ({"name": " "}, {"name_source": "lago"}, None),
    ],
)
def test_what_cannot_be_adopted_is_refused_with_the_way_out(
    theirs: AdoptionHarness, given: dict[str, Any], fields: dict[str, Any], reason: str | None
) -> None:
    theirs.stripe_customer("cus_other", name="Other")
    stripe = theirs.stripe_customer()
    fields_at_lago = {"plan": "professional", **given}
    price = fields_at_lago.pop("price", None)
    lago = theirs.lago_customer(**fields_at_lago)
    if price is not None:
        theirs.world.sandbox.patch("lago", "subscriptions", "contract", plan_overrides={"amount_cents": price})
    result = theirs.adopt(theirs.row(stripe=stripe, lago=lago, **fields))
    if reason is None:
        assert result.kind == "adopted"
        return
    assert result.kind == "rejected"
    assert reason in str(result.reason)
    assert_nothing_stored(theirs)
    assert theirs.writes() == []
