"""Changes to organizations: the version rises when a biller must see one, an event says that something changed."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import func, select

from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog
from core.common.validation import InvalidChangeError
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.organizations import MEMBERSHIP_ROLES, ORGANIZATION_STATUSES, Membership, Organization
from core.events.event_types import Cause, ChangeContext
from core.organizations import commands, memberships, plan_changes, provider_ids
from core.organizations.commands import NameTakenError, NewOrganization

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
PLANS = plan_catalog.load()
SYNCED_COLUMNS = ("name", "plan_tier", "pending_plan_tier", "billing_email", "currency")


@dataclass(frozen=True)
class OrganizationSnapshot:
    """One organization as a test compares it before and after a change."""

    name: str
    plan_tier: str
    pending_plan_tier: str | None
    status: str
    billing_email: str | None
    currency: str | None
    version: int
    ids: tuple[str | None, ...]
    members: tuple[tuple[str, str], ...]
    events: int

    @property
    def synced(self) -> tuple[object, ...]:
        """What a biller must see of it; a suspension is none of their business, a deletion is."""
        return (*(getattr(self, name) for name in SYNCED_COLUMNS), self.status == "deleted", self.ids)

    @property
    def whole(self) -> tuple[object, ...]:
        return (self.synced, self.status, self.members)


def snapshot(database: Database, org_id: str) -> OrganizationSnapshot:
    with database.read() as session:
        organization = session.get_one(Organization, org_id)
        links = session.scalars(select(BillingLink).where(BillingLink.org_id == org_id).order_by(BillingLink.provider))
        ids = []
        for link in links:
            assert link.desired_version == organization.version
            assert link.applied_version == 0
            ids.append(link.customer_id)
        members = session.scalars(select(Membership).where(Membership.org_id == org_id).order_by(Membership.user_id))
        events = session.scalar(select(func.count()).where(Event.org_id == org_id)) or 0
        return OrganizationSnapshot(
            name=organization.name,
            plan_tier=organization.plan_tier,
            pending_plan_tier=organization.pending_plan_tier,
            status=organization.status,
            billing_email=organization.billing_email,
            currency=organization.currency,
            version=organization.version,
            ids=tuple(ids),
            members=tuple((member.user_id, member.role) for member in members),
            events=events,
        )


names = st.sampled_from(
    [
        "Acme",
        "ACME ",
        "acme",
        "Straße",
        "STRASSE",
        "Café",
        "Cafe\u0301",
        "ＣＡＦÉ",
        "A\u200bcme",
        "",
        "  ",
        "a\nb",
        "x" * 201,
    ]
)
tiers = st.sampled_from([*PLANS.tiers(), "gold"])


class AnyChanges(RuleBasedStateMachine):
    """Any changes in any order, good and bad, keep what the module promises."""

    orgs = Bundle("orgs")

    def __init__(self) -> None:
        super().__init__()
        self._folder = TemporaryDirectory()
        self.database = Database(f"sqlite:///{Path(self._folder.name) / 'test.db'}")
        self.database.upgrade()
        self.now = NOW
        self.snapshots: list[str] = []

    def teardown(self) -> None:
        self.database.close()
        self._folder.cleanup()

    @initialize(target=orgs)
    def first(self) -> str:
        return self._create("First", "professional")

    @rule(target=orgs, name=names, tier=tiers)
    def create(self, name: str, tier: str) -> str:
        with suppress(InvalidChangeError):
            return self._create(name, tier)
        return self.snapshots[0]

    def _create(self, name: str, tier: str) -> str:
        self.now += timedelta(seconds=1)
        with self.database.write() as session:
            org_id = commands.create(
                ChangeContext(session, self.now), NewOrganization(name=name, plan_tier=tier), PLANS
            ).id
        self.snapshots.append(org_id)
        assert snapshot(self.database, org_id).events == 1
        return org_id

    @rule(org=orgs, name=names)
    def rename(self, org: str, name: str) -> None:
        self._change(org, lambda change, it: commands.rename(change, it, name))

    @rule(org=orgs, tier=tiers)
    def change_plan(self, org: str, tier: str) -> None:
        self._change(org, lambda change, it: plan_changes.change_plan(change, it, tier, PLANS))

    @rule(org=orgs, status=st.sampled_from([*ORGANIZATION_STATUSES, "paused"]))
    def change_status(self, org: str, status: str) -> None:
        self._change(org, lambda change, it: commands.change_status(change, it, status))

    @rule(
        org=orgs,
        email=st.sampled_from([None, "a@b.test", "c@d.test", "nobody"]),
        currency=st.sampled_from([None, "USD", "EUR", "eur"]),
    )
    def change_details(self, org: str, email: str | None, currency: str | None) -> None:
        self._change(
            org,
            lambda change, it: commands.change_billing_details(
                change, it, PLANS, billing_email=email, currency=currency
            ),
        )

    @rule(org=orgs, lago=st.sampled_from([None, "l1", "l2", ""]), stripe=st.sampled_from([None, "cus_1", " cus_1"]))
    def bring_ids(self, org: str, lago: str | None, stripe: str | None) -> None:
        self._change(
            org, lambda change, it: provider_ids.set_customer_ids(change, it, {"lago": lago, "stripe": stripe})
        )

    @rule(org=orgs, user=st.sampled_from(["u1", "u2", ""]), role=st.sampled_from([*MEMBERSHIP_ROLES, "admin"]))
    def add_member(self, org: str, user: str, role: str) -> None:
        self._change(org, lambda change, it: memberships.add(change, it, user, role))

    @rule(org=orgs, user=st.sampled_from(["u1", "u2"]), role=st.sampled_from([None, *MEMBERSHIP_ROLES, "admin"]))
    def change_member(self, org: str, user: str, role: str | None) -> None:
        def change_it(change: ChangeContext, it: Organization) -> None:
            member = memberships.lock(change.session, it.id, user)
            if member is not None and role is None:
                memberships.remove(change, member)
            elif member is not None and role is not None:
                memberships.change_role(change, member, role)

        self._change(org, change_it)

    def _change(self, org: str, change: Callable[[ChangeContext, Organization], object]) -> None:
        self.now += timedelta(seconds=1)
        before = snapshot(self.database, org)
        done = False
        with suppress(InvalidChangeError), self.database.write() as session:
            organization = commands.lock(session, org)
            assert organization is not None
            change(ChangeContext(session, self.now), organization)
            done = True
        after = snapshot(self.database, org)
        if not done:
            assert after == before
        assert after.version - before.version == (1 if after.synced != before.synced else 0)
        assert after.events - before.events == (1 if after.whole != before.whole else 0)

    @invariant()
    def names_are_unique_among_those_that_live(self) -> None:
        with self.database.read() as session:
            living = session.scalars(select(Organization.name).where(Organization.status != "deleted")).all()
        keys = [unicodedata.normalize("NFKC", name).strip().casefold() for name in living]
        assert len(keys) == len(set(keys))

    @invariant()
    def a_billing_id_is_on_one_organization(self) -> None:
        with self.database.read() as session:
            rows = session.execute(
                select(BillingLink.provider, BillingLink.customer_id).where(BillingLink.customer_id.is_not(None))
            ).all()
        assert len(rows) == len({tuple(row) for row in rows})

    @invariant()
    def what_waits_ranks_below_what_is(self) -> None:
        with self.database.read() as session:
            waiting = session.scalars(select(Organization).where(Organization.pending_plan_tier.is_not(None))).all()
        for organization in waiting:
            assert organization.status != "deleted"
            assert PLANS.plan(organization.pending_plan_tier or "").rank < PLANS.plan(organization.plan_tier).rank


TestAnyChanges = pytest.mark.slow(AnyChanges.TestCase)
TestAnyChanges.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


def create(database: Database, plans: Catalog, name: str = "Acme", tier: str = "professional") -> str:
    with database.write() as session:
        return commands.create(ChangeContext(session, NOW), NewOrganization(name=name, plan_tier=tier), plans).id


def test_the_event_tells_who_did_it_through_what_and_why(database: Database, plans: Catalog) -> None:
    cause = Cause(actor="person:7", source="/crm", caused_by="/crm#12")
    with database.write() as session:
        new = NewOrganization(name="Acme", plan_tier="starter")
        org_id = commands.create(ChangeContext(session, NOW, cause), new, plans).id
    with database.read() as session:
        event = session.scalars(select(Event)).one()
    assert (event.type, event.org_id, event.actor, event.source, event.caused_by, event.data, event.occurred_at) == (
        "organization.created",
        org_id,
        "person:7",
        "/crm",
        "/crm#12",
        {"plan_tier": "starter"},
        NOW,
    )


def test_events_hold_no_name_and_no_address(database: Database, plans: Catalog) -> None:
    org_id = create(database, plans, "Very Secret")
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        commands.rename(ChangeContext(session, NOW), organization, "More Secret")
        commands.change_billing_details(
            ChangeContext(session, NOW), organization, plans, billing_email="boss@secret.test"
        )
    with database.read() as session:
        kept = [event.data for event in session.scalars(select(Event))]
    assert len(kept) == 3
    assert "ecret" not in str(kept)


def test_a_change_that_fails_later_leaves_neither_row_nor_event(database: Database, plans: Catalog) -> None:
    org_id = create(database, plans)
    before = snapshot(database, org_id)

    def fail() -> None:
        with database.write() as session:
            organization = commands.lock(session, org_id)
            assert organization is not None
            commands.rename(ChangeContext(session, NOW), organization, "Other")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert snapshot(database, org_id) == before


def test_a_change_gives_a_parked_link_its_chance_and_leaves_a_held_one(database: Database, plans: Catalog) -> None:
    org_id = create(database, plans)
    with database.write() as session:
        session.get_one(BillingLink, (org_id, "stripe")).state = "parked"
        session.get_one(BillingLink, (org_id, "lago")).state = "on_hold"
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        commands.rename(ChangeContext(session, NOW), organization, "Other")
    with database.read() as session:
        states = {link.provider: link.state for link in session.scalars(select(BillingLink))}
    assert states == {"stripe": "active", "lago": "on_hold"}


def test_a_deleted_organization_frees_its_name_and_needs_it_back(database: Database, plans: Catalog) -> None:
    first = create(database, plans)
    with database.write() as session:
        organization = commands.lock(session, first)
        assert organization is not None
        commands.change_status(ChangeContext(session, NOW), organization, "deleted")
    create(database, plans, "ACME")

    def restore() -> None:
        with database.write() as session:
            organization = commands.lock(session, first)
            assert organization is not None
            commands.change_status(ChangeContext(session, NOW), organization, "active")

    with pytest.raises(NameTakenError, match="already exists"):
        restore()


def test_an_unknown_plan_of_old_can_only_be_left_for_a_known_one_and_at_once(
    database: Database, plans: Catalog
) -> None:
    org_id = create(database, plans)
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        organization.plan_tier = "legacy"
    with database.write() as session:
        organization = commands.lock(session, org_id)
        assert organization is not None
        plan_changes.change_plan(ChangeContext(session, NOW), organization, "founders_friend", plans)
    after = snapshot(database, org_id)
    assert (after.plan_tier, after.pending_plan_tier) == ("founders_friend", None)


@pytest.mark.parametrize("org_id", ["acme", "org_", "org_a.b", "org_a/b", "org_" + "x" * 61, "org_ä"])
def test_an_id_from_outside_must_be_one_that_both_billers_take(database: Database, plans: Catalog, org_id: str) -> None:
    with (
        pytest.raises(InvalidChangeError, match="org_id must be org_ followed by"),
        database.write() as session,
    ):
        commands.create(
            ChangeContext(session, NOW), NewOrganization(name="Acme", plan_tier="starter", org_id=org_id), plans
        )


def _with_euro_plan(plans: Catalog) -> Catalog:
    codes = {"lago_plan_code": "euro", "stripe_lookup_key": "euro"}
    euro = plans.plan("enterprise").model_copy(update={"tier": "euro", "rank": 900, "currency": "EUR", **codes})
    return plans.model_copy(update={"plans": plans.plans | {"euro": euro}})


def test_an_organization_is_created_in_the_currency_of_its_plan(database: Database, plans: Catalog) -> None:
    catalog = _with_euro_plan(plans)
    with database.write() as session:
        change = ChangeContext(session, NOW)
        with pytest.raises(InvalidChangeError, match=r"costs USD, not EUR\. Plans in EUR: euro\.") as caught:
            commands.create(change, NewOrganization(name="Acme", plan_tier="starter", currency="EUR"), catalog)
        assert caught.value.field == "currency"
        with pytest.raises(InvalidChangeError, match="Plans in SEK: none"):
            commands.create(change, NewOrganization(name="Acme", plan_tier="starter", currency="SEK"), catalog)
        commands.create(change, NewOrganization(name="Acme", plan_tier="euro", currency="EUR"), catalog)


@pytest.mark.parametrize("currency", [None, "USD"])
def test_an_organization_keeps_the_currency_that_it_pays_in(
    database: Database, plans: Catalog, currency: str | None
) -> None:
    catalog = _with_euro_plan(plans)
    with database.write() as session:
        change = ChangeContext(session, NOW)
        new = NewOrganization(name="Acme", plan_tier="starter", currency=currency)
        organization = commands.create(change, new, catalog)
        with pytest.raises(InvalidChangeError, match="plan euro costs EUR, not USD") as caught:
            plan_changes.change_plan(change, organization, "euro", catalog)
        assert caught.value.field == "plan_tier"
        with pytest.raises(InvalidChangeError, match="plan starter costs USD, not EUR") as caught:
            commands.change_billing_details(change, organization, catalog, billing_email="a@b.test", currency="EUR")
        assert caught.value.field == "currency"
        assert (organization.billing_email, organization.version) == (None, 1)


def test_a_scheduled_plan_holds_the_currency_too(database: Database, plans: Catalog) -> None:
    """The row is as before this rule: the plan that goes on is unknown to the catalog, the scheduled one is in it."""
    with database.write() as session:
        change = ChangeContext(session, NOW)
        organization = commands.create(change, NewOrganization(name="Acme", plan_tier="starter"), plans)
        organization.plan_tier, organization.pending_plan_tier = "gold", "starter"
        with pytest.raises(InvalidChangeError, match="plan starter costs USD, not EUR"):
            commands.change_billing_details(change, organization, plans, currency="EUR")
        commands.change_billing_details(change, organization, plans, currency="USD")
