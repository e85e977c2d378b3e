"""The business that exists already: the same seed makes the same one, and what is said of it is true."""

from pathlib import Path

from core.catalog import plans
from sandbox.business.cases import CASES, create_business
from sandbox.business.catalog import AMOUNTS, PLANS_TOML
from sandbox.business.comparison import changed_objects, new_objects, objects_with_new_metadata
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


def test_a_comparison_names_what_changed_and_tells_metadata_and_new_objects_from_it(sandbox: SandboxClient) -> None:
    business = create(sandbox, 1)
    before = sandbox.state()
    customers = [each for one in business.customers for each in one.stripe_customers if one.is_clear]
    sandbox.patch("stripe", "customers", customers[0], metadata={"ours_org_id": "org_1"})
    sandbox.preload_lago_customers([{"external_id": "new"}])
    after = sandbox.state()
    assert list(changed_objects(before, after, except_metadata="ours_")) == []
    assert len(list(changed_objects(before, after))) == 1
    assert objects_with_new_metadata(before, after, "ours_") == {"customers in Stripe": 1}
    assert [each["external_id"] for each in new_objects(before, after, "customers in Lago")] == ["new"]
    sandbox.patch("stripe", "customers", customers[1], name="Other")
    [sentence] = changed_objects(before, sandbox.state(), except_metadata="ours_")
    assert sentence.endswith("-> Other")


def test_the_catalog_of_the_business_loads(tmp_path: Path) -> None:
    file = tmp_path / "plans.toml"
    file.write_text(PLANS_TOML)
    assert {tier: plan.amount for tier, plan in plans.load(file).plans.items()} == AMOUNTS
