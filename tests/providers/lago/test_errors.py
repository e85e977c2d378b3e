"""Each answer that is no success comes out as one named error, with a sentence that says what next and no secret."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator

import pytest

from core.catalog.plans import EndingPolicy
from core.ports.errors import MisconfiguredError, ProviderError, RejectedError, ThrottledError, UnavailableError
from core.ports.spec import CustomerSpec, LastKnown, SubscriptionSpec
from providers.lago.provider import LagoProvider
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.scripted_lago import NO_ID, Reply, ScriptedLago, customer, refusal

KEY = "lago_key_that_nobody_may_see"
SPEC = CustomerSpec(org_id="org_1", name="Umbra Labs", email="ap@umbra.test")
PLAN = SubscriptionSpec(org_id="org_1", customer_id=NO_ID, plan_code="starter")
ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
HTML = b"<html><h1>502 Bad Gateway</h1></html>"


@pytest.fixture
def lago() -> Iterator[ScriptedLago]:
    script = ScriptedLago()
    yield script
    script.close()
    assert script.violations == []


@pytest.fixture
def provider(lago: ScriptedLago) -> Iterator[LagoProvider]:
    built = LagoProvider(lago.url, KEY, payment_provider_code=None, ending=ENDING)
    yield built
    built.close()


ROWS = [
    (Reply(400, b""), RejectedError, "400 not JSON"),
    (Reply(400, {"status": 400, "error": "BadRequest: param is missing"}), RejectedError, "could not parse"),
    (Reply(401, {"status": 401, "error": "Unauthorized"}), MisconfiguredError, "LAGO_API_KEY"),
    (Reply(401, {"status": 401, "error": "Stripe authentication failed. ..."}), RejectedError, "saved in Lago"),
    (Reply(401, b"<html>sign in</html>"), MisconfiguredError, "401 not JSON"),
    (refusal(403, "write_action_not_allowed_for_customer"), MisconfiguredError, "write_action_not_allowed"),
    (refusal(404, "resource_not_found"), MisconfiguredError, "LAGO_API_URL"),
    (refusal(404, "plan_not_found"), RejectedError, "billing-sync plans push"),
    (refusal(404, "billing_entity_not_found"), RejectedError, "Lago has no billing entity"),
    (refusal(404, "tax_not_found"), RejectedError, "does not exist"),
    (refusal(404, "made_up_tomorrow_not_found"), RejectedError, "unlisted"),
    (refusal(409), RejectedError, "unlisted"),
    (Reply(404, b"<html>not found</html>"), MisconfiguredError, "404 not JSON"),
    (Reply(301, b"", {"Location": "https://elsewhere"}), MisconfiguredError, "redirect"),
    (refusal(405, "no_active_subscription"), RejectedError, "no_active_subscription"),
    (refusal(405, "subscription_incomplete"), RejectedError, "first payment"),
    (refusal(408), UnavailableError, "408"),
    (refusal(418), RejectedError, "unlisted"),
    (refusal(422, "validation_errors", currency=["currencies_does_not_match"]), RejectedError, "currency:currencies"),
    (refusal(422, "validation_errors", subscription=["subscription_incomplete"]), RejectedError, "first payment"),
    (refusal(422, "validation_errors", base=["payment_provider_not_found"]), MisconfiguredError, "STRIPE_PROVIDER"),
    (refusal(422, "validation_errors", base=["payment_provider_code_missing"]), MisconfiguredError, "several"),
    (refusal(422, "validation_errors", email=["ap@umbra.test is bad"]), RejectedError, "email:text"),
    (
        refusal(422, "third_party_error", thirdparty_error="No such customer: 'cus_9' Umbra Labs"),
        RejectedError,
        "cus_9",
    ),
    (refusal(422, "provider_error"), RejectedError, "provider"),
    (refusal(422), RejectedError, "unlisted"),
    (refusal(500), UnavailableError, "500"),
    (Reply(502, HTML), UnavailableError, "502 not JSON"),
    (Reply(503, b""), UnavailableError, "503 not JSON"),
    (refusal(520), UnavailableError, "520"),
    (Reply(200, b""), UnavailableError, "200 not JSON"),
    (Reply(200, HTML), UnavailableError, "200 not JSON"),
    (Reply(200, "text"), UnavailableError, "customer"),
    (Reply(200, 7), UnavailableError, "200 not JSON"),
    (Reply(200, {"something": {}}), UnavailableError, "customer"),
    (Reply(200, {"customer": {"external_id": "org_1"}}), UnavailableError, "lago_id"),
    (Reply(200, {"customer": [1]}), UnavailableError, "customer"),
    (Reply(204, b""), UnavailableError, "204 not JSON"),
    (customer(created_at="yesterday"), UnavailableError, "time"),
    (Reply(200, {"customer": {}}, {"Content-Encoding": "gzip"}), UnavailableError, "DecodingError"),
    (Reply(0), UnavailableError, "outcome is unknown"),
]


@pytest.mark.parametrize(("reply", "kind", "says"), ROWS, ids=[f"{row[0].status} {row[2]}" for row in ROWS])
def test_answer_is_named_once(
    lago: ScriptedLago, provider: LagoProvider, reply: Reply, kind: type[ProviderError], says: str
) -> None:
    lago.respond_with(reply)
    with pytest.raises(ProviderError) as caught:
        provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
    assert type(caught.value) is kind
    assert says in str(caught.value)
    assert str(caught.value).startswith("lago: customer org_1: ")
    assert len(lago.requests) == 1
    assert not any(secret in repr(caught.value) for secret in (KEY, "Umbra", "umbra.test"))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301 - our own


def test_code_and_request_id_are_kept(lago: ScriptedLago, provider: LagoProvider) -> None:
    answer = refusal(403, "feature_unavailable")
    lago.respond_with(Reply(answer.status, answer.body, {"X-Request-Id": "req-7"}))
    attempt = InMemoryAttempt()
    with pytest.raises(MisconfiguredError) as caught:
        provider.ensure_customer(SPEC, LastKnown(), attempt)
    assert (caught.value.code, caught.value.request_id) == ("feature_unavailable", "req-7")
    assert attempt.request_ids == ["req-7"]


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"x-ratelimit-reset": "1"}, 1.0),
        ({"Retry-After": "70"}, 70.0),
        ({"x-ratelimit-reset": "30", "Retry-After": "70"}, 30.0),
        ({"x-ratelimit-reset": "1795417200"}, None),
        ({"x-ratelimit-reset": "soon", "Retry-After": "nan"}, None),
        ({"Retry-After": "-4"}, None),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({}, None),
    ],
)
def test_throttling_names_a_sane_wait_and_never_sleeps(
    lago: ScriptedLago, provider: LagoProvider, headers: dict[str, str], wait: float | None
) -> None:
    lago.respond_with(Reply(429, {"status": 429, "error": "Too Many Requests"}, headers))
    started = time.monotonic()
    with pytest.raises(ThrottledError) as caught:
        provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
    assert caught.value.retry_after == wait
    assert time.monotonic() - started < 10  # the shortest wait that it names is 30
    assert len(lago.requests) == 1


def test_lock_that_is_held_for_a_moment_is_bridged(lago: ScriptedLago, provider: LagoProvider) -> None:
    busy = refusal(422, "lock_acquisition_failed")
    lago.respond_with(busy, busy, customer())
    assert provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt()).id == NO_ID
    lago.respond_with(busy, busy, busy)
    with pytest.raises(UnavailableError, match="busy"):
        provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
    assert [asked.method for asked in lago.requests] == ["POST"] * 6


def test_lost_race_for_an_id_is_sent_once_more(lago: ScriptedLago, provider: LagoProvider) -> None:
    taken = refusal(422, "validation_errors", external_id=["value_already_exist"])
    lago.respond_with(taken, customer())
    assert provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt()).id == NO_ID
    lago.respond_with(taken, taken)
    with pytest.raises(RejectedError, match="another customer's subscription"):
        provider.ensure_subscription(PLAN, LastKnown(), InMemoryAttempt())
    assert [asked.method for asked in lago.requests] == ["POST"] * 4


def test_missing_plan_names_the_plan_and_the_way_out(lago: ScriptedLago, provider: LagoProvider) -> None:
    lago.respond_with(refusal(404, "plan_not_found"))
    with pytest.raises(RejectedError, match=r"org_1 on plan starter: .*plans push"):
        provider.ensure_subscription(PLAN, LastKnown(), InMemoryAttempt())


@pytest.mark.parametrize("reply", [Reply(404, HTML), refusal(404, "resource_not_found")], ids=["proxy", "route"])
def test_only_lagos_own_404_means_absent(lago: ScriptedLago, provider: LagoProvider, reply: Reply) -> None:
    lago.respond_with(reply)
    with pytest.raises(MisconfiguredError):
        provider.end_subscription(LastKnown(), "org_1", InMemoryAttempt())
    lago.respond_with(reply)
    with pytest.raises(MisconfiguredError):
        provider.find_price("starter")
