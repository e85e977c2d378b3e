"""Whatever is asked of a subscription, in any order, with crashes between the steps: each period is paid once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.ports.errors import RejectedError
from core.ports.spec import SubscriptionSpec
from providers.stripe.metadata import to_metadata
from providers.stripe.plan_changes import StripeUpdate, next_update, parse_state
from providers.stripe.responses import (
    StripePage,
    StripePrice,
    StripeRecurring,
    StripeSubscription,
    StripeSubscriptionItem,
)

AMOUNTS = {"free": 0, "starter": 1900, "pro": 4900, "enterprise": 9900}
PERIOD = 1000
MOST = 4


def price(code: str, interval: str = "month") -> StripePrice:
    return StripePrice(
        id=f"price_{code}",
        currency="usd",
        unit_amount=AMOUNTS[code],
        lookup_key=code,
        recurring=StripeRecurring(interval=interval),
    )


def spec(plan: str, after: str | None = None) -> SubscriptionSpec:
    return SubscriptionSpec(org_id="org_1", customer_id="cus_1", plan_code=plan, next_plan_code=after)


@dataclass
class Subscribed:
    """Stripe's arithmetic of one item: prorations for the whole period, so that a period's price is one number."""

    price: StripePrice
    quantity: int = 1
    start: int = 0
    metadata: dict[str, str] = field(default_factory=dict)
    charged: int = 0

    def observed(self) -> StripeSubscription:
        item = StripeSubscriptionItem(
            id="si_1",
            price=self.price,
            quantity=self.quantity,
            current_period_start=self.start,
            current_period_end=self.start + PERIOD,
        )
        return StripeSubscription(
            id="sub_1",
            customer="cus_1",
            status="active",
            created=0,
            metadata=self.metadata,
            items=StripePage(data=[item]),
        )

    def take(self, change: StripeUpdate) -> None:
        self.metadata = {k: v for k, v in {**self.metadata, **to_metadata(change.marks)}.items() if v}
        if change.price is None:
            return
        new = price(change.price.removeprefix("price_"))
        before, after = self._worth(), (new.unit_amount or 0) * change.quantity
        if self.price.unit_amount == 0 and after:
            self.charged += after  # from free to paid: invoiced at once, prorated or not
        elif change.proration != "none":
            self.charged += after - before
        self.price, self.quantity = new, change.quantity

    def renew(self) -> None:
        self.start += PERIOD
        self.charged += self._worth()

    def _worth(self) -> int:
        return (self.price.unit_amount or 0) * self.quantity


def bring(subscribed: Subscribed, wanted: SubscriptionSpec, most: int = MOST) -> int:
    """Change until nothing is left to do, or until the worker dies after ``most`` changes."""
    for done in range(most):
        change = next_update(parse_state(subscribed.observed()), wanted, price)
        if change is None:
            return done
        subscribed.take(change)
    return most


CHEAPER = [
    (plan, after) for plan in AMOUNTS for after in (None, *AMOUNTS) if after is None or AMOUNTS[after] < AMOUNTS[plan]
]
DesiredPlan = tuple[tuple[str, str | None], int, int]  # plan and next plan; dies after so many changes; renewals
DESIRED_PLANS = st.tuples(st.sampled_from(CHEAPER), st.integers(0, 3), st.integers(0, 2))


@given(st.lists(DESIRED_PLANS, max_size=8))
def test_every_period_is_paid_once_at_the_plan_that_was_theirs(desired_plans: list[DesiredPlan]) -> None:
    subscribed = Subscribed(price("starter"), metadata={"billing_sync_org_id": "org_1", "billing_sync_plan": "starter"})
    paid, expected_charge, waiting = "starter", 0, None
    for (plan, after), dies_after, renewals in desired_plans:
        # What the caller knows by now: a scheduled plan that took effect is the plan.
        bring(subscribed, spec(paid, waiting))
        bring(subscribed, spec(plan, after), dies_after)
        assert bring(subscribed, spec(plan, after)) < MOST
        expected_charge += AMOUNTS[plan] - AMOUNTS[paid]
        paid, waiting = plan, after
        state = parse_state(subscribed.observed())
        assert (state.paid_plan, state.scheduled_plan, subscribed.charged) == (plan, after, expected_charge)
        assert bring(subscribed, spec(plan, after)) == 0
        for _ in range(renewals):
            subscribed.renew()
            before = parse_state(subscribed.observed())
            bring(subscribed, spec(paid, waiting))
            assert parse_state(subscribed.observed()) == before, "nothing is changed before the caller took note"
            paid, waiting = waiting or paid, None
            expected_charge += AMOUNTS[paid]
            assert (before.paid_plan, subscribed.charged) == (paid, expected_charge)
            bring(subscribed, spec(paid, waiting))
            assert (parse_state(subscribed.observed()).billed_plan, subscribed.charged) == (paid, expected_charge)


def test_taking_back_a_free_plan_moves_no_money() -> None:
    subscribed = Subscribed(price("pro"), metadata={"billing_sync_org_id": "org_1", "billing_sync_plan": "pro"})
    bring(subscribed, spec("pro", "free"))
    assert (subscribed.price.lookup_key, subscribed.quantity) == ("pro", 0)
    bring(subscribed, spec("pro"))
    assert (subscribed.price.lookup_key, subscribed.quantity, subscribed.charged) == ("pro", 1, 0)


def test_plan_of_another_interval_cannot_wait() -> None:
    yearly = Subscribed(price("pro", "year"), metadata={"billing_sync_org_id": "org_1", "billing_sync_plan": "pro"})
    with pytest.raises(RejectedError, match=r"interval.*choosing the current plan again"):
        next_update(parse_state(yearly.observed()), spec("pro", "starter"), price)


def test_paid_plan_cannot_wait_behind_a_free_one() -> None:
    free = Subscribed(price("free"), metadata={"billing_sync_org_id": "org_1", "billing_sync_plan": "free"})
    with pytest.raises(RejectedError, match=r"becomes paid.*choosing the current plan again"):
        next_update(parse_state(free.observed()), spec("free", "starter"), price)


def test_price_whose_key_moved_to_a_newer_price_stays_sold() -> None:
    old = price("pro").model_copy(update={"id": "price_pro_2024", "lookup_key": None})
    subscribed = Subscribed(old, metadata={"billing_sync_org_id": "org_1", "billing_sync_plan": "pro"})
    assert next_update(parse_state(subscribed.observed()), spec("pro"), price) is None


def test_seats_that_somebody_added_are_kept() -> None:
    subscribed = Subscribed(
        price("starter"), quantity=5, metadata={"billing_sync_org_id": "org_1", "billing_sync_plan": "starter"}
    )
    bring(subscribed, spec("pro"))
    assert subscribed.quantity == 5
    bring(subscribed, spec("pro", "free"))
    assert (parse_state(subscribed.observed()).scheduled_plan, subscribed.quantity) == ("free", 0)
    bring(subscribed, spec("pro"))
    assert (subscribed.quantity, "billing_sync_seats" in subscribed.metadata) == (5, False)


def test_second_item_that_is_not_ours_is_left_alone_and_a_doubt_is_refused() -> None:
    seen = Subscribed(price("pro"), metadata={"billing_sync_org_id": "org_1", "billing_sync_plan": "pro"}).observed()
    extra = seen.items.data[0].model_copy(update={"id": "si_2", "price": price("starter")})
    two = seen.model_copy(update={"items": StripePage(data=[extra, *seen.items.data])})
    assert parse_state(two).item.id == "si_1"
    unmarked = two.model_copy(update={"metadata": {}})
    with pytest.raises(RejectedError, match="2 items"):
        parse_state(unmarked)


def test_broken_metadata_is_no_schedule() -> None:
    marked = {"billing_sync_plan": "pro", "billing_sync_next_plan": "starter", "billing_sync_next_plan_at": "soon"}
    state = parse_state(replace(Subscribed(price("pro")), metadata=marked).observed())
    assert (state.paid_plan, state.scheduled_plan) == ("pro", None)
