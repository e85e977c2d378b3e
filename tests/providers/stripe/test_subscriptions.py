"""One Stripe subscription an organization: no second payer, no period charged twice, no downgrade too early."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from core.ports.errors import (
    AmbiguousError,
    ConflictError,
    MustWaitError,
    ProviderError,
    RejectedError,
    UnavailableError,
)
from core.ports.provider import Subscription
from core.ports.spec import LastKnown, PriceSpec, SubscriptionSpec
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.stripe_world import StripeWorld
from tests.support.waiting import until

ORG = "org_1"
ADDRESS = "ap@acme.test"
MONTH = timedelta(days=32)

CREATE = "POST /v1/subscriptions"
READ = "GET /v1/subscriptions/{id}"
UPDATE = "POST /v1/subscriptions/{id}"
CANCEL = "DELETE /v1/subscriptions/{id}"
LIST = "GET /v1/subscriptions"
PRICES = "GET /v1/prices"


@pytest.fixture
def customer(world: StripeWorld) -> str:
    world.sell_all()
    made = str(
        world.post("/v1/customers", {"name": "Acme", "email": ADDRESS, "metadata[billing_sync_org_id]": ORG})["id"]
    )
    world.clear_calls()
    return made


def spec(customer: str, plan: str, after: str | None = None) -> SubscriptionSpec:
    return SubscriptionSpec(
        org_id=ORG, customer_id=customer, plan_code=plan, next_plan_code=after, has_billing_email=True
    )


def marks(plan: str) -> dict[str, str]:
    return {
        "billing_sync_org_id": ORG,
        "billing_sync_plan": plan,
        "billing_sync_database_id": "database_1",
    }


def known(customer: str, made: Subscription | None = None) -> LastKnown:
    return LastKnown(customer_id=customer, confirmed=True, subscription_id=made.id if made else None)


def begin(world: StripeWorld, customer: str, plan: str = "professional") -> Subscription:
    return world.provider.ensure_subscription(spec(customer, plan), known(customer), InMemoryAttempt(now=world.now))


def change(world: StripeWorld, customer: str, made: Subscription, plan: str, after: str | None = None) -> Subscription:
    return world.provider.ensure_subscription(spec(customer, plan, after), known(customer, made), InMemoryAttempt())


def test_new_subscription_is_sent_an_invoice_and_carries_our_mark(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer)
    assert (made.plan_code, made.next_plan_code) == ("professional", None)
    assert world.calls() == [LIST, PRICES, CREATE]
    (there,) = world.subscriptions(customer)
    assert (there["collection_method"], there["days_until_due"]) == ("send_invoice", 30)
    assert there["billing_mode"]["type"] == "flexible"
    assert there["metadata"] == marks("professional")
    assert world.charged() == 4900


def test_subscription_without_a_customer_is_refused_before_anything_is_asked(world: StripeWorld) -> None:
    with pytest.raises(RejectedError, match="no Stripe customer yet"):
        begin(world, "")
    assert world.calls() == []


def test_price_is_looked_up_once_for_many_organizations(world: StripeWorld, customer: str) -> None:
    begin(world, customer)
    other = str(world.post("/v1/customers", {"name": "Other", "email": ADDRESS})["id"])
    world.clear_calls()
    world.provider.ensure_subscription(
        SubscriptionSpec(org_id="org_2", customer_id=other, plan_code="professional", has_billing_email=True),
        known(other),
        InMemoryAttempt(),
    )
    assert world.calls() == [LIST, CREATE]


def test_unknown_lookup_key_is_never_free(world: StripeWorld, customer: str) -> None:
    with pytest.raises(RejectedError, match="no active price with lookup key platinum; run `billing-sync plans push`"):
        begin(world, customer, "platinum")
    assert CREATE not in world.calls()


def test_same_wish_twice_changes_nothing(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer)
    world.clear_calls()
    assert change(world, customer, made, "professional") == made
    assert world.calls() == [READ]


def test_lost_answer_then_retry_is_one_subscription(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "lost_answer")
    with pytest.raises(UnavailableError):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    made = world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    assert [there["id"] for there in world.subscriptions(customer)] == [made.id]
    assert world.charged() == 1900


def test_upgraded_between_lost_answer_and_retry_is_one_subscription_on_the_new_plan(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "lost_answer")
    with pytest.raises(UnavailableError):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    made = world.provider.ensure_subscription(spec(customer, "professional"), known(customer), attempt)
    assert made.plan_code == "professional"
    assert len(world.subscriptions(customer)) == 1
    assert world.charged() == 4900


@pytest.mark.parametrize("kind", ["500_before", "reset", "500_stored", "500_after", "html_502"])
def test_failed_create_then_retry_is_one_subscription(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt, kind: str
) -> None:
    world.fault(CREATE, kind)
    with pytest.raises(UnavailableError):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    assert len(world.subscriptions(customer)) == 1
    assert world.charged() == 1900


@pytest.mark.parametrize("kind", ["lost_answer", "reset"])
def test_forgotten_key_then_retry_is_one_subscription(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt, kind: str
) -> None:
    world.fault(CREATE, kind)
    with pytest.raises(UnavailableError):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    world.advance(timedelta(hours=25))
    world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    assert len(world.subscriptions(customer)) == 1
    assert len(attempt.recorded) == (1 if kind == "lost_answer" else 2)


def test_a_create_that_may_still_be_under_way_is_waited_for_when_its_key_has_grown_old(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "reset")
    with pytest.raises(UnavailableError):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    assert attempt.stored is not None
    attempt.stored = replace(attempt.stored, first_sent_at=attempt.stored.first_sent_at - timedelta(hours=23))
    with pytest.raises(MustWaitError):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    assert len(attempt.recorded) == 1


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=25)])
def test_subscription_that_was_ended_before_its_answer_was_known_is_not_made_again(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt, age: timedelta
) -> None:
    world.fault(CREATE, "lost_answer")
    with pytest.raises(UnavailableError):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    (left,) = world.subscriptions(customer)
    world.delete(f"/v1/subscriptions/{left['id']}")
    world.advance(age)
    with pytest.raises(RejectedError, match="ended in Stripe"):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    assert len(world.subscriptions(customer)) == 1


def subscribe_by_hand(
    world: StripeWorld, customer: str, plan: str = "starter", quantity: int = 1, **metadata: str
) -> str:
    sent = {f"metadata[billing_sync_{key}]": value for key, value in metadata.items()}
    item = {"items[0][price]": world.price(plan), "items[0][quantity]": str(quantity)}
    body = {"customer": customer, **item, "collection_method": "send_invoice", **sent}
    return str(world.post("/v1/subscriptions", {**body, "days_until_due": "30"})["id"])


def test_customer_who_already_pays_for_something_else_is_not_joined(world: StripeWorld, customer: str) -> None:
    theirs = subscribe_by_hand(world, customer)
    with pytest.raises(RejectedError, match=f"already pays for subscriptions that we did not create: {theirs}"):
        begin(world, customer)
    assert len(world.subscriptions(customer)) == 1


def test_customer_whose_other_subscription_has_ended_is_free_to_begin(world: StripeWorld, customer: str) -> None:
    world.delete(f"/v1/subscriptions/{subscribe_by_hand(world, customer)}")
    assert begin(world, customer).plan_code == "professional"


def test_two_subscriptions_of_ours_are_named_and_neither_is_taken(world: StripeWorld, customer: str) -> None:
    both = {subscribe_by_hand(world, customer, org_id=ORG) for _ in range(2)}
    with pytest.raises(AmbiguousError) as caught:
        begin(world, customer)
    assert all(each in caught.value.message for each in both)


def test_marked_subscription_at_the_price_of_the_plan_is_adopted_without_a_charge(
    world: StripeWorld, customer: str
) -> None:
    marked = subscribe_by_hand(world, customer, "professional", org_id=ORG)
    made = begin(world, customer, "professional")
    assert (made.id, made.plan_code) == (marked, "professional")
    assert world.charged() == 4900


@pytest.mark.parametrize(
    ("plan", "quantity", "terms"),
    [
        ("starter", 1, r"it charges 19\.00 USD monthly \(price_\w+\), the plan 49\.00 USD monthly"),
        ("professional", 3, r"it charges 3 times 49\.00 USD monthly"),
        ("enterprise", 1, r"it charges 99\.00 USD monthly"),
    ],
)
def test_marked_subscription_on_other_terms_is_a_conflict_and_its_price_stays(
    world: StripeWorld, customer: str, plan: str, quantity: int, terms: str
) -> None:
    subscribe_by_hand(world, customer, plan, quantity, org_id=ORG)
    (before,) = world.subscriptions(customer)
    charged = world.charged()
    with pytest.raises(ConflictError, match=terms) as caught:
        begin(world, customer, "professional")
    assert "Nothing was changed" in caught.value.message
    assert (world.subscriptions(customer), world.charged()) == ([before], charged)


def test_marked_subscription_made_by_hand_is_not_taken_for_the_effect_of_a_lost_create(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "500_before")
    with pytest.raises(ProviderError):
        world.provider.ensure_subscription(spec(customer, "professional"), known(customer), attempt)
    subscribe_by_hand(world, customer, "starter", org_id=ORG)
    with pytest.raises(ConflictError, match=r"19\.00 USD"):
        world.provider.ensure_subscription(spec(customer, "professional"), known(customer), attempt)


@pytest.mark.parametrize("after", ["starter", "founders_friend"])
def test_downgrade_that_is_taken_back_returns_to_the_price_that_was_sold(
    world: StripeWorld, customer: str, after: str
) -> None:
    made = begin(world, customer)
    sold = world.price("professional")
    raise_price(world, "professional", 7900)

    def change_later(then: str | None = None) -> Subscription:
        """By another process, which knows the new price."""
        return world.hasty.ensure_subscription(
            spec(customer, "professional", then), known(customer, made), InMemoryAttempt()
        )

    change_later(after)
    change_later("starter")
    assert change_later().next_plan_code is None
    (there,) = world.subscriptions(customer)
    (item,) = there["items"]["data"]
    assert (item["price"]["id"], item["price"]["unit_amount"], item["quantity"]) == (sold, 4900, 1)
    assert (there["metadata"], world.charged()) == (marks("professional"), 4900)
    assert world.price("professional") != sold
    world.clear_calls()
    change_later()
    assert world.calls() == [READ]


def raise_price(world: StripeWorld, lookup_key: str, amount: int) -> None:
    """As in the dashboard: a new price gets the lookup key, and the old one goes on for those who pay it."""
    terms = {"currency": "usd", "unit_amount": str(amount), "recurring[interval]": "month"}
    key = {"lookup_key": lookup_key, "transfer_lookup_key": "true", "product_data[name]": lookup_key}
    world.post("/v1/prices", {**terms, **key})


def test_upgrade_is_now_and_prorated_on_the_same_item(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer, "starter")
    world.clear_calls()
    assert change(world, customer, made, "enterprise").plan_code == "enterprise"
    assert world.calls() == [READ, PRICES, UPDATE]
    (there,) = world.subscriptions(customer)
    (item,) = there["items"]["data"]
    assert (item["price"]["lookup_key"], item["quantity"]) == ("enterprise", 1)
    assert world.charged() == 9900


def test_downgrade_waits_and_this_period_stays_paid_at_the_old_price(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer)
    waiting = change(world, customer, made, "professional", "starter")
    assert (waiting.plan_code, waiting.next_plan_code) == ("professional", "starter")
    (there,) = world.subscriptions(customer)
    assert waiting.next_plan_at is not None
    assert waiting.next_plan_at.timestamp() == there["items"]["data"][0]["current_period_end"]
    assert world.charged() == 4900
    world.clear_calls()
    assert change(world, customer, made, "professional", "starter") == waiting
    assert world.calls() == [READ]


def test_a_schedule_under_the_keys_of_an_earlier_version_is_taken_back_to_the_price_that_was_paid(
    world: StripeWorld, customer: str
) -> None:
    made = begin(world, customer)
    change(world, customer, made, "professional", "starter")
    (there,) = world.subscriptions(customer)
    earlier = {key.removeprefix("billing_sync_"): value for key, value in there["metadata"].items()}
    renamed = dict.fromkeys(there["metadata"], "") | earlier
    world.post(f"/v1/subscriptions/{made.id}", {f"metadata[{key}]": value for key, value in renamed.items()})
    raise_price(world, "professional", 7900)
    again = change(world, customer, made, "professional", "starter")
    assert (again.plan_code, again.next_plan_code) == ("professional", "starter")
    assert change(world, customer, made, "professional").next_plan_code is None
    (there,) = world.subscriptions(customer)
    assert (there["items"]["data"][0]["price"]["unit_amount"], world.charged()) == (4900, 4900)


@pytest.mark.parametrize(("after", "renewal"), [("starter", 1900), ("founders_friend", 0)])
def test_downgrade_takes_effect_at_the_periods_end_and_is_not_changed_back(
    world: StripeWorld, customer: str, after: str, renewal: int
) -> None:
    made = begin(world, customer)
    change(world, customer, made, "professional", after)
    world.advance(MONTH)
    for _ in range(2):
        took_effect = change(world, customer, made, "professional", after)
        assert (took_effect.plan_code, took_effect.next_plan_code) == (after, None)
    settled = change(world, customer, made, after)
    assert (settled.plan_code, settled.next_plan_code) == (after, None)
    (there,) = world.subscriptions(customer)
    (item,) = there["items"]["data"]
    assert (item["price"]["lookup_key"], item["quantity"]) == (after, 1)
    assert there["metadata"] == marks(after)
    assert world.charged() == 4900 + renewal
    world.clear_calls()
    assert change(world, customer, made, after) == settled
    assert world.calls() == [READ]


@pytest.mark.parametrize("after", ["starter", "founders_friend"])
def test_downgrade_taken_back_moves_no_money(world: StripeWorld, customer: str, after: str) -> None:
    made = begin(world, customer)
    change(world, customer, made, "professional", after)
    back = change(world, customer, made, "professional")
    assert (back.plan_code, back.next_plan_code, back.next_plan_at) == ("professional", None, None)
    assert world.charged() == 4900
    world.advance(MONTH)
    assert change(world, customer, made, "professional").plan_code == "professional"
    assert world.charged() == 2 * 4900


@pytest.mark.parametrize("after", ["starter", "founders_friend"])
def test_upgrade_while_a_downgrade_waits_charges_only_what_was_not_paid(
    world: StripeWorld, customer: str, after: str
) -> None:
    made = begin(world, customer)
    change(world, customer, made, "professional", after)
    up = change(world, customer, made, "enterprise")
    assert (up.plan_code, up.next_plan_code) == ("enterprise", None)
    assert world.charged() == 9900


def test_second_downgrade_replaces_the_first(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer, "enterprise")
    first = change(world, customer, made, "enterprise", "professional")
    second = change(world, customer, made, "enterprise", "starter")
    assert (second.next_plan_code, second.next_plan_at) == ("starter", first.next_plan_at)
    world.advance(MONTH)
    assert world.charged() == 9900 + 1900


@pytest.mark.parametrize("kind", ["lost_answer", "500_after", "reset"])
@pytest.mark.parametrize("skip", [0, 1, 2])
@pytest.mark.parametrize(
    ("plan", "after", "total"),
    [("enterprise", None, 9900), ("professional", None, 4900), ("enterprise", "founders_friend", 9900)],
)
def test_change_whose_answer_is_lost_ends_the_same_and_charges_once(  # noqa: PLR0913, PLR0917 - a matrix of cases
    world: StripeWorld, customer: str, kind: str, skip: int, plan: str, after: str | None, total: int
) -> None:
    made = begin(world, customer)
    change(world, customer, made, "professional", "starter")
    world.fault(UPDATE, kind, skip=skip)
    for _ in range(2):
        try:
            ended = change(world, customer, made, plan, after)
        except ProviderError:
            ended = change(world, customer, made, plan, after)
        assert (ended.plan_code, ended.next_plan_code) == (plan, after)
    assert world.charged() == total
    assert len(world.subscriptions(customer)) == 1


def test_subscription_that_somebody_ended_is_not_made_again_by_itself(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer)
    world.delete(f"/v1/subscriptions/{made.id}")
    with pytest.raises(
        RejectedError, match=f"{made.id} was ended in Stripe.*price professional and metadata billing_sync_org_id={ORG}"
    ):
        change(world, customer, made, "professional")
    assert len(world.subscriptions(customer)) == 1


def test_successor_on_other_terms_is_a_conflict(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer)
    world.delete(f"/v1/subscriptions/{made.id}")
    subscribe_by_hand(world, customer, "starter", org_id=ORG)
    with pytest.raises(ConflictError, match=r"19\.00 USD"):
        change(world, customer, made, "professional")


def test_way_out_of_an_ended_subscription_works_as_the_sentence_says(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer)
    world.delete(f"/v1/subscriptions/{made.id}")
    successor = subscribe_by_hand(world, customer, "professional", org_id=ORG)
    again = change(world, customer, made, "professional")
    assert (again.id, again.plan_code) == (successor, "professional")


def test_subscription_of_another_customer_or_organization_is_refused(world: StripeWorld, customer: str) -> None:
    made = begin(world, customer)
    with pytest.raises(RejectedError, match="belongs to customer"):
        change(world, "cus_other", made, "professional")
    world.post(f"/v1/subscriptions/{made.id}", {"metadata[billing_sync_org_id]": "org_2"})
    with pytest.raises(RejectedError, match="linked to organization org_2"):
        change(world, customer, made, "professional")


def test_unknown_subscription_is_a_wrong_key_and_not_a_reason_for_a_new_one(world: StripeWorld, customer: str) -> None:
    elsewhere = Subscription(id="sub_elsewhere", plan_code="professional")
    with pytest.raises(RejectedError, match="another account or mode"):
        change(world, customer, elsewhere, "professional")
    assert world.subscriptions(customer) == []


def test_ending_is_by_declared_policy_may_be_repeated_and_keeps_the_customer(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    made = begin(world, customer)
    for _ in range(2):
        world.provider.end_subscription(known(customer, made), ORG, attempt)
    (there,) = world.subscriptions(customer)
    assert there["status"] == "canceled"
    assert len(world.customers()) == 1
    assert "invoice_now=true&prorate=false" in world.queries(CANCEL)[0]


def test_ending_after_a_lost_answer_ends_it_too(world: StripeWorld, customer: str, attempt: InMemoryAttempt) -> None:
    made = begin(world, customer)
    world.fault(CANCEL, "lost_answer")
    with pytest.raises(UnavailableError):
        world.provider.end_subscription(known(customer, made), ORG, attempt)
    world.provider.end_subscription(known(customer, made), ORG, attempt)
    assert [there["status"] for there in world.subscriptions(customer)] == ["canceled"]


def test_ending_finds_what_a_lost_create_left_behind(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "lost_answer")
    with pytest.raises(UnavailableError):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    world.provider.end_subscription(known(customer), ORG, attempt)
    assert [there["status"] for there in world.subscriptions(customer)] == ["canceled"]


def test_ending_one_that_stripe_does_not_know_is_not_taken_for_done(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    with pytest.raises(RejectedError, match="another account or mode"):
        world.provider.end_subscription(LastKnown(customer_id="cus_1", subscription_id="sub_elsewhere"), ORG, attempt)


def test_ending_where_none_is_known_looks_once_and_ends_ours_only(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    world.provider.end_subscription(known(customer), ORG, attempt)
    assert world.calls() == ["GET /v1/customers/{id}"]
    begin(world, customer)
    by_hand = {"items[0][price]": world.price("starter"), "collection_method": "send_invoice", "days_until_due": "30"}
    other_subscription_id = world.post("/v1/subscriptions", {"customer": customer, **by_hand})["id"]
    world.provider.end_subscription(known(customer), ORG, attempt)
    assert [there["id"] for there in world.subscriptions(customer) if there["status"] != "canceled"] == [
        other_subscription_id
    ]


def test_ending_on_a_deleted_customer_is_done(world: StripeWorld, customer: str, attempt: InMemoryAttempt) -> None:
    begin(world, customer)
    world.delete(f"/v1/customers/{customer}")
    world.provider.end_subscription(known(customer), ORG, attempt)


@pytest.mark.slow
def test_ending_while_a_create_may_still_be_under_way_waits_until_it_cannot(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "slow", seconds=4.5)
    with pytest.raises(UnavailableError):
        world.hasty.ensure_subscription(spec(customer, "starter"), known(customer), attempt)
    with pytest.raises(MustWaitError) as caught:
        world.provider.end_subscription(known(customer), ORG, attempt)
    assert caught.value.retry_after == pytest.approx(300, abs=10)
    until(lambda: world.subscriptions(customer), "it is there in the end")
    world.provider.end_subscription(known(customer), ORG, attempt)
    assert [there["status"] for there in world.subscriptions(customer)] == ["canceled"]


def test_one_that_we_set_out_to_end_is_made_anew_when_it_is_found_ended(
    world: StripeWorld, customer: str, attempt: InMemoryAttempt
) -> None:
    made = begin(world, customer)
    world.provider.end_subscription(known(customer, made), ORG, attempt)
    with pytest.raises(RejectedError, match="not by us"):
        world.provider.ensure_subscription(spec(customer, "starter"), known(customer, made), attempt)
    unsure = replace(known(customer, made), ending_started=True)
    again = world.provider.ensure_subscription(spec(customer, "starter"), unsure, attempt)
    assert again.id != made.id
    assert [there["status"] for there in world.subscriptions(customer)] == ["active", "canceled"]


OFFER = PriceSpec(code="team_quarterly_jpy", name="Team", amount=5000, currency="JPY", interval="quarterly")


def test_offer_that_was_added_is_found_as_it_was(world: StripeWorld) -> None:
    assert world.provider.find_price(OFFER.code) is None
    world.provider.create_price(OFFER)
    assert world.provider.find_price(OFFER.code) == OFFER


@pytest.mark.parametrize("interval", ["weekly", "monthly", "quarterly", "semiannual", "yearly"])
def test_every_interval_of_the_catalog_comes_back_as_it_was(world: StripeWorld, interval: str) -> None:
    offer = replace(OFFER, interval=interval)
    world.provider.create_price(offer)
    assert world.provider.find_price(OFFER.code) == offer


@pytest.mark.parametrize("operation", ["POST /v1/products", "POST /v1/prices"])
def test_offer_whose_answer_was_lost_is_added_once(world: StripeWorld, operation: str) -> None:
    world.fault(operation, "lost_answer")
    with pytest.raises(UnavailableError):
        world.provider.create_price(OFFER)
    world.provider.create_price(OFFER)
    world.provider.create_price(OFFER)
    assert world.provider.find_price(OFFER.code) == OFFER


def test_offer_under_a_key_with_other_terms_is_refused(world: StripeWorld) -> None:
    world.provider.create_price(OFFER)
    with pytest.raises(RejectedError, match="use a new lookup key for new terms"):
        world.provider.create_price(replace(OFFER, amount=6000))
    assert world.provider.find_price(OFFER.code) == OFFER


def test_offer_whose_key_an_archived_price_holds_is_refused(world: StripeWorld) -> None:
    world.provider.create_price(OFFER)
    world.post(f"/v1/prices/{world.price(OFFER.code)}", {"active": "false"})
    with pytest.raises(RejectedError, match="archived price"):
        world.provider.create_price(OFFER)


def test_offer_of_an_interval_that_stripe_cannot_be_told_is_refused(world: StripeWorld) -> None:
    with pytest.raises(RejectedError, match="interval fortnightly is not one of"):
        world.provider.create_price(replace(OFFER, interval="fortnightly"))
    assert world.calls() == []
