"""The business that exists already: the same seed makes the same one, and what is said of it is true."""

from pathlib import Path

from core.catalog import plans
from sandbox.business.cases import CASES, create_business
from sandbox.business.catalog import AMOUNTS, PLANS_TOML
from sandbox.business.seeded import Business
from sandbox.client import SandboxClient

COUNT = len(CASES) + 40


def create(sandbox: SandboxClient, seed: int) -> Business:
    sandbox.reset()
    return create_business(sandbox, count=COUNT, seed=seed, database_id="ours")


def test_the_same_seed_makes_the_same_business(sandbox: SandboxClient) -> None:
    first, state = create(sandbox, 1), sandbox.summary()
    again, same_state = create(sandbox, 1), sandbox.summary()
    assert (first.organizations, state) == (again.organizations, same_state)
    create(sandbox, 2)
    assert sandbox.summary() != state


def test_every_case_occurs_and_has_what_is_said_of_it(sandbox: SandboxClient) -> None:
    business = create(sandbox, 1)
    assert {one.case for one in business.customers} == {case.name for case in CASES}
    state = sandbox.state()
    owner_of = {each["id"]: each["customer"] for each in state["stripe"]["subscriptions"]}
    at_lago = {each["external_id"]: each["external_customer_id"] for each in state["lago"]["subscriptions"]}
    for one in business.customers:
        assert {owner_of[each] for each in one.stripe_subscriptions} <= set(one.stripe_customers)
        assert {at_lago[each] for each in one.lago_subscriptions} <= set(one.lago_customers)
    organizations = {each.id for each in business.organizations}
    assert {one.org_id for one in business.customers if one.org_id} == organizations


def test_the_catalog_of_the_business_loads(tmp_path: Path) -> None:
    file = tmp_path / "plans.toml"
    file.write_text(PLANS_TOML)
    assert {tier: plan.amount for tier, plan in plans.load(file).plans.items()} == AMOUNTS
