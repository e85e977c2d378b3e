"""Lago's judgement of a plan change is never assumed: each answer is checked, and the cheapest safe way is taken."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from core.catalog.plans import EndingPolicy
from core.common.json_types import Json
from core.ports.arrangement import Arrangement
from core.ports.errors import ConflictError, NotYetAllowedError, RejectedError, UnavailableError
from core.ports.provider import Subscription
from core.ports.spec import LastKnown, PriceSpec, SubscriptionSpec
from providers.lago.provider import LagoProvider
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.scripted_lago import NO_ID, Reply, ScriptedLago, refusal, subscription

ID = "3a000000-0000-4000-8000-000000000000"
NEXT_ID = "3b000000-0000-4000-8000-000000000000"
ENDING = EndingPolicy(lago_invoice="skip", lago_credit_note="refund", stripe_invoice_now=True, stripe_prorate=True)
ABSENT = refusal(404, "subscription_not_found")
PERIOD_END = datetime(2026, 12, 1, tzinfo=UTC)

POST, READ, TAKE_BACK = "POST /subscriptions", "GET /subscriptions/org_1", "DELETE /subscriptions/org_1?status=pending"
READ_WAITING = "GET /subscriptions/org_1?status=incomplete"


@pytest.fixture
def lago() -> Iterator[ScriptedLago]:
    script = ScriptedLago()
    yield script
    script.close()
    assert script.violations == []
    assert not script.replies


@pytest.fixture
def provider(lago: ScriptedLago) -> Iterator[LagoProvider]:
    built = LagoProvider(lago.url, "key", payment_provider_code=None, ending=ENDING)
    yield built
    built.close()


@pytest.fixture
def attempt() -> InMemoryAttempt:
    return InMemoryAttempt()


def desired(plan: str, then: str | None = None) -> SubscriptionSpec:
    return SubscriptionSpec(org_id="org_1", customer_id=NO_ID, plan_code=plan, next_plan_code=then)


def last_known(plan: str | None = None, then: str | None = None) -> LastKnown:
    return LastKnown(
        customer_id=NO_ID,
        confirmed=True,
        subscription_requested=True,
        subscription_id=ID if plan else None,
        plan_code=plan,
        next_plan_code=then,
    )


def on(plan: str, then: str | None = None, **changed: Json) -> Reply:
    date = "2026-12-01" if then else None
    return subscription(**{"plan_code": plan, "next_plan_code": then, "downgrade_plan_date": date, **changed})


def canceled(plan: str, before: str | None) -> Reply:
    return subscription(plan_code=plan, previous_plan_code=before, status="canceled")


def sent_requests(lago: ScriptedLago) -> list[str]:
    return [f"{each.method} {each.target.removeprefix('/api/v1')}" for each in lago.requests]


def sent_plan_codes(lago: ScriptedLago) -> list[Json]:
    """The plan codes that were posted, in order."""
    bodies = [each.body["subscription"] for each in lago.requests if isinstance(each.body, dict)]
    return [body["plan_code"] for body in bodies if isinstance(body, dict)]


WAYS = {
    "first create": (desired("pro"), LastKnown(), [on("pro")], [POST]),
    "first on an old customer": (desired("pro"), last_known(), [ABSENT, on("pro")], [READ, POST]),
    "there already on an old customer": (desired("pro"), last_known(), [on("pro")], [READ]),
    "upgrade on an old customer": (desired("pro"), last_known(), [on("starter"), on("pro")], [READ, POST]),
    "same again": (desired("pro"), last_known("pro"), [on("pro")], [READ]),
    "upgrade": (
        desired("pro"),
        last_known("starter"),
        [on("starter"), on("pro", previous_plan_code="starter")],
        [READ, POST],
    ),
    "upgraded by somebody else, perhaps at a price of its own": (
        desired("pro"),
        last_known("starter"),
        [on("pro", lago_id=ID)],
        [READ],
    ),
    "upgrade over a scheduled downgrade": (
        desired("big"),
        last_known("pro", "starter"),
        [on("pro", "starter"), on("big")],
        [READ, POST],
    ),
    "schedule a downgrade": (
        desired("pro", "starter"),
        last_known("pro"),
        [on("pro"), on("pro", "starter")],
        [READ, POST],
    ),
    "schedule the plan it is on": (desired("pro", "pro"), last_known("pro"), [on("pro")], [READ]),
    "take it back": (
        desired("pro"),
        last_known("pro", "starter"),
        [on("pro", "starter"), canceled("starter", "pro")],
        [READ, TAKE_BACK],
    ),
    "take back what took effect": (
        desired("pro"),
        last_known("pro", "starter"),
        [on("starter", lago_id=NEXT_ID), on("pro")],
        [READ, POST],
    ),
    "scheduled already": (desired("pro", "starter"), last_known("pro", "starter"), [on("pro", "starter")], [READ]),
    "scheduled, unknown to us": (desired("pro", "starter"), last_known(), [on("pro", "starter")], [READ]),
    "schedule, nothing known": (
        desired("pro", "starter"),
        last_known(),
        [on("pro"), on("pro", "starter")],
        [READ, POST],
    ),
    "took effect": (desired("pro", "starter"), last_known("pro", "starter"), [on("starter", lago_id=NEXT_ID)], [READ]),
    "took effect, unknown to us": (
        desired("pro", "starter"),
        last_known(),
        [on("starter", lago_id=NEXT_ID, previous_plan_code="pro")],
        [READ],
    ),
    "took effect, and more was scheduled": (
        desired("pro", "starter"),
        last_known("pro", "starter"),
        [on("starter", "free", lago_id=NEXT_ID), canceled("free", "starter")],
        [READ, TAKE_BACK],
    ),
    "up and down again between two rounds": (
        desired("pro", "starter"),
        last_known("starter"),
        [on("starter", previous_plan_code="pro"), on("pro"), on("pro", "starter")],
        [READ, POST, POST],
    ),
    "the same on an old customer": (
        desired("pro", "starter"),
        last_known(),
        [on("starter"), on("pro"), on("pro", "starter")],
        [READ, POST, POST],
    ),
    "another downgrade in its place": (
        desired("pro", "free"),
        last_known("pro", "starter"),
        [on("pro", "starter"), on("pro", "free")],
        [READ, POST],
    ),
    "create and schedule": (
        desired("pro", "starter"),
        last_known(),
        [ABSENT, on("pro"), on("pro", "starter")],
        [READ, POST, POST],
    ),
    "upgrade and schedule": (
        desired("pro", "free"),
        last_known("starter"),
        [on("starter"), on("pro"), on("pro", "free")],
        [READ, POST, POST],
    ),
    "a scheduled plan nobody wished": (
        desired("pro"),
        last_known("pro"),
        [on("pro", "starter"), canceled("starter", "pro")],
        [READ, TAKE_BACK],
    ),
    "a scheduled plan nobody wished on an old customer": (
        desired("pro"),
        last_known(),
        [on("pro", "starter"), canceled("starter", "pro")],
        [READ, TAKE_BACK],
    ),
    "upgrade and schedule over our own downgrade": (
        desired("big", "starter"),
        last_known("pro", "starter"),
        [on("pro", "starter"), on("big"), on("big", "starter")],
        [READ, POST, POST],
    ),
    "took effect by the hand of somebody else": (
        desired("pro", "starter"),
        last_known("pro"),
        [
            on(
                "starter",
                lago_id=NEXT_ID,
                previous_plan_code="pro",
                created_at="2026-11-23T07:00:00Z",
                started_at="2026-12-01T00:10:00.000Z",
            )
        ],
        [READ],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_cheapest_safe_way_is_taken(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, way: str
) -> None:
    spec, known, replies, calls = WAYS[way]
    lago.respond_with(*replies)
    made = provider.ensure_subscription(spec, known, attempt)
    assert sent_requests(lago) == calls
    assert attempt.request_count == len(calls)
    if made.plan_code == spec.plan_code and spec.next_plan_code not in (None, spec.plan_code):
        assert made == Subscription(
            id=ID, plan_code=spec.plan_code, next_plan_code=spec.next_plan_code, next_plan_at=PERIOD_END
        )
    else:
        now = spec.next_plan_code if way.startswith("took effect") else spec.plan_code
        assert made == Subscription(id=NEXT_ID if way.startswith("took effect") else ID, plan_code=now or "")


def test_plans_are_posted_in_their_order_under_the_organizations_id(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(ABSENT, on("pro"), on("pro", "starter"))
    provider.ensure_subscription(desired("pro", "starter"), last_known(), attempt)
    assert sent_plan_codes(lago) == ["pro", "starter"]
    assert lago.requests[1].body == {
        "subscription": {"external_customer_id": "org_1", "external_id": "org_1", "plan_code": "pro"}
    }


def test_scheduled_plan_that_took_effect_meanwhile_is_told_and_not_undone(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    """The period ended between the two requests."""
    began = on("starter", created_at="2026-11-23T07:00:00Z", started_at="2026-12-01T00:10:00.000Z")
    lago.respond_with(on("pro"), began)
    made = provider.ensure_subscription(desired("pro", "starter"), last_known("pro"), attempt)
    assert made == Subscription(id=ID, plan_code="starter")
    assert sent_requests(lago) == [READ, POST]


@pytest.mark.parametrize("started_at", ["2026-11-23T07:00:01.500Z", None])
def test_downgrade_that_lago_makes_at_once_is_rejected(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, started_at: str | None
) -> None:
    lago.respond_with(on("yearly"), on("monthly", started_at=started_at))
    with pytest.raises(RejectedError, match=r"monthly immediately instead of at period end.*billing-sync plans check"):
        provider.ensure_subscription(desired("yearly", "monthly"), last_known("yearly"), attempt)


def test_upgrade_that_lago_schedules_is_taken_back_and_rejected(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(on("yearly", "monthly"), canceled("monthly", "yearly"))
    with pytest.raises(RejectedError, match=r"on yearly in Lago.*change was canceled.*billing-sync plans check"):
        provider.ensure_subscription(desired("monthly"), LastKnown(), attempt)
    assert sent_requests(lago) == [POST, TAKE_BACK]


@pytest.mark.parametrize("spec", [desired("starter"), desired("starter", "free")], ids=["now", "now and next"])
def test_downgrade_that_somebody_else_scheduled_is_not_undone(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, spec: SubscriptionSpec
) -> None:
    lago.respond_with(on("pro", "starter"))
    with pytest.raises(RejectedError, match="on pro in Lago, and someone else scheduled starter"):
        provider.ensure_subscription(spec, last_known(), attempt)
    assert sent_requests(lago) == [READ]


def test_answer_that_is_neither_plan_is_rejected(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(on("pro"), on("pro", "other"))
    with pytest.raises(RejectedError, match="Lago returned pro and then other"):
        provider.ensure_subscription(desired("pro", "starter"), last_known(), attempt)


def test_switch_between_two_answers_is_left_to_the_next_try(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(on("pro", "starter"), ABSENT)
    with pytest.raises(UnavailableError, match="changed in Lago during"):
        provider.ensure_subscription(desired("pro"), last_known("pro"), attempt)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"status": "pending"}, "it is pending in Lago"),
        ({"external_id": "org_2"}, "another customer"),
        ({"external_customer_id": "org_2"}, "another customer"),
        ({"lago_customer_id": "lago-new"}, f"customer lago-new in Lago, not to {NO_ID}, which was deleted"),
    ],
)
def test_answer_that_is_not_our_active_subscription_is_rejected(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, changed: dict[str, Json], says: str
) -> None:
    lago.respond_with(subscription(**changed))
    with pytest.raises(RejectedError, match=says):
        provider.ensure_subscription(desired("starter"), last_known(), attempt)


@pytest.mark.parametrize("changed", [{"plan_code": None}, {"downgrade_plan_date": "soon"}])
def test_answer_without_what_must_be_checked_is_not_believed(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, changed: dict[str, Json]
) -> None:
    lago.respond_with(subscription(**{"plan_code": "pro", "next_plan_code": "starter", **changed}))
    with pytest.raises(UnavailableError):
        provider.ensure_subscription(desired("pro", "starter"), last_known("pro"), attempt)


def test_scheduled_plan_without_a_date_parks_with_a_sentence_whatever_is_asked_for(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    """With Lago's product catalog, for example (lago.md 5.1, B3)."""
    waiting = on("pro", "starter", downgrade_plan_date=None)
    says = "it goes on to starter in Lago, which names no date"
    lago.respond_with(waiting, ABSENT)
    with pytest.raises(RejectedError, match=says):
        provider.ensure_subscription(desired("pro", "starter"), last_known("pro"), attempt)
    lago.respond_with(waiting, ABSENT)
    with pytest.raises(RejectedError, match=says):
        provider.ensure_subscription(desired("pro", "starter"), last_known("pro", "starter"), attempt)
    lago.respond_with(waiting, ABSENT, ABSENT)
    with pytest.raises(RejectedError, match=says):
        provider.ensure_subscription(desired("pro"), last_known(), attempt)
    lago.respond_with(waiting, ABSENT, canceled("starter", "pro"))
    taken_back = provider.ensure_subscription(desired("pro"), last_known(), attempt)
    assert taken_back == Subscription(id=ID, plan_code="pro")


