"""Billing ids from people: on one organization each, believed only once read, never changed under a subscription."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.events.event_types import ChangeContext
from core.organizations import commands, provider_ids
from core.organizations.commands import NewOrganization
from core.ports.spec import Provider

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def create(database: Database, plans: Catalog, name: str = "Acme") -> str:
    with database.write() as session:
        return commands.create(ChangeContext(session, NOW), NewOrganization(name=name, plan_tier="starter"), plans).id


def bring(database: Database, org_id: str, ids: Mapping[Provider, str | None]) -> None:
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        provider_ids.set_customer_ids(ChangeContext(session, NOW), organization, ids)


def link(database: Database, org_id: str, provider: Provider) -> BillingLink:
    with database.read() as session:
        return session.get_one(BillingLink, (org_id, provider))


def put(database: Database, org_id: str, provider: Provider, **values: object) -> None:
    with database.write() as session:
        row = session.get_one(BillingLink, (org_id, provider))
        for name, value in values.items():
            setattr(row, name, value)


def test_a_new_id_makes_the_link_believe_nothing_and_look_again(database: Database, plans: Catalog) -> None:
    org_id = create(database, plans)
    put(
        database,
        org_id,
        "lago",
        customer_id="l1",
        customer_state="applied",
        customer_fingerprint="d",
        plan_state="applied",
        applied_plan="starter",
        applied_next_plan="free",
        state="on_hold",
        applied_version=1,
        intent={"operation": "x"},
    )
    bring(database, org_id, {"lago": "l2"})
    row = link(database, org_id, "lago")
    assert (row.customer_id, row.customer_state, row.customer_fingerprint) == ("l2", "unconfirmed", None)
    assert (row.plan_state, row.applied_plan, row.applied_next_plan, row.intent) == ("unknown", None, None, None)
    assert (row.state, row.desired_version, row.generation) == ("active", 2, 1)
    assert link(database, org_id, "stripe").customer_id is None
    assert link(database, org_id, "stripe").desired_version == 2


def test_the_same_id_again_changes_and_records_nothing(database: Database, plans: Catalog) -> None:
    org_id = create(database, plans)
    bring(database, org_id, {"stripe": "cus_1", "lago": None})
    put(database, org_id, "stripe", customer_fingerprint="d")
    bring(database, org_id, {"stripe": "cus_1"})
    bring(database, org_id, {"stripe": None, "lago": None})
    assert link(database, org_id, "stripe").customer_fingerprint == "d"
    with database.read() as session:
        events = [(event.type, event.data) for event in session.scalars(select(Event).order_by(Event.seq))]
    assert events[1:] == [("organization.billing_details_changed", {"fields": ["stripe_id"]})]


def test_an_id_of_one_biller_may_be_anothers_at_the_other(database: Database, plans: Catalog) -> None:
    bring(database, create(database, plans, "One"), {"stripe": "same"})
    bring(database, create(database, plans, "Two"), {"lago": "same"})


def test_an_id_that_another_organization_has_is_refused_and_leaves_both(database: Database, plans: Catalog) -> None:
    owner, other = create(database, plans, "One"), create(database, plans, "Two")
    bring(database, owner, {"lago": "l1"})
    with pytest.raises(InvalidChangeError, match=f"lago_id l1 already belongs to organization {owner}"):
        bring(database, other, {"stripe": "cus_1", "lago": "l1"})
    assert link(database, other, "stripe").customer_id is None
    assert link(database, owner, "lago").customer_id == "l1"


@pytest.mark.parametrize("bad", ["", " ", "x" * 256, " cus_1", "cus_1\n", "cus\x001"])
def test_an_id_that_no_biller_gives_is_refused_with_its_field(database: Database, plans: Catalog, bad: str) -> None:
    org_id = create(database, plans)
    with pytest.raises(InvalidChangeError, match="stripe_id") as caught:
        bring(database, org_id, {"stripe": bad})
    assert caught.value.field == "stripe_id"


@pytest.mark.parametrize(
    "running", [{"subscription_id": "sub_1"}, {"intent": {"operation": "create_subscription"}}], ids=["runs", "begins"]
)
def test_the_payer_cannot_be_changed_under_a_subscription(
    database: Database, plans: Catalog, running: dict[str, object]
) -> None:
    org_id = create(database, plans)
    put(database, org_id, "stripe", customer_id="cus_1", **running)
    with pytest.raises(InvalidChangeError, match="end it first"):
        bring(database, org_id, {"stripe": "cus_2"})
    bring(database, org_id, {"stripe": "cus_1"})
    assert link(database, org_id, "stripe").customer_id == "cus_1"


def test_many_who_bring_one_id_at_once_leave_it_on_one(database: Database, plans: Catalog) -> None:
    org_ids = [create(database, plans, f"Acme {number}") for number in range(6)]
    gate = threading.Barrier(len(org_ids))
    refused: list[str] = []

    def take(org_id: str) -> None:
        gate.wait()
        try:
            bring(database, org_id, {"stripe": "cus_1"})
        except InvalidChangeError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take, args=(org_id,)) for org_id in org_ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 5
    assert all("already belongs to organization" in sentence for sentence in refused)
