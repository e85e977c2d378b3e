"""An organization's life at a Lago that remembers: whatever is lost or repeated, one customer and one subscription."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.catalog.plans import EndingPolicy
from core.ports.errors import MisconfiguredError, ProviderError, RejectedError, RetryableError, ThrottledError
from core.ports.provider import Customer, Subscription
from core.ports.spec import CustomerSpec, LastKnown, PriceSpec, SubscriptionSpec
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from sandbox.http import Exchange
from sandbox.server import Sandbox
from tests import contract
from tests.support.in_memory_attempt import InMemoryAttempt

SPEC = CustomerSpec(org_id="org_1", name="Umbra Labs", email="ap@umbra.test", currency="USD")
ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="skip", stripe_invoice_now=True, stripe_prorate=True)
PRICES = {"free": 0, "starter": 1900, "pro": 4900, "big": 9900}
PERIOD = timedelta(days=40)  # longer than any month

POST_CUSTOMER, POST_SUBSCRIPTION = "POST /api/v1/customers", "POST /api/v1/subscriptions"
ONE_SUBSCRIPTION = "/api/v1/subscriptions/{id}"

violations: list[str] = []


def _check(exchange: Exchange) -> None:
    if exchange.provider == "lago" and contract.available():
        kind = exchange.headers.get("content-type", "")
        violations.extend(
            contract.violations("lago", exchange.method, exchange.path, exchange.query, exchange.body, kind)
        )


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(limits=False, observer=_check) as running:
        yield running


@pytest.fixture
def lago(sandbox: Sandbox) -> Iterator[SandboxClient]:
    violations.clear()
    with SandboxClient(sandbox.url) as client:
        yield client
        client.reset()
    assert violations == []


@pytest.fixture
def provider(sandbox: Sandbox, lago: SandboxClient) -> Iterator[LagoProvider]:
    built = LagoProvider(sandbox.url, "key", payment_provider_code="stripe_main", ending=ENDING)
    for code, amount in PRICES.items():
        built.create_price(PriceSpec(code=code, name=code, amount=amount, currency="USD", interval="monthly"))
    lago.reset_calls()
    yield built
    built.close()


@pytest.fixture
def hasty(sandbox: Sandbox) -> Iterator[LagoProvider]:
    """For a call that is to meet its deadline."""
    built = LagoProvider(sandbox.url, "key", payment_provider_code="stripe_main", ending=ENDING, timeout=0.5)
    yield built
    built.close()


class LagoTestOrganization:
    """Tells the biller one wish after the other and keeps what sync would write back, only once it was answered."""

    def __init__(self, provider: LagoProvider) -> None:
        self.provider = provider
        self.attempt = InMemoryAttempt()
        self.last_known = LastKnown()

    def customer(self, spec: CustomerSpec = SPEC) -> Customer:
        made = self.provider.ensure_customer(spec, self.last_known, self.attempt)
        self.last_known = replace(self.last_known, customer_id=made.id, confirmed=True)
        return made

    def subscribe(self, plan: str, then: str | None = None) -> Subscription:
        spec = SubscriptionSpec(
            org_id="org_1", customer_id=self.last_known.customer_id or "", plan_code=plan, next_plan_code=then
        )
        made = self.provider.ensure_subscription(spec, self.last_known, self.attempt)
        self.last_known = replace(
            self.last_known, subscription_id=made.id, plan_code=made.plan_code, next_plan_code=made.next_plan_code
        )
        return made

    def end(self) -> None:
        self.provider.end_subscription(self.last_known, "org_1", self.attempt)
        self.last_known = replace(self.last_known, subscription_id=None, plan_code=None, next_plan_code=None)


@pytest.fixture
def org(provider: LagoProvider) -> LagoTestOrganization:
    return LagoTestOrganization(provider)


def plans_of(lago: SandboxClient) -> list[tuple[str, str, str | None]]:
    """(status, plan, next plan) of everything that is or will be billed."""
    rows = lago.state()["lago"]["subscriptions"]
    return sorted((row["status"], row["plan_code"], row["next_plan_code"]) for row in rows if row["status"] == "active")


def waiting(lago: SandboxClient) -> list[str]:
    return [row["plan_code"] for row in lago.state()["lago"]["subscriptions"] if row["status"] == "pending"]


def operations(lago: SandboxClient) -> list[str]:
    return [call.operation for call in lago.calls("lago")]


def test_new_organization_takes_two_calls_and_a_plan_change_reads_first(
    org: LagoTestOrganization, lago: SandboxClient
) -> None:
    first = LastKnown()
    made = org.customer()
    org.last_known = replace(first)  # as sync knows it: nothing, until this round is written back
    org.provider.ensure_subscription(
        SubscriptionSpec(org_id="org_1", customer_id=made.id, plan_code="starter"), org.last_known, org.attempt
    )
    assert operations(lago) == [POST_CUSTOMER, POST_SUBSCRIPTION]
    org.last_known = LastKnown(customer_id=made.id, confirmed=True, subscription_id="x", plan_code="starter")
    lago.reset_calls()
    assert org.subscribe("pro").plan_code == "pro"
    down = org.subscribe("pro", "starter")
    assert (down.plan_code, down.next_plan_code) == ("pro", "starter")
    assert down.next_plan_at is not None
    assert down.next_plan_at > lago.clock()
    assert org.subscribe("pro") == Subscription(id=down.id, plan_code="pro", price_id=str(PRICES["pro"]))
    org.customer(replace(SPEC, name="Umbra GmbH"))
    org.end()
    assert operations(lago) == [
        f"GET {ONE_SUBSCRIPTION}",
        POST_SUBSCRIPTION,
        f"GET {ONE_SUBSCRIPTION}",
        POST_SUBSCRIPTION,
        f"GET {ONE_SUBSCRIPTION}",
        f"DELETE {ONE_SUBSCRIPTION}",
        POST_CUSTOMER,
        f"DELETE {ONE_SUBSCRIPTION}",
    ]
    assert plans_of(lago) == []


def test_downgrade_takes_effect_at_period_end_and_is_told(org: LagoTestOrganization, lago: SandboxClient) -> None:
    org.customer()
    org.subscribe("pro")
    org.subscribe("pro", "starter")
    assert org.subscribe("pro", "starter").next_plan_code == "starter"
    lago.advance(PERIOD)
    before = lago.state()
    took_effect = org.subscribe("pro", "starter")
    assert (took_effect.plan_code, took_effect.next_plan_code, took_effect.next_plan_at) == ("starter", None, None)
    assert org.subscribe("starter").id == took_effect.id
    assert lago.state() == before


def test_downgrade_whose_answer_was_lost_until_it_took_effect_is_told(
    org: LagoTestOrganization, lago: SandboxClient
) -> None:
    org.customer()
    org.subscribe("pro")
    lago.add_fault("lago", POST_SUBSCRIPTION, "lost_answer")
    with pytest.raises(RetryableError):
        org.subscribe("pro", "starter")
    lago.advance(PERIOD)
    assert org.subscribe("pro", "starter").plan_code == "starter"
    assert plans_of(lago) == [("active", "starter", None)]


def test_scheduled_downgrade_is_replaced_and_canceled_by_an_upgrade(
    org: LagoTestOrganization, lago: SandboxClient
) -> None:
    org.customer()
    org.subscribe("pro")
    org.subscribe("pro", "starter")
    assert org.subscribe("pro", "free").next_plan_code == "free"
    assert waiting(lago) == ["free"]
    big = org.subscribe("big")
    assert (big.id, big.plan_code, big.price_id) == (org.last_known.subscription_id, "big", str(PRICES["big"]))
    assert waiting(lago) == []


def test_taking_back_too_late_buys_the_plan_again(org: LagoTestOrganization, lago: SandboxClient) -> None:
    org.customer()
    org.subscribe("pro")
    org.subscribe("pro", "starter")
    lago.advance(PERIOD)
    assert org.subscribe("pro").plan_code == "pro"
    assert plans_of(lago) == [("active", "pro", None)]


def test_downgrade_that_costs_no_less_a_year_is_rejected(org: LagoTestOrganization, lago: SandboxClient) -> None:
    """A discounted year before twelve full months: Lago calls that an upgrade (lago.md 5.1)."""
    org.provider.create_price(PriceSpec(code="yearly", name="yearly", amount=49900, currency="USD", interval="yearly"))
    org.customer()
    org.subscribe("yearly")
    for _ in range(2):
        with pytest.raises(RejectedError, match="plans check"):
            org.subscribe("yearly", "pro")
    assert plans_of(lago) == [("active", "pro", None)]


def test_upgrade_that_costs_less_a_year_is_rejected_and_changes_nothing(
    org: LagoTestOrganization, lago: SandboxClient
) -> None:
    org.customer()
    org.subscribe("pro")
    before = plans_of(lago)
    with pytest.raises(RejectedError, match="plans check"):
        org.subscribe("starter")
    assert plans_of(lago) == before
    assert waiting(lago) == []


def test_end_is_by_policy_and_twice_is_once(org: LagoTestOrganization, lago: SandboxClient) -> None:
    org.customer()
    org.subscribe("pro")
    org.subscribe("pro", "starter")
    org.end()
    org.end()
    assert (plans_of(lago), waiting(lago)) == ([], [])
    reasons = [charge["reason"] for charge in lago.charges()]
    assert reasons == ["subscription_create"]  # the credit note is skipped, as declared
    assert len(lago.state()["lago"]["customers"]) == 1


def test_subscription_that_has_not_begun_ends_too(org: LagoTestOrganization, lago: SandboxClient) -> None:
    org.customer()
    soon = (lago.clock() + timedelta(days=3)).isoformat()
    lago.preload_lago_subscription("org_1", "pro", "org_1", subscription_at=soon)
    with pytest.raises(RejectedError, match="pending in Lago"):
        org.subscribe("pro")
    org.end()
    assert waiting(lago) == []


def test_payer_is_linked_when_it_arrives(org: LagoTestOrganization, lago: SandboxClient) -> None:
    lago.preload_stripe_customers([{"id": "cus_7", "name": "Umbra Labs"}])
    org.customer()
    org.customer(replace(SPEC, payer_id="cus_7"))
    org.customer(replace(SPEC, payer_id="cus_7", name="Umbra GmbH"))
    shown = lago.state()["lago"]["customers"][0]["billing_configuration"]
    assert (shown["provider_customer_id"], shown["payment_provider_code"]) == ("cus_7", "stripe_main")
    assert len(lago.state()["stripe"]["customers"]) == 1
    assert operations(lago) == [POST_CUSTOMER] * 3


@pytest.fixture
def with_methods(sandbox: Sandbox, provider: LagoProvider) -> Iterator[LagoTestOrganization]:
    built = LagoProvider(
        sandbox.url, "key", payment_provider_code="stripe_main", payment_methods=["card", "sepa_debit"], ending=ENDING
    )
    assert provider
    yield LagoTestOrganization(built)
    built.close()


def methods_in_lago(lago: SandboxClient) -> object:
    return lago.state()["lago"]["customers"][0]["billing_configuration"].get("provider_payment_methods")


def test_payment_methods_are_sent_with_the_first_link_and_never_again(
    with_methods: LagoTestOrganization, lago: SandboxClient
) -> None:
    lago.preload_stripe_customers([{"id": "cus_7", "name": "Umbra Labs"}, {"id": "cus_8", "name": "Umbra Labs"}])
    org = with_methods
    org.customer()
    org.last_known = replace(org.last_known, payer_id=org.customer(replace(SPEC, payer_id="cus_7")).payer_id)
    assert methods_in_lago(lago) == ["card", "sepa_debit"]
    lago.patch("lago", "customers", "org_1", billing_configuration={"provider_payment_methods": ["card", "link"]})
    org.customer(replace(SPEC, payer_id="cus_8", name="Umbra GmbH"))
    assert methods_in_lago(lago) == ["card", "link"]


def test_payment_methods_are_sent_after_an_attempt_that_did_not_reach_lago(
    with_methods: LagoTestOrganization, lago: SandboxClient
) -> None:
    """The attempt stored the payer and was killed, or had to wait, before its request."""
    lago.preload_stripe_customers([{"id": "cus_7", "name": "Umbra Labs"}])
    org = with_methods
    org.customer()
    org.last_known = replace(org.last_known, payer_id="cus_7", applied=False)
    org.customer(replace(SPEC, payer_id="cus_7"))
    assert methods_in_lago(lago) == ["card", "sepa_debit"]
    lago.patch("lago", "customers", "org_1", billing_configuration={"provider_payment_methods": ["card", "link"]})
    org.customer(replace(SPEC, payer_id="cus_7", name="Umbra GmbH"))
    assert methods_in_lago(lago) == ["card", "link"]


def test_an_imported_customer_keeps_its_payment_methods(
    with_methods: LagoTestOrganization, lago: SandboxClient
) -> None:
    lago.preload_stripe_customers([{"id": "cus_7", "name": "Umbra Labs"}])
    link = {"payment_provider": "stripe", "payment_provider_code": "stripe_main", "provider_customer_id": "cus_7"}
    configuration = {**link, "provider_payment_methods": ["card", "link"]}
    imported = {"external_id": "org_1", "name": "Old", "lago_id": "lago-7", "billing_configuration": configuration}
    lago.preload_lago_customers([imported])
    with_methods.last_known = LastKnown(customer_id="lago-7")
    with_methods.customer(replace(SPEC, payer_id="cus_7"))
    assert methods_in_lago(lago) == ["card", "link"]


def test_payer_that_stripe_lost_is_rejected_though_lago_saved(org: LagoTestOrganization, lago: SandboxClient) -> None:
    org.customer(replace(SPEC, payer_id="cus_gone"))
    with pytest.raises(RejectedError, match=r"saved in Lago.*cus_gone"):
        org.customer(replace(SPEC, payer_id="cus_gone", name="Umbra GmbH"))
    assert lago.state()["lago"]["customers"][0]["name"] == "Umbra GmbH"


def test_unknown_connection_and_wrong_key_are_settings_to_correct(
    sandbox: Sandbox, org: LagoTestOrganization, lago: SandboxClient
) -> None:
    lago.settings(lago_providers=["another"])
    with pytest.raises(MisconfiguredError, match="LAGO_STRIPE_PROVIDER_CODE"):
        org.customer(replace(SPEC, payer_id="cus_7"))
    refused_provider = LagoProvider(sandbox.url, "bad", payment_provider_code=None, ending=ENDING)
    with pytest.raises(MisconfiguredError, match="LAGO_API_KEY"):
        refused_provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
    refused_provider.close()


def test_currency_that_lago_locked_is_rejected_with_the_field(org: LagoTestOrganization, lago: SandboxClient) -> None:
    lago.settings(lago_currency_locked=True)
    org.customer()
    org.subscribe("pro")
    with pytest.raises(RejectedError, match="currency:currencies_does_not_match"):
        org.customer(replace(SPEC, currency="EUR"))


def test_customer_deleted_in_lago_is_never_made_again_in_silence(
    org: LagoTestOrganization, lago: SandboxClient
) -> None:
    known = org.customer().id
    org.subscribe("pro")
    lago.delete("lago", "customers", "org_1")
    with pytest.raises(RejectedError, match=f"was deleted|{known}"):
        org.subscribe("big")
    with pytest.raises(RejectedError, match=known):
        org.customer(replace(SPEC, name="Umbra GmbH"))


def test_imported_customer_is_proven_and_kept(org: LagoTestOrganization, lago: SandboxClient) -> None:
    lago.preload_lago_customers([{"external_id": "org_1", "name": "Old Name", "lago_id": "lago-7"}])
    lago.preload_lago_subscription("org_1", "starter", "org_1")
    org.last_known = LastKnown(customer_id="lago-7")
    assert org.customer(replace(SPEC, charged_by_other_provider=True)).id == "lago-7"
    assert org.subscribe("starter").plan_code == "starter"
    assert org.subscribe("pro").plan_code == "pro"
    assert [row["name"] for row in lago.state()["lago"]["customers"]] == ["Umbra Labs"]
    assert plans_of(lago) == [("active", "pro", None)]


@pytest.mark.parametrize(
    ("there", "imported", "says"),
    [
        ([], "lago-7", "has no customer lago-7"),
        ([{"external_id": "org_1", "lago_id": "lago-8"}], "lago-7", "the customer is lago-8 in Lago"),
        ([{"external_id": "acme", "lago_id": "lago-7"}], "acme", "another external id"),
        ([{"external_id": "acme", "lago_id": "lago-7"}], "acme.com", "has no customer acme.com"),
    ],
)
def test_imported_id_that_is_not_ours_parks_and_changes_nothing(
    org: LagoTestOrganization, lago: SandboxClient, there: list[dict[str, str]], imported: str, says: str
) -> None:
    lago.preload_lago_customers(there)
    before = lago.state()
    org.last_known = LastKnown(customer_id=imported)
    with pytest.raises(RejectedError, match=says):
        org.customer()
    assert lago.state() == before


@pytest.mark.parametrize("status", ["active", "pending"])
def test_foreign_subscription_on_our_customer_parks(
    org: LagoTestOrganization, lago: SandboxClient, status: str
) -> None:
    lago.preload_lago_customers([{"external_id": "org_1", "lago_id": "lago-7"}])
    start = lago.clock() + (timedelta(days=3) if status == "pending" else timedelta())
    lago.preload_lago_subscription("org_1", "pro", "acme_main", subscription_at=start.isoformat())
    org.last_known = LastKnown(customer_id="lago-7")
    with pytest.raises(RejectedError, match=f"{status} subscription acme_main"):
        org.customer()
    org.last_known = LastKnown()  # as if we had never heard of it
    lago.advance(timedelta(hours=1))
    with pytest.raises(RejectedError, match="acme_main"):
        org.customer()


def test_missing_plan_is_rejected_with_the_way_out(org: LagoTestOrganization, lago: SandboxClient) -> None:
    org.customer()
    with pytest.raises(RejectedError, match=r"on plan gold: .*plans push"):
        org.subscribe("gold")
    assert plans_of(lago) == []


Step = Callable[[LagoTestOrganization], object]
STEPS: dict[str, tuple[list[Step], Step]] = {
    "customer": ([], lambda org: org.customer()),
    "rename": ([lambda org: org.customer()], lambda org: org.customer(replace(SPEC, name="Umbra GmbH"))),
    "create": ([lambda org: org.customer()], lambda org: org.subscribe("pro")),
    "create and schedule": ([lambda org: org.customer()], lambda org: org.subscribe("pro", "starter")),
    "upgrade": ([lambda org: org.customer(), lambda org: org.subscribe("pro")], lambda org: org.subscribe("big")),
    "schedule": (
        [lambda org: org.customer(), lambda org: org.subscribe("pro")],
        lambda org: org.subscribe("pro", "starter"),
    ),
    "replace": (
        [lambda org: org.customer(), lambda org: org.subscribe("pro"), lambda org: org.subscribe("pro", "starter")],
        lambda org: org.subscribe("pro", "free"),
    ),
    "take back": (
        [lambda org: org.customer(), lambda org: org.subscribe("pro"), lambda org: org.subscribe("pro", "starter")],
        lambda org: org.subscribe("pro"),
    ),
    "end": ([lambda org: org.customer(), lambda org: org.subscribe("pro")], lambda org: org.end()),
}
FAULTS = ["lost_answer", "500_after", "500_before", "reset", "html_502", "429"]
SLOW = [("customer", "drip"), ("upgrade", "drip"), ("upgrade", "hang"), ("end", "drip")]


@pytest.mark.parametrize(("step", "fault"), [*itertools.product(STEPS, FAULTS), *SLOW])
def test_step_that_fails_and_is_repeated_ends_as_if_it_had_not(
    provider: LagoProvider, hasty: LagoProvider, lago: SandboxClient, step: str, fault: str
) -> None:
    before, last = STEPS[step]

    def live(spoil: str | None) -> object:
        lago.reset()
        for code, amount in PRICES.items():
            provider.create_price(PriceSpec(code=code, name=code, amount=amount, currency="USD", interval="monthly"))
        org = LagoTestOrganization(provider)
        for each in before:
            each(org)
        lago.reset_calls()
        if spoil:
            method = "DELETE" if step in ("take back", "end") else "POST"
            lago.add_fault("lago", "*", spoil, match=f"{method} /api", seconds=20.0, retry_after=7)
            org.provider = hasty if (step, spoil) in SLOW else provider
            started = time.monotonic()
            with pytest.raises(RetryableError) as caught:
                last(org)
            assert time.monotonic() - started < 10
            org.provider = provider
            assert not isinstance(caught.value, MisconfiguredError)
            if spoil == "429":
                assert isinstance(caught.value, ThrottledError)
                assert caught.value.retry_after == 7
        last(org)
        charges = [(charge["amount"], charge["reason"]) for charge in lago.charges()]
        return lago.summary(), charges

    assert live(fault) == live(None)


@pytest.mark.parametrize("call", range(3))
def test_any_lost_answer_on_the_way_to_two_plans_is_repaired(
    org: LagoTestOrganization, lago: SandboxClient, call: int
) -> None:
    org.customer()
    lago.add_fault("lago", "*", "lost_answer", skip=call)
    with pytest.raises(RetryableError):
        org.subscribe("pro", "starter")
    org.subscribe("pro", "starter")
    assert plans_of(lago) == [("active", "pro", "starter")]
    assert waiting(lago) == ["starter"]
    assert [charge["reason"] for charge in lago.charges()] == ["subscription_create"]


ORDER = list(PRICES)
DesiredPlan = tuple[str, str | None, str | None, bool]


@st.composite
def desired_plans(draw: st.DrawFn) -> list[DesiredPlan]:
    """(plan now, cheaper plan next or none, fault or none, does a period end afterwards)"""
    found: list[DesiredPlan] = []
    rank = 0
    for _ in range(draw(st.integers(1, 6))):
        rank = draw(st.integers(rank, len(ORDER) - 1))
        lower = draw(st.none() | st.integers(0, rank - 1)) if rank else None
        fault = draw(st.sampled_from([None, None, "lost_answer", "500_before"]))
        ends = draw(st.booleans())
        found.append((ORDER[rank], None if lower is None else ORDER[lower], fault, ends))
        if lower is not None and ends:
            rank = lower
    return found


@pytest.mark.slow
@given(story=desired_plans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_life_ends_with_one_customer_and_the_wished_plans(
    provider: LagoProvider, lago: SandboxClient, story: list[DesiredPlan]
) -> None:
    lago.reset()
    for code, amount in PRICES.items():
        provider.create_price(PriceSpec(code=code, name=code, amount=amount, currency="USD", interval="monthly"))
    org = LagoTestOrganization(provider)
    org.customer()
    for plan, then, fault, period_ends in story:
        if fault:
            lago.add_fault("lago", "*", fault)
            with pytest.raises(ProviderError):
                org.subscribe(plan, then)
        org.subscribe(plan, then)
        assert plans_of(lago) == [("active", plan, then)]
        if period_ends:
            lago.advance(PERIOD)
            if then:
                assert org.subscribe(plan, then).plan_code == then
                assert plans_of(lago) == [("active", then, None)]
    assert len(lago.state()["lago"]["customers"]) == 1
    assert len(waiting(lago)) <= 1


def test_fifty_a_second_is_throttled_with_a_wait(org: LagoTestOrganization, lago: SandboxClient) -> None:
    lago.settings(limits=True)

    def hurry() -> None:
        for _ in range(200):
            org.customer()

    with pytest.raises(ThrottledError) as caught:
        hurry()
    assert caught.value.retry_after == 1