def test_end_is_told_how_and_checked(lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt) -> None:
    lago.respond_with(subscription(status="terminated"))
    provider.end_subscription(last_known("pro"), "org_1", attempt)
    assert sent_requests(lago) == [
        "DELETE /subscriptions/org_1?on_termination_invoice=skip&on_termination_credit_note=refund"
    ]
    lago.respond_with(subscription(status="active"))
    with pytest.raises(RejectedError, match="reports active after the request to end it"):
        provider.end_subscription(last_known("pro"), "org_1", attempt)


@pytest.mark.parametrize(
    "rest",
    [
        (ABSENT, ABSENT, ABSENT),
        (canceled("pro", None),),
        (ABSENT, ABSENT, subscription(status="terminated")),
    ],
    ids=["nothing", "one that has not begun", "one that began meanwhile"],
)
def test_ending_what_is_gone_is_done_and_what_has_not_begun_goes_too(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, rest: tuple[Reply, ...]
) -> None:
    lago.respond_with(ABSENT, *rest)
    provider.end_subscription(last_known(), "org_1", attempt)
    end, *further = sent_requests(lago)
    assert further == [TAKE_BACK, READ_WAITING, end][: len(rest)]


WAITS = Arrangement(waits_for_payment=True)
REFUSED_BESIDE = refusal(422, "validation_errors", subscription=["subscription_incomplete"])


