"""What our own rows keep from being adopted. The guards are in the transaction, so a refusal stores nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from core.adoption.row import AdoptionRow
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.db.models.providers import ProviderStatus
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from core.ports.spec import PROVIDERS, Provider
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness
from tests.support.sync_world import SyncWorld


@pytest.fixture
def theirs(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[AdoptionHarness]:
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    yield harness
    harness.close()


@pytest.fixture
def row(theirs: AdoptionHarness) -> AdoptionRow:
    """For an organization that exists, on the plan that is paid."""
    found = theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional"))
    return replace(found, org_id=theirs.world.create("Acme", "professional"))


def set_link(theirs: AdoptionHarness, org_id: str, provider: Provider, **values: Any) -> None:  # noqa: ANN401 - columns
    with theirs.world.database.write() as session:
        link = session.get_one(BillingLink, (org_id, provider))
        for name, value in values.items():
            setattr(link, name, value)


def assert_refused(theirs: AdoptionHarness, row: AdoptionRow, kind: str, reason: str) -> None:
    before = [theirs.world.link(str(row.org_id), each).ownership for each in ("stripe", "lago")]
    result = theirs.adopt(row)
    assert (result.kind, result.org_id) == (kind, row.org_id)
    assert reason in str(result.reason)
    assert [theirs.world.link(str(row.org_id), each).ownership for each in ("stripe", "lago")] == before
    assert theirs.writes() == []


INTENT = {
    "operation": "create_customer",
    "generation": 1,
    "key": "key",
    "body": {},
    "first_sent_at": "2026-11-30T12:00:00+00:00",
    "last_sent_at": "2026-11-30T12:00:00+00:00",
}


@pytest.mark.parametrize(
    ("provider", "values", "kind", "reason"),
    [
        ("stripe", {"customer_id": "cus_other"}, "rejected", "has customer cus_other at Stripe, not cus_theirs"),
        ("lago", {"customer_id": "other"}, "rejected", "has customer other at Lago, not "),
        ("lago", {"intent": INTENT}, "left", "a request to Lago for org_"),
        ("lago", {"state": "on_hold", "error_kind": "import"}, "rejected", "its link at Lago is on hold"),
    ],
)
def test_a_link_keeps_a_row_from_being_adopted(  # noqa: PLR0913, PLR0917 - one row of the table above
    theirs: AdoptionHarness, row: AdoptionRow, provider: Provider, values: dict[str, Any], kind: str, reason: str
) -> None:
    set_link(theirs, str(row.org_id), provider, **values)
    assert_refused(theirs, row, kind, reason)


def test_a_link_that_is_being_synced_is_left_and_adopted_afterwards(theirs: AdoptionHarness, row: AdoptionRow) -> None:
    until = theirs.world.now + timedelta(seconds=45)
    set_link(theirs, str(row.org_id), "lago", lease_token="worker", lease_until=until)
    assert_refused(theirs, row, "left", "is being synced now: apply the table again in a minute")
    theirs.world.expire_lease()
    assert theirs.adopt(row).kind == "adopted"


def delete(change: ChangeContext, organization: Organization) -> None:
    commands.change_status(change, organization, "deleted")


def test_a_deleted_organization_is_refused(theirs: AdoptionHarness, row: AdoptionRow) -> None:
    theirs.world.change(str(row.org_id), delete)
    assert_refused(theirs, row, "rejected", "is deleted: write another org_id into the row")


def test_another_plan_is_refused_with_the_way_out_and_the_way_out_works_up_and_down(
    theirs: AdoptionHarness, row: AdoptionRow
) -> None:
    for ours in ("starter", "enterprise"):
        org_id = theirs.world.create(f"On {ours}", ours)
        other = replace(row, org_id=org_id, name_source="ours")
        assert_refused(
            theirs,
            other,
            "rejected",
            f"has plan {ours}, and pays for professional: run `billing-sync set {org_id} --plan",
        )
        theirs.world.change_plan(org_id, "professional")
        dry = theirs.adopter(is_dry_run=True)
        assert dry.adopt(other).kind == "adopted"
    assert theirs.adopt(other).kind == "adopted"
    organization = theirs.world.organization(org_id)
    assert (organization.plan_tier, organization.pending_plan_tier) == ("professional", None)


def test_a_downgrade_of_ours_that_is_not_scheduled_there_is_refused_and_the_way_out_works(
    theirs: AdoptionHarness, row: AdoptionRow
) -> None:
    org_id = theirs.world.create("On professional", "professional")
    row = replace(row, org_id=org_id, name_source="ours")
    theirs.world.change_plan(org_id, "starter")
    assert_refused(
        theirs,
        row,
        "rejected",
        f"{org_id} changes to starter when the period ends, and that is not scheduled at the provider: run "
        f"`billing-sync set {org_id} --plan professional`, which cancels it",
    )
    theirs.world.change_plan(org_id, "professional")
    assert theirs.adopt(row).kind == "adopted"


@pytest.mark.parametrize("identity", ["customer", "external customer id", "external subscription id", "organization"])
def test_an_identity_belongs_to_one_organization(theirs: AdoptionHarness, row: AdoptionRow, identity: str) -> None:
    other = theirs.world.create("Other", "professional")
    match identity:
        case "customer":
            set_link(theirs, other, "stripe", customer_id="cus_theirs")
        case "external customer id":
            set_link(theirs, other, "lago", external_customer_id="acme")
        case "external subscription id":
            set_link(theirs, other, "lago", external_subscription_id="contract")
        case _:
            theirs.lago_customer("acme-2", plan="professional", subscription=other, payer=None)
            row = replace(theirs.row(lago="acme-2"), org_id=row.org_id)
    assert_refused(theirs, row, "rejected", f"belongs to organization {other}: run `billing-sync adopt discover` again")
    assert_new_is_refused(theirs, row, other)


def assert_new_is_refused(theirs: AdoptionHarness, row: AdoptionRow, owner: str) -> None:
    """Also for a new organization: an identity never leads to a second one."""
    result = theirs.adopt(replace(row, org_id=None))
    assert (result.kind, result.org_id) == ("rejected", None)
    assert f"belongs to organization {owner}" in str(result.reason)


def test_the_name_of_another_organization_is_refused(theirs: AdoptionHarness, row: AdoptionRow) -> None:
    other = theirs.world.create("Acme at Lago", "starter")
    way_out = f"as {other}: rename that one with `billing-sync set {other} --name NAME`, choose a name_source that has"
    assert_refused(theirs, row, "rejected", f"Organization 'Acme at Lago' already exists, {way_out} another name")


def price_of(theirs: AdoptionHarness, tier: str = "professional") -> dict[str, object]:
    key = theirs.world.catalog.plan(tier).stripe_lookup_key
    return next(each for each in theirs.world.stripe_objects("prices") if each["lookup_key"] == key)


def test_both_providers_must_not_charge(theirs: AdoptionHarness) -> None:
    theirs.world.set_charging_provider("stripe")
    stripe, lago = theirs.stripe_customer(), theirs.lago_customer(plan="professional")
    price = price_of(theirs)
    theirs.world.sandbox.preload_stripe_subscription(stripe, str(price["id"]))
    found = theirs.row(stripe=stripe, lago=lago, org_id=theirs.world.create("Acme", "professional"))
    for provider in PROVIDERS:
        theirs.world.set_charging_provider(provider)
        for tier in ("starter", "professional"):
            assert_refused(
                theirs, replace(found, plan_tier=tier), "rejected", "to cus_theirs: end one of the two, then run"
            )
    at_stripe = replace(found, sides={"stripe": found.sides["stripe"]})
    theirs.world.set_charging_provider("lago")
    assert_refused(
        theirs, at_stripe, "rejected", "Lago charges for plan professional, and Stripe charges for subscription sub_"
    )


def test_a_payer_in_lago_is_refused_without_changing_who_charges_for_everybody(theirs: AdoptionHarness) -> None:
    theirs.world.set_charging_provider("stripe")
    stripe, lago = theirs.stripe_customer(), theirs.lago_customer()
    theirs.world.sandbox.preload_stripe_subscription(stripe, str(price_of(theirs)["id"]))
    result = theirs.adopt(theirs.row(stripe=stripe, lago=lago))
    assert str(result.reason).endswith("and Lago charges cus_theirs, too: remove the payer in Lago")


def test_where_stripe_charges_its_subscription_is_what_is_paid(theirs: AdoptionHarness) -> None:
    theirs.world.set_charging_provider("stripe")
    stripe, lago = theirs.stripe_customer(), theirs.lago_customer(plan="professional", payer=None)
    price = price_of(theirs)
    subscription = theirs.world.sandbox.preload_stripe_subscription(stripe, str(price["id"]))
    result = theirs.adopt(theirs.row(stripe=stripe, lago=lago), with_marks=False)
    assert (result.kind, result.remarks) == ("adopted", ())
    link = theirs.world.link(str(result.org_id), "stripe")
    assert (link.subscription_id, link.sold_price_id, link.applied_plan) == (
        subscription["id"],
        price["id"],
        theirs.world.catalog.plan("professional").stripe_lookup_key,
    )
    theirs.world.reconcile_until_idle(str(result.org_id))
    assert theirs.writes() == []


def test_a_customer_that_we_made_stays_ours(theirs: AdoptionHarness) -> None:
    """The row found it by our marks: only the other side is adopted."""
    org_id = theirs.world.create("Acme", "professional")
    theirs.world.run(org_id, "stripe")
    customer_id = str(theirs.world.link(org_id, "stripe").customer_id)
    theirs.lago_customer(plan="professional", payer=customer_id)
    result = theirs.adopt(theirs.row(stripe=customer_id, lago="acme", org_id=org_id))
    assert result.kind == "adopted"
    assert theirs.world.link(org_id, "stripe").ownership == "ours"
    assert theirs.world.link(org_id, "lago").ownership == "adopted"
    new = NewOrganization(name="Second", plan_tier="professional")
    with theirs.world.database.write() as session:
        commands.create(ChangeContext(session, theirs.world.now), new, theirs.world.catalog)


def test_a_dry_run_stores_nothing_and_a_limit_counts_what_is_adopted(theirs: AdoptionHarness) -> None:
    rows = [theirs.row(stripe=theirs.stripe_customer(f"cus_{number}", name=f"Acme {number}")) for number in range(4)]
    rows[0] = replace(rows[0], plan_tier="gold")
    dry = list(theirs.adopter(is_dry_run=True).apply(rows))
    assert [each.kind for each in dry] == ["rejected", "adopted", "adopted", "adopted"]
    first = list(theirs.adopter().apply(rows, limit=2))
    assert [each.kind for each in first] == ["rejected", "adopted", "adopted", "not_tried"]
    second = list(theirs.adopter().apply([*rows, replace(rows[3], action="skip")], limit=2))
    assert [each.kind for each in second] == ["rejected", "already_adopted", "already_adopted", "adopted", "skipped"]


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_no_result_names_an_organization_that_is_not_stored(theirs: AdoptionHarness, *, is_dry_run: bool) -> None:
    """Each row is for a new organization. Of the second, our desired state would be refused once that was made."""
    world = theirs.world
    adopted = theirs.row(stripe=theirs.stripe_customer("cus_first"))
    theirs.lago_customer("acme", plan="professional", payer=theirs.stripe_customer())
    world.sandbox.preload_lago_subscription("acme", "starter", external_id="contract")
    world.set_charging_provider("stripe", "starter")
    refused = theirs.row(stripe="cus_theirs", lago="acme")
    results = list(theirs.adopter(is_dry_run=is_dry_run).apply([adopted, refused]))
    assert [each.kind for each in results] == ["adopted", "rejected"]
    with world.database.read() as session:
        stored = set(session.scalars(select(Organization.id)))
    named = set(re.findall(r"org_[\w-]+", " ".join(map(str, results))))
    assert named - {"org_id"} == stored
    assert "starter is scheduled at Lago, and Stripe charges for it" in str(results[1].reason)
    assert "cancel the change at Lago, or let one provider charge for both plans" in str(results[1].reason)


@pytest.mark.parametrize("marked", ["customer", "subscription"])
@pytest.mark.parametrize("by", ["another organization", "another database", "a database of before"])
def test_marks_of_somebody_else_are_refused_also_without_marks(theirs: AdoptionHarness, marked: str, by: str) -> None:
    """Complete marks name the organization and the database. An operator may have changed the row's org_id."""
    org_id = theirs.world.create("Acme", "professional")
    other = theirs.world.create("Globex", "professional") if by == "another organization" else "org_elsewhere"
    with theirs.world.database.read() as session:
        ours = session.get_one(ProviderStatus, "stripe").database_id
    database_id = ours if by == "a database of before" else "another"
    marks = {"billing_sync_org_id": other, "billing_sync_database_id": database_id}
    theirs.world.set_charging_provider("stripe")
    stripe = theirs.stripe_customer(metadata=marks if marked == "customer" else {})
    theirs.world.sandbox.preload_stripe_subscription(
        stripe, str(price_of(theirs)["id"]), metadata=marks if marked == "subscription" else {}
    )
    found = theirs.row(stripe=stripe, org_id=org_id)
    for with_marks in (True, False):
        for each in (found, replace(found, org_id=None)):
            result = theirs.adopt(each, with_marks=with_marks)
            assert result.kind == "rejected"
            assert f"has the marks of {other}" in str(result.reason)
    assert theirs.world.link(org_id, "stripe").ownership == "ours"
    assert theirs.writes() == []


