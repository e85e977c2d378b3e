"""Strong keys alone say who is who; whatever they leave open is a conflict with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from core.adoption.matching import (
    AccountCustomer,
    AdoptionOrganization,
    Cluster,
    LinkIdentity,
    Match,
    is_managed,
    matches_of,
    named_organizations,
)
from core.ports.inventory import InventoryCustomer, InventorySubscription
from core.ports.spec import Provider

DATABASE = "database-1"


def stripe(
    customer_id: str = "cus_1", *, marks: str | None = None, database_id: str = DATABASE, deleted: bool = False
) -> AccountCustomer:
    customer = InventoryCustomer(
        id=customer_id, org_id=marks, database_id=database_id if marks else None, deleted=deleted
    )
    return AccountCustomer(provider="stripe", customer=customer)


def lago(
    external_id: str = "acct-1",
    *,
    payer: str | None = None,
    lago_id: str | None = None,
    other_payer: str | None = None,
    is_addressable: bool = True,
) -> AccountCustomer:
    customer = InventoryCustomer(
        id=lago_id or f"lago-{external_id}",
        external_id=external_id,
        payer_id=payer,
        other_payer=other_payer,
        is_addressable=is_addressable,
    )
    return AccountCustomer(provider="lago", customer=customer)


def organization(org_id: str = "org_1", **links: LinkIdentity) -> AdoptionOrganization:
    known: dict[Provider, LinkIdentity] = {}
    for provider, link in links.items():
        known["stripe" if provider == "stripe" else "lago"] = link
    return AdoptionOrganization(id=org_id, name="Acme", email=None, plan_tier="starter", links=known)


def theirs(customer_id: str | None = None, external_id: str | None = None) -> LinkIdentity:
    return LinkIdentity(customer_id=customer_id, external_customer_id=external_id, ownership="theirs")


def matched(customers: Sequence[AccountCustomer], *organizations: AdoptionOrganization) -> list[Match]:
    return matches_of(
        Cluster(
            customers=tuple(customers),
            organizations={each.id: each for each in organizations},
            database_id=DATABASE,
        )
    )


def the_conflict(customers: Sequence[AccountCustomer], *organizations: AdoptionOrganization) -> str:
    reasons = {each.conflict for each in matched(customers, *organizations)}
    assert len(reasons) == 1
    reason = reasons.pop()
    assert reason is not None
    return reason


@pytest.mark.parametrize(
    ("customer", "one", "key"),
    [
        (stripe(marks="org_1"), organization(), "marks"),
        (stripe(marks="org_1", database_id="another"), organization(), "marks"),
        (stripe(), organization(stripe=theirs("cus_1")), "link"),
        (lago("org_1"), organization(), "external id"),
        (lago("acct-1", lago_id="7d1f"), organization(lago=theirs("7d1f")), "link"),
        (lago("acct-1"), organization(lago=theirs("acct-1")), "link"),
        (lago("acct-1"), organization(lago=theirs("7d1f", "acct-1")), "link"),
        (stripe("cus_2"), organization(stripe=theirs("cus_1")), None),
        (stripe(marks="org_2"), organization(), None),
        (lago("org_10"), organization(), None),
        (lago("cus_1"), organization(stripe=theirs("cus_1")), None),
    ],
)
def test_a_strong_key_names_the_organization(
    customer: AccountCustomer, one: AdoptionOrganization, key: str | None
) -> None:
    assert named_organizations(customer, {one.id: one}) == ({one.id: key} if key else {})


def test_the_marks_of_a_subscription_name_the_organization_too() -> None:
    marked = InventorySubscription(id="sub_1", customer_id="cus_1", org_id="org_1", database_id=DATABASE)
    customer = AccountCustomer(provider="stripe", customer=InventoryCustomer(id="cus_1"), subscriptions=(marked,))
    assert named_organizations(customer, {"org_1": organization()}) == {"org_1": "marks"}


@pytest.mark.parametrize(
    ("customers", "organizations", "org_id", "key"),
    [
        ([stripe()], [], None, None),
        ([lago()], [], None, None),
        ([stripe(), lago(payer="cus_1")], [], None, "payer"),
        ([stripe(marks="org_1"), lago(payer="cus_1")], [organization()], "org_1", "marks"),
        ([stripe(), lago("org_1", payer="cus_1")], [organization()], "org_1", "external id"),
        ([stripe(marks="org_1"), lago("org_1")], [organization()], "org_1", "marks"),
        ([stripe(), lago("org_1", payer="cus_1")], [organization(stripe=theirs("cus_1"))], "org_1", "link"),
    ],
)
def test_what_strong_keys_join_is_one_match(
    customers: list[AccountCustomer],
    organizations: list[AdoptionOrganization],
    org_id: str | None,
    key: str | None,
) -> None:
    (found,) = matched(customers, *organizations)
    assert found.conflict is None
    assert (found.organization.id if found.organization else None, found.matched_by) == (org_id, key)
    assert set(found.sides) == {each.provider for each in customers}


@pytest.mark.parametrize(
    ("customers", "organizations", "begins"),
    [
        # One customer of two organizations, or the other way round.
        (
            [stripe(marks="org_1"), lago("org_2", payer="cus_1")],
            [organization(), organization("org_2")],
            "cus_1 at Stripe is org_1 (marks) and org_2 at Lago is org_2 (external id), and they belong together",
        ),
        (
            [stripe(marks="org_1")],
            [organization(), organization("org_2", stripe=theirs("cus_1"))],
            "cus_1 at Stripe is org_1 (marks) and cus_1 at Stripe is org_2 (link)",
        ),
        (
            [stripe(marks="org_1"), stripe("cus_2", marks="org_1")],
            [organization()],
            (
                "organization org_1 has several customers at Stripe: cus_1, cus_2; decide which one to adopt: "
                "`billing-sync adopt org_1 --stripe cus_…`"
            ),
        ),
        (
            [lago("org_1"), lago("acct-2")],
            [organization(lago=theirs("acct-2"))],
            "organization org_1 has several customers at Lago: org_1, acct-2",
        ),
        # Marks that another database wrote, or that we have lost.
        ([stripe(marks="org_9", database_id="another")], [], "cus_1 at Stripe has the marks of org_9, which another"),
        ([stripe(marks="org_9")], [], "cus_1 at Stripe has the marks of org_9, which this database wrote"),
        # Payers.
        (
            [stripe(), lago("a", payer="cus_1"), lago("b", payer="cus_1")],
            [],
            "Lago charges cus_1 for several customers: a, b",
        ),
        ([lago(payer="cus_9")], [], "Lago charges cus_9 for acct-1, and Stripe does not have it"),
        (
            [stripe(marks="org_1"), stripe("cus_2"), lago("org_1", payer="cus_2")],
            [organization()],
            "Lago charges cus_2 for org_1, and cus_1 is its customer at Stripe, too",
        ),
        ([lago(other_payer="gocardless")], [], "Lago charges acct-1 by gocardless"),
        # What cannot be used.
        ([stripe(deleted=True, marks="org_1")], [organization()], "cus_1 at Stripe was deleted"),
        ([lago("acme.com", is_addressable=False)], [], "Lago's API cannot address acme.com"),
        (
            [
                replace(
                    lago(),
                    subscriptions=(
                        InventorySubscription(id="s", customer_id="c", external_id="a.b", is_addressable=False),
                    ),
                )
            ],
            [],
            "Lago's API cannot address a.b",
        ),
        # What links name, and what is not there.
        (
            [stripe("cus_2", marks="org_1")],
            [organization(stripe=theirs("cus_1"))],
            "cus_2 at Stripe names org_1, whose customer is cus_1",
        ),
        (
            [stripe(marks="org_1")],
            [organization(lago=theirs("7d1f"))],
            "Lago does not have 7d1f, the customer of org_1: it was deleted",
        ),
    ],
)
def test_what_is_not_one_organization_is_a_conflict(
    customers: list[AccountCustomer], organizations: list[AdoptionOrganization], begins: str
) -> None:
    assert the_conflict(customers, *organizations).startswith(begins)


def test_every_customer_of_a_conflict_is_listed_with_the_payer_that_it_has() -> None:
    customers = [stripe(), stripe("cus_2", marks="org_1"), lago("a", payer="cus_1"), lago("org_1", payer="cus_1")]
    found = matched(customers, organization())
    assert [{each.shown_id for each in match.sides.values()} for match in found] == [
        {"cus_1", "a"},
        {"cus_1", "org_1"},
        {"cus_2"},
    ]
    assert [match.organization.id if match.organization else None for match in found] == [None, "org_1", "org_1"]


def test_a_cluster_that_was_cut_is_a_conflict() -> None:
    cluster = Cluster(customers=(stripe(),), organizations={}, database_id=DATABASE, is_cut=True)
    (found,) = matches_of(cluster)
    assert found.conflict is not None
    assert found.conflict.startswith("more than 50 customers")


@pytest.mark.parametrize(
    ("customers", "one", "expected"),
    [
        ([stripe()], organization(stripe=LinkIdentity(customer_id="cus_1")), True),
        ([stripe()], organization(stripe=LinkIdentity(customer_id="cus_1", ownership="adopted")), True),
        ([stripe()], organization(stripe=theirs("cus_1")), False),
        ([stripe(), lago("org_1", payer="cus_1")], organization(stripe=LinkIdentity(customer_id="cus_1")), False),
        ([lago("org_1")], organization(lago=LinkIdentity(customer_id=None)), False),
    ],
)
def test_nothing_is_left_to_adopt_where_each_customer_is_ours_or_adopted(
    customers: list[AccountCustomer], one: AdoptionOrganization, *, expected: bool
) -> None:
    (found,) = matched(customers, one)
    assert is_managed(found) is expected