@pytest.mark.parametrize(
    "reply",
    [
        refusal(422, "validation_errors", base=["next_subscription_incomplete"]),
        refusal(405, "cannot_terminate_with_pending_taxes"),
    ],
    ids=["upgrade", "taxes"],
)
def test_an_end_that_lago_does_not_allow_yet_is_repeated(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, reply: Reply
) -> None:
    lago.respond_with(reply)
    with pytest.raises(NotYetAllowedError):
        provider.end_subscription(last_known("pro"), "org_1", attempt)


def test_an_end_is_not_done_while_one_waits_for_its_first_payment(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(ABSENT, ABSENT, on("pro", status="incomplete"))
    with pytest.raises(NotYetAllowedError, match="waits for its first payment"):
        provider.end_subscription(last_known(), "org_1", attempt)


def test_what_lago_makes_is_not_in_sync_while_it_waits_for_its_first_payment(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(on("pro", status="incomplete"))
    with pytest.raises(ConflictError, match="waits for its first payment") as caught:
        provider.ensure_subscription(desired("pro"), LastKnown(), attempt)
    assert caught.value.code == "arranged_at_provider"
    assert sent_requests(lago) == [POST]


def test_one_that_waits_for_its_first_payment_is_told_and_nothing_else_is_sold(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(ABSENT, REFUSED_BESIDE, on("pro", status="incomplete"))
    found = provider.ensure_subscription(desired("pro"), last_known(), attempt)
    assert found == Subscription(id=ID, plan_code="pro", arrangement=WAITS)
    assert sent_requests(lago) == [READ, POST, READ_WAITING]
    for spec in (desired("starter"), desired("pro", "starter"), desired("starter", "pro")):
        lago.respond_with(ABSENT, REFUSED_BESIDE, on("pro", status="incomplete"))
        with pytest.raises(ConflictError, match="waits for its first payment"):
            provider.ensure_subscription(spec, last_known(), attempt)
    lago.respond_with(ABSENT, REFUSED_BESIDE, ABSENT)
    with pytest.raises(UnavailableError, match="changed in Lago during"):
        provider.ensure_subscription(desired("pro"), last_known(), attempt)


def test_an_upgrade_that_waits_for_its_first_payment_is_no_scheduled_plan(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    waiting = (on("starter", "pro", downgrade_plan_date=None), on("pro", status="incomplete", lago_id=NEXT_ID))
    lago.respond_with(*waiting)
    found = provider.ensure_subscription(desired("starter"), last_known("starter"), attempt)
    assert found == Subscription(id=ID, plan_code="starter", arrangement=WAITS)
    for spec in (desired("pro"), desired("starter", "pro"), desired("free")):
        lago.respond_with(*waiting)
        with pytest.raises(ConflictError, match="waits for its first payment"):
            provider.ensure_subscription(spec, last_known("starter"), attempt)
    assert sent_requests(lago) == [READ, READ_WAITING] * 4


ENDS = "2026-12-31T00:00:00Z"
ARRANGED = {
    "upgrade": (desired("pro"), last_known("starter"), on("starter", ending_at=ENDS)),
    "upgrade on an old customer": (desired("pro"), last_known(), on("starter", ending_at=ENDS)),
    "schedule a downgrade": (desired("pro", "starter"), last_known("pro"), on("pro", ending_at=ENDS)),
    "take it back": (desired("pro"), last_known("pro", "starter"), on("pro", "starter", ending_at=ENDS)),
    "took effect, and more was scheduled": (
        desired("pro", "starter"),
        last_known("pro", "starter"),
        on("starter", "free", lago_id=NEXT_ID, ending_at=ENDS),
    ),
}


@pytest.mark.parametrize("way", ARRANGED)
def test_a_subscription_with_a_planned_end_is_read_and_not_written(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, way: str
) -> None:
    spec, known, reply = ARRANGED[way]
    lago.respond_with(reply)
    with pytest.raises(ConflictError, match="has a planned end on 2026-12-31 at Lago") as caught:
        provider.ensure_subscription(spec, known, attempt)
    assert caught.value.code == "arranged_at_provider"
    assert sent_requests(lago) == [READ]


def test_a_planned_end_where_nothing_is_to_be_changed_is_told(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(on("pro", ending_at=ENDS))
    made = provider.ensure_subscription(desired("pro"), last_known(), attempt)
    assert made == Subscription(
        id=ID, plan_code="pro", arrangement=Arrangement(ends_at=datetime(2026, 12, 31, tzinfo=UTC))
    )
    lago.respond_with(on("starter", lago_id=NEXT_ID, ending_at=ENDS))
    took_effect = provider.ensure_subscription(desired("pro", "starter"), last_known("pro", "starter"), attempt)
    assert took_effect.plan_code == "starter"


def test_refused_take_back_is_rejected(lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt) -> None:
    lago.respond_with(on("pro", "starter"), subscription(status="active"))
    with pytest.raises(RejectedError, match="after the request to cancel it"):
        provider.ensure_subscription(desired("pro"), last_known("pro", "starter"), attempt)


def plan(**changed: Json) -> Reply:
    shown: dict[str, Json] = {
        "lago_id": "9f000000-0000-4000-8000-000000000000",
        "name": "Starter",
        "code": "starter",
        "created_at": "2026-11-01T00:00:00Z",
        "interval": "monthly",
        "amount_cents": 1900,
        "amount_currency": "USD",
        "pay_in_advance": True,
        **changed,
    }
    return Reply(200, {"plan": shown})


OFFER = PriceSpec(code="starter", name="Starter", amount=1900, currency="USD", interval="monthly")


def test_plan_is_found_or_is_not_there(lago: ScriptedLago, provider: LagoProvider) -> None:
    lago.respond_with(plan(), refusal(404, "plan_not_found"))
    assert provider.find_price("starter") == OFFER
    assert provider.find_price("starter") is None


def test_plan_is_added_in_advance_and_once(lago: ScriptedLago, provider: LagoProvider) -> None:
    there = refusal(422, "validation_errors", code=["value_already_exist"])
    lago.respond_with(plan(), there, plan())
    provider.create_price(OFFER)
    assert lago.requests[0].body == {
        "plan": {
            "code": "starter",
            "name": "Starter",
            "interval": "monthly",
            "amount_cents": 1900,
            "amount_currency": "USD",
            "pay_in_advance": True,
        }
    }
    provider.create_price(OFFER)
    lago.respond_with(there, plan(amount_cents=2900))
    with pytest.raises(RejectedError, match=r"differs from plans\.toml"):
        provider.create_price(OFFER)


def test_plan_without_a_price_is_not_believed(lago: ScriptedLago, provider: LagoProvider) -> None:
    lago.respond_with(plan(amount_cents=None))
    with pytest.raises(UnavailableError, match="amount_cents"):
        provider.find_price("starter")