def test_our_own_marks_count_whatever_database_wrote_them(theirs: AdoptionHarness) -> None:
    """The database was restored or copied: ids of organizations are random, so it is the same one."""
    org_id = theirs.world.create("Acme", "professional")
    marks = {"billing_sync_org_id": org_id, "billing_sync_database_id": "before"}
    theirs.world.set_charging_provider("stripe")
    stripe = theirs.stripe_customer(metadata=marks)
    theirs.world.sandbox.preload_stripe_subscription(stripe, str(price_of(theirs)["id"]), metadata=marks)
    assert theirs.adopt(theirs.row(stripe=stripe, org_id=org_id)).kind == "adopted"


def test_a_change_of_our_own_name_or_address_after_the_table_was_written_is_not_overwritten(
    theirs: AdoptionHarness, row: AdoptionRow
) -> None:
    org_id = str(row.org_id)
    shown = replace(row, our_name="Acme", our_email=None)
    theirs.world.rename(org_id, "Acme GmbH")
    assert_refused(theirs, shown, "left", f"it changed: our name of {org_id} was Acme and is Acme GmbH")
    renamed = replace(shown, our_name="Acme GmbH")
    theirs.world.change(org_id, set_email)
    assert_refused(theirs, renamed, "left", f"it changed: our email of {org_id} was none and is new@acme.test")
    organization = theirs.world.organization(org_id)
    assert (organization.name, organization.billing_email) == ("Acme GmbH", "new@acme.test")
    assert theirs.adopt(replace(renamed, our_email="new@acme.test")).kind == "adopted"


def set_email(_: ChangeContext, organization: Organization) -> None:
    organization.billing_email = "new@acme.test"


def test_an_organization_that_an_operator_wrote_into_the_row_has_nothing_of_ours_to_compare(
    theirs: AdoptionHarness, row: AdoptionRow
) -> None:
    theirs.world.change(str(row.org_id), set_email)
    assert theirs.adopt(row).kind == "adopted"
