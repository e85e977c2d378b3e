"""A plan that is sold no longer: whoever is on it stays on it, and nobody else gets it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from core.access import users
from core.access.users import UserProfile
from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands, plan_changes
from core.organizations.commands import NewOrganization

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
REFUSED = "plan {} is sold no longer; plans on sale: {}"


def without(plans: Catalog, *tiers: str) -> Catalog:
    """The catalog in which these plans are sold no longer."""
    changed = {tier: plans.plan(tier).model_copy(update={"offered": False}) for tier in tiers}
    return plans.model_copy(update={"plans": {**plans.plans, **changed}})


def create(database: Database, plans: Catalog, tier: str, *, has_plan_already: bool = False) -> str:
    new = NewOrganization(name=f"On {tier}", plan_tier=tier, has_plan_already=has_plan_already)
    with database.write() as session:
        return commands.create(ChangeContext(session, NOW), new, plans).id


def change_plan(database: Database, plans: Catalog, org_id: str, tier: str) -> tuple[str, str | None]:
    """The plan afterwards, and the one that is scheduled."""
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        plan_changes.change_plan(ChangeContext(session, NOW), organization, tier, plans)
        return organization.plan_tier, organization.pending_plan_tier


def test_no_new_organization_gets_it(database: Database, plans: Catalog) -> None:
    sold = without(plans, "starter")
    with pytest.raises(InvalidChangeError) as caught:
        create(database, sold, "starter")
    assert str(caught.value) == REFUSED.format("starter", "founders_friend, professional, enterprise")


def test_an_organization_that_a_provider_charges_for_it_may_come_with_it(database: Database, plans: Catalog) -> None:
    org_id = create(database, without(plans, "starter"), "starter", has_plan_already=True)
    with database.read() as session:
        assert session.get_one(Organization, org_id).plan_tier == "starter"


@pytest.mark.parametrize(("before", "refused"), [("starter", "professional"), ("enterprise", "professional")])
def test_neither_an_upgrade_nor_a_downgrade_leads_to_it(
    database: Database, plans: Catalog, before: str, refused: str
) -> None:
    org_id = create(database, plans, before)
    with pytest.raises(InvalidChangeError, match="plan professional is sold no longer"):
        change_plan(database, without(plans, refused), org_id, refused)


def test_whoever_is_on_it_keeps_it_when_a_downgrade_is_taken_back_and_may_leave(
    database: Database, plans: Catalog
) -> None:
    sold = without(plans, "professional")
    org_id = create(database, plans, "professional")
    assert change_plan(database, sold, org_id, "starter") == ("professional", "starter")
    assert change_plan(database, sold, org_id, "professional") == ("professional", None)
    assert change_plan(database, sold, org_id, "enterprise") == ("enterprise", None)


def test_a_new_user_gets_the_lowest_plan_that_is_on_sale(database: Database, plans: Catalog) -> None:
    sold = without(plans, "founders_friend")
    profile = UserProfile(user_id="user_1", name="Ada", email=None)
    with database.write() as session:
        users.sign_in(ChangeContext(session, NOW), profile, sold)
    with database.read() as session:
        assert [each.plan_tier for each in session.query(Organization)] == ["starter"]
