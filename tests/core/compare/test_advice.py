"""Each advice code has a sentence, a rule that gives its parameters, and a way out in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from string import Formatter
from typing import Any, get_args

import pytest

from core.catalog import plans as plan_catalog
from core.catalog.plans import Catalog, ChargingProvider
from core.compare.advice import ADVICE_OF_ATTEMPTS, ADVICE_SENTENCES, Advice, AdviceCode
from core.compare.charging_guard import refuse_double_charging
from core.compare.customer_rules import customer_findings, wrong_account
from core.compare.desired_state import PayerPolicy, desired_state
from core.compare.findings import Finding, FindingKind
from core.compare.local_state import LocalState
from core.compare.provider_side import ProviderSide
from core.compare.subscription_rules import subscription_findings
from core.db.models.billing_links import BillingLink, LinkState
from core.db.models.organizations import Organization
from core.ports.arrangement import Arrangement
from core.ports.errors import RejectedError
from core.ports.observed import ObservedCustomer, ObservedState, ObservedSubscription
from core.ports.spec import Provider
from core.reconcile.remote_check import conflict_advice
from tests.test_words import Name, refused

GIVEN_TO_EVERY_RULE = {"org_id", "provider", "provider_name", "retry_command"}
WAYS_OUT = re.compile(
    r"`billing-sync (?:retry|resolve|set|set-customer-id|adopt|management manage) org_1\b"
    r"|\bthe repair (?:writes|sets|creates|switches|schedules|cancels) "
    r"|\b(?:end|unlink|transfer|correct|change|cancel|decide) (?:it|the|which)\b"
)


def organization(**changes: Any) -> Organization:  # noqa: ANN401 - columns of all types
    now = datetime(2026, 11, 23, tzinfo=UTC)
    times = {"created_at": now, "updated_at": now}
    row = {"id": "org_1", "name": "Acme", "plan_tier": "professional", "status": "active", "version": 1}
    return Organization(**(row | times | changes))


def link(provider: Provider, **changes: Any) -> BillingLink:  # noqa: ANN401 - columns of all types
    return BillingLink(org_id="org_1", provider=provider, **({"state": "active", "customer_id": "cus_1"} | changes))


def catalog(charging_provider: ChargingProvider, *tiers: str) -> Catalog:
    """``tiers``: only these plans are changed; none: all are."""
    plans = plan_catalog.load()
    changed = {
        tier: plan.model_copy(update={"charged_by": charging_provider}) if not tiers or tier in tiers else plan
        for tier, plan in plans.plans.items()
    }
    return plans.model_copy(update={"plans": changed})


def customer(**changes: Any) -> ObservedCustomer:  # noqa: ANN401 - fields of all types
    return ObservedCustomer(**({"id": "cus_1", "org_id": "org_1", "name": "Acme"} | changes))


def subscription(**changes: Any) -> ObservedSubscription:  # noqa: ANN401 - fields of all types
    row = {"id": "sub_1", "customer_id": "cus_1", "org_id": "org_1", "plan_code": "professional"}
    return ObservedSubscription(**(row | changes))


def side(
    provider: Provider,
    *observed: ObservedCustomer | ObservedSubscription,
    charged_by: ChargingProvider = "lago",
    ours: BillingLink | None = None,
    stripe: BillingLink | None = None,
    key_account: str | None = None,
    **changes: Any,  # noqa: ANN401 - columns of all types
) -> ProviderSide:
    links: dict[Provider, BillingLink] = {"stripe": stripe or link("stripe"), "lago": link("lago")}
    return ProviderSide(
        local=LocalState(organization=organization(**changes), links=links | {provider: ours or links[provider]}),
        provider=provider,
        observed=ObservedState(
            customers=tuple(each for each in observed if isinstance(each, ObservedCustomer)),
            subscriptions=tuple(each for each in observed if isinstance(each, ObservedSubscription)),
        ),
        catalog=catalog(charged_by),
        policy=PayerPolicy(sends_payer_to_lago=True),
        key_account=key_account,
    )


PAUSED = Arrangement(is_paused=True)
CONFIRMED = link("stripe", customer_state="applied")
RULE_CASES: dict[AdviceCode, ProviderSide] = {
    "wrong_account": side("stripe", ours=link("stripe", account_id="acct_1"), key_account="acct_2"),
    "customer_not_linked": side("stripe", customer(), ours=link("stripe", customer_id=None)),
    "duplicate_customer": side("stripe", customer(), customer(id="cus_2")),
    "customer_deleted": side("stripe", customer(deleted=True)),
    "customer_recreated": side("lago", customer(id="cus_2")),
    "customer_not_found": side("stripe"),
    "other_customer_has_org_id": side("stripe", customer(id="cus_2")),
    "org_id_cleared": side("stripe", customer(org_id=None)),
    "customer_of_two_organizations": side("stripe", customer(org_id="org_2")),
    "customer_field_differs": side("stripe", customer(name="Mallory")),
    "charged_currency_differs": side("lago", customer(currency="EUR"), currency="USD"),
    "payer_not_set": side("lago", customer(), stripe=CONFIRMED),
    "payer_removed": side("lago", customer(), stripe=CONFIRMED, ours=link("lago", payer_id="cus_1")),
    "payer_is_first": side("lago", customer(name="Mallory"), stripe=CONFIRMED, ours=link("lago", payer_id="cus_1")),
    "payer_set": side("lago", customer(payer_id="cus_2"), ours=link("lago", without_payer=True)),
    "payer_differs": side("lago", customer(payer_id="cus_2"), stripe=CONFIRMED),
    "payer_still_linked": side("lago", customer(payer_id="cus_2"), charged_by="stripe"),
    "no_desired_state": side("stripe", customer(), plan_tier="gold"),
    "organization_deleted": side("lago", customer(), subscription(), status="deleted"),
    "charged_by_lago": side("stripe", customer(), subscription()),
    "foreign_subscription": side(
        "stripe", subscription(), ours=link("stripe", subscription_id="sub_2"), charged_by="stripe"
    ),
    "ended_in_lago": side("lago", customer()),
    "ended_in_stripe": side("stripe", customer(), charged_by="stripe"),
    "inactive_in_lago": side("lago", customer(), subscription(started=False)),
    "plan_differs": side("lago", customer(), subscription(plan_code="starter")),
    "plan_not_repairable": side("lago", customer(), subscription(plan_code=None)),
    "next_plan_missing": side("lago", customer(), subscription(), pending_plan_tier="starter"),
    "arrangement": side("lago", customer(), subscription(arrangement=PAUSED)),
    "plan_of_arranged_subscription": side("lago", customer(), subscription(plan_code="starter", arrangement=PAUSED)),
    "next_plan_undesired": side("lago", customer(), subscription(next_plan_code="starter")),
}


OBSERVED_CASES: dict[AdviceCode, ProviderSide] = {
    "observed": side("lago", customer(name="Mallory"), ours=link("lago", state="observed")),
    "observed_theirs": side(
        "lago", customer(name="Mallory"), ours=link("lago", state="observed"), stripe=link("stripe", ownership="theirs")
    ),
}


def compute_desired_state(plans: Catalog, **changes: Any) -> None:  # noqa: ANN401 - columns of all types
    sold = changes.pop("sold_plan", None)
    links: dict[Provider, BillingLink] = {"stripe": link("stripe"), "lago": link("lago", sold_plan=sold)}
    desired_state("lago", organization(**changes), links, plans, PayerPolicy())


REJECTION_CASES: dict[AdviceCode, Callable[[], None]] = {
    "plan_not_in_catalog": lambda: compute_desired_state(catalog("lago"), plan_tier="gold"),
    "plan_in_other_currency": lambda: compute_desired_state(catalog("lago"), currency="EUR"),
    "sold_code_not_in_catalog": lambda: compute_desired_state(catalog("lago"), sold_plan="professional_2024"),
    "lago_still_has_payer": lambda: refuse_double_charging(link("lago", payer_id="cus_1")),
    "stripe_still_has_subscription": lambda: refuse_double_charging(link("stripe", subscription_id="sub_1")),
    "charging_provider_would_change": lambda: compute_desired_state(
        catalog("stripe", "professional"), pending_plan_tier="starter"
    ),
}


def conflict(
    kind: FindingKind, field: str, *, ours: str | None = None, theirs: str | None = None, repairable: bool = False
) -> Advice:
    finding = Finding(
        kind=kind,
        provider="lago",
        object_id="sub_1",
        field=field,
        ours=ours,
        theirs=theirs,
        repairable=repairable,
        advice="end it in Lago",
    )
    return conflict_advice(finding, "org_1")


CONFLICT_CASES: dict[AdviceCode, Advice] = {
    "conflict_customer": conflict("deleted", "customer_id"),
    "conflict_payer": conflict("broken_link", "provider_customer_id", ours="cus_1", theirs="cus_2"),
    "conflict_payer_set": conflict("broken_link", "provider_customer_id", theirs="cus_2"),
    "conflict_payer_removed": conflict("broken_link", "provider_customer_id"),
    "conflict_payer_never_set": Advice("conflict_payer_never_set", {"org_id": "org_1", "ours": "cus_1"}),
    "conflict_subscription": conflict("foreign_subscription", "subscription"),
    "conflict_ended_subscription": conflict("missing", "subscription", repairable=True),
    "conflict_missing_subscription": conflict("missing", "subscription"),
    "conflict_plan": conflict("wrong_plan", "plan"),
    "conflict_next_plan": conflict("wrong_plan", "next_plan"),
    "conflict_arrangement": Advice(
        "conflict_arrangement",
        {
            "org_id": "org_1",
            "subscription_id": "sub_1",
            "arrangement": "a pause",
            "plan": "starter",
            "provider_name": "Stripe",
        },
    ),
    "conflict_arranged_provider_change": Advice(
        "conflict_arranged_provider_change", {"org_id": "org_1", "subscription_id": "sub_1", "arrangement": "a pause"}
    ),
    "conflict_first_payment": Advice(
        "conflict_first_payment",
        {
            "org_id": "org_1",
            "subscription_id": "3a000000-0000-4000-8000-000000000000",
            "arrangement": "an open first payment",
            "plan": "starter",
            "provider_name": "Lago",
        },
    ),
    "conflict_adoption": Advice(
        "conflict_adoption",
        {
            "org_id": "org_1",
            "subscription_id": "sub_1",
            "theirs": "5 USD",
            "ours": "7 USD",
        },
    ),
    "conflict_older_subscription": Advice(
        "conflict_older_subscription",
        {"org_id": "org_1", "subscription_id": "sub_1", "theirs": "starter at 5 USD", "ours": "professional"},
    ),
    "conflict_price_of_its_own": Advice(
        "conflict_price_of_its_own",
        {"org_id": "org_1", "paid": "29.00 USD", "plan": "professional", "listed": "49.00 USD", "theirs": "starter"},
    ),
}


def parameters_of(code: AdviceCode) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(ADVICE_SENTENCES[code]) if name is not None}


def advice_of_rule(code: AdviceCode) -> Advice:
    provider_side = RULE_CASES[code]
    found = [*customer_findings(provider_side), *subscription_findings(provider_side)]
    if (in_wrong_account := wrong_account(provider_side)) is not None:
        found.append(in_wrong_account)
    return next(each.advice for each in found if each.advice.code == code)


def rejection(code: AdviceCode) -> str:
    with pytest.raises(RejectedError) as caught:
        REJECTION_CASES[code]()
    return caught.value.message


def advice_while_observed(code: AdviceCode) -> str:
    provider_side = OBSERVED_CASES[code]
    return next(each.advice for each in map(provider_side.finding, customer_findings(provider_side)))


def rendered(code: AdviceCode) -> str:
    if code in OBSERVED_CASES:
        return advice_while_observed(code)
    if code in REJECTION_CASES:
        return rejection(code)
    return (CONFLICT_CASES[code] if code in CONFLICT_CASES else advice_of_rule(code)).sentence


def test_every_code_has_one_sentence_and_something_that_says_it() -> None:
    codes = get_args(AdviceCode)
    assert sorted(ADVICE_SENTENCES) == sorted(codes)
    assert len(set(ADVICE_SENTENCES.values())) == len(codes)
    assert sorted([*RULE_CASES, *OBSERVED_CASES, *REJECTION_CASES, *CONFLICT_CASES]) == sorted(codes)


@pytest.mark.parametrize("code", RULE_CASES)
def test_a_rule_gives_the_parameters_that_its_sentence_names_and_no_others(code: AdviceCode) -> None:
    given = set(advice_of_rule(code).parameters)
    assert parameters_of(code) <= given
    assert given - GIVEN_TO_EVERY_RULE <= parameters_of(code)


@pytest.mark.parametrize("code", REJECTION_CASES)
def test_a_rejection_of_the_desired_state_is_the_sentence_of_its_code(code: AdviceCode) -> None:
    parts = Formatter().parse(ADVICE_SENTENCES[code])
    pattern = "".join(re.escape(text) + ("" if name is None else ".+") for text, name, _, _ in parts)
    assert re.fullmatch(pattern, rejection(code))


@pytest.mark.parametrize("code", CONFLICT_CASES)
def test_a_parked_link_says_the_sentence_of_its_code(code: AdviceCode) -> None:
    assert CONFLICT_CASES[code].code == code
    assert parameters_of(code) <= set(CONFLICT_CASES[code].parameters)


@pytest.mark.parametrize("code", get_args(AdviceCode))
def test_a_sentence_names_a_way_out_and_leaves_no_parameter_empty(code: AdviceCode) -> None:
    sentence = rendered(code)
    assert WAYS_OUT.search(sentence)
    assert not re.search(r"[{}]|\bNone\b", sentence)


@pytest.mark.parametrize("code", get_args(AdviceCode))
def test_a_sentence_holds_no_retired_word(code: AdviceCode) -> None:
    assert refused([Name("core/compare/advice.py", 1, "message", rendered(code))]) == []


@pytest.mark.parametrize("state", ["active", "observed"])
@pytest.mark.parametrize("code", sorted(ADVICE_OF_ATTEMPTS & RULE_CASES.keys()))
def test_nothing_speaks_of_a_repair_or_of_an_attempt_while_the_organization_is_observed(
    code: AdviceCode, state: LinkState
) -> None:
    """A link that nothing has read since an import brought its customer is active."""
    managed = RULE_CASES[code]
    ours = copy(managed.link)
    ours.state, ours.ownership = state, "theirs"
    observed = replace(managed, local=replace(managed.local, links={**managed.local.links, managed.provider: ours}))
    for found in (*customer_findings(observed), *subscription_findings(observed)):
        finding = observed.finding(found)
        assert finding.repairable is False
        if found.advice.code == code:
            assert finding.advice == ADVICE_SENTENCES["observed_theirs"].format(org_id="org_1")
            assert managed.finding(found).advice == found.advice.sentence


def test_an_id_that_is_set_is_followed_by_its_adoption() -> None:
    """Until then the organization is observed, and a retry changes nothing."""
    setting = [sentence for sentence in ADVICE_SENTENCES.values() if "set-customer-id" in sentence]
    assert len(setting) > 5
    assert [sentence for sentence in setting if "then `billing-sync adopt {org_id}`" not in sentence] == []
