"""Adopting what is at the providers: identities are stored, and nothing is written there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import func, select

from core.db.models.events import Event
from core.db.models.history import LinkHistory
from core.db.models.organizations import Organization
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness
from tests.support.sync_world import SyncWorld


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
