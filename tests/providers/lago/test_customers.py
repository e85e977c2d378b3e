"""Lago's customer is made once, proven when it came from outside, linked to its payer, and never joined or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from core.catalog.plans import EndingPolicy
from core.common.json_types import Json
from core.ports.errors import RejectedError
from core.ports.external_ids import ExternalIds
from core.ports.spec import CustomerSpec, LastKnown
from providers.lago.provider import LagoProvider
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.scripted_lago import NO_ID, Reply, ScriptedLago, customer, refusal

SPEC = CustomerSpec(org_id="org_1", name="Umbra Labs", email="ap@umbra.test", currency="EUR")
PAID = replace(SPEC, payer_id="cus_7")
ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
ABSENT = refusal(404, "customer_not_found")


@pytest.fixture
def lago() -> Iterator[ScriptedLago]:
    script = ScriptedLago()
    yield script
    script.close()
    assert script.violations == []
    assert not script.replies


@pytest.fixture
def provider(lago: ScriptedLago) -> Iterator[LagoProvider]:
    built = LagoProvider(lago.url, "key", payment_provider_code="stripe_main", ending=ENDING)
    yield built
    built.close()


@pytest.fixture
def attempt() -> InMemoryAttempt:
    return InMemoryAttempt()


def linked(payer: str | None, **changed: Json) -> Reply:
    return customer(billing_configuration={"payment_provider": "stripe", "provider_customer_id": payer}, **changed)


def subscriptions(*external_ids: str, more: bool = False) -> Reply:
    rows: list[Json] = [
        {"lago_id": f"lago-{external_id}", "external_id": external_id, "status": "active"}
        for external_id in external_ids
    ]
    return Reply(200, {"subscriptions": rows, "meta": {"current_page": 1, "next_page": 2 if more else None}})


def sent_requests(lago: ScriptedLago) -> list[str]:
    return [f"{each.method} {each.target.removeprefix('/api/v1')}" for each in lago.requests]


STATUSES = "status%5B%5D=active&status%5B%5D=pending&status%5B%5D=incomplete"
LIST = f"GET /subscriptions?external_customer_id=org_1&{STATUSES}&per_page=100"


def test_new_customer_takes_one_call_and_names_only_what_we_know(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(customer())
    assert provider.ensure_customer(CustomerSpec(org_id="org_1", name="Umbra Labs"), LastKnown(), attempt).id == NO_ID
    assert sent_requests(lago) == ["POST /customers"]
    assert lago.requests[0].body == {"customer": {"external_id": "org_1", "name": "Umbra Labs"}}
    assert attempt.request_count == 1


def test_payer_is_linked_in_the_same_call_and_lago_makes_none(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(linked("cus_7"))
    provider.ensure_customer(PAID, LastKnown(), attempt)
    assert lago.requests[0].body == {
        "customer": {
            "external_id": "org_1",
            "name": "Umbra Labs",
            "email": "ap@umbra.test",
            "currency": "EUR",
            "billing_configuration": {
                "payment_provider": "stripe",
                "payment_provider_code": "stripe_main",
                "provider_customer_id": "cus_7",
                "sync_with_provider": False,
            },
        }
    }


def test_payer_is_not_sent_without_a_code_for_lagos_connection(lago: ScriptedLago, attempt: InMemoryAttempt) -> None:
    lago.respond_with(customer())
    provider = LagoProvider(lago.url, "key", payment_provider_code=None, ending=ENDING)
    provider.ensure_customer(PAID, LastKnown(), attempt)
    provider.close()
    assert lago.requests[0].body == {
        "customer": {"external_id": "org_1", "name": "Umbra Labs", "email": "ap@umbra.test", "currency": "EUR"}
    }


ENTITY_CASES: dict[str, tuple[LastKnown, list[Reply], bool]] = {
    "new": (LastKnown(), [customer()], True),
    "known": (LastKnown(customer_id=NO_ID, confirmed=True), [customer()], False),
    "after a restore, not there": (LastKnown(maybe_lost_in_restore=True), [ABSENT, customer()], True),
    "after a restore, there": (LastKnown(maybe_lost_in_restore=True), [customer(), customer()], False),
    "an id from outside, not there": (LastKnown(maybe_older=True), [ABSENT, customer()], True),
}


@pytest.mark.parametrize("case", ENTITY_CASES)
def test_only_a_customer_that_is_created_gets_the_billing_entity(
    lago: ScriptedLago, attempt: InMemoryAttempt, case: str
) -> None:
    """Lago moves one that exists to the entity that a request names (B19)."""
    last_known, replies, is_sent = ENTITY_CASES[case]
    lago.respond_with(*replies)
    provider = LagoProvider(lago.url, "key", payment_provider_code=None, billing_entity_code="eu", ending=ENDING)
    provider.ensure_customer(SPEC, last_known, attempt)
    provider.close()
    written = lago.requests[-1].body
    assert isinstance(written, dict)
    assert isinstance(written["customer"], dict)
    assert written["customer"].get("billing_entity_code") == ("eu" if is_sent else None)


def test_link_that_the_create_ignored_is_sent_once_more(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(linked(None), linked("cus_7"))
    assert provider.ensure_customer(PAID, LastKnown(), attempt).id == NO_ID
    assert sent_requests(lago) == ["POST /customers"] * 2


@pytest.mark.parametrize("shown", [None, "cus_other"])
def test_link_that_lago_does_not_take_is_rejected(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, shown: str | None
) -> None:
    lago.respond_with(linked(shown), linked(shown))
    with pytest.raises(RejectedError, match="cus_7 as the payer in its connection stripe_main"):
        provider.ensure_customer(PAID, LastKnown(), attempt)


def test_known_customer_is_updated_in_one_call(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(customer(created_at="2020-01-01T00:00:00Z"))
    assert provider.ensure_customer(SPEC, LastKnown(customer_id=NO_ID, confirmed=True), attempt).id == NO_ID
    assert sent_requests(lago) == ["POST /customers"]


def test_known_customer_that_was_deleted_there_is_rejected_with_both_ids(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(customer())
    with pytest.raises(RejectedError, match=f"lago-old no longer exists in Lago, .* a new customer, {NO_ID}"):
        provider.ensure_customer(SPEC, LastKnown(customer_id="lago-old", confirmed=True), attempt)


def test_answer_for_another_customer_is_rejected(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(customer(external_id="org_2"))
    with pytest.raises(RejectedError, match="org_2"):
        provider.ensure_customer(SPEC, LastKnown(), attempt)


@pytest.mark.parametrize("imported", [NO_ID, "org_1"], ids=["lago_id", "external id"])
def test_imported_id_is_read_before_it_is_written(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, imported: str
) -> None:
    lago.respond_with(linked("cus_7"), subscriptions("org_1", "org_1"), linked("cus_7"))
    assert provider.ensure_customer(PAID, LastKnown(customer_id=imported), attempt).id == NO_ID
    assert sent_requests(lago) == ["GET /customers/org_1", LIST, "POST /customers"]
    assert attempt.request_count == 3


def test_imported_id_of_another_customer_is_rejected_unwritten(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(customer())
    with pytest.raises(RejectedError, match=f"the customer is {NO_ID} in Lago, not lago-other"):
        provider.ensure_customer(SPEC, LastKnown(customer_id="lago-other"), attempt)
    assert sent_requests(lago) == ["GET /customers/org_1"]


def test_imported_id_of_an_old_identity_is_rejected_unwritten(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(ABSENT, customer(external_id="acme", lago_id="lago-acme"))
    with pytest.raises(RejectedError, match="acme is customer lago-acme in Lago under another external id"):
        provider.ensure_customer(SPEC, LastKnown(customer_id="acme"), attempt)
    assert sent_requests(lago) == ["GET /customers/org_1", "GET /customers/acme"]


@pytest.mark.parametrize(("imported", "calls"), [("lago-gone", 2), ("org_1", 1)])
def test_imported_id_that_lago_does_not_know_is_rejected_unwritten(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, imported: str, calls: int
) -> None:
    lago.respond_with(*[ABSENT] * calls)
    with pytest.raises(RejectedError, match=f"no customer {imported}: it was deleted, belongs to another account"):
        provider.ensure_customer(SPEC, LastKnown(customer_id=imported), attempt)
    assert all(each.method == "GET" for each in lago.requests)


def test_imported_id_that_is_an_email_is_not_shown(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(ABSENT, ABSENT)
    with pytest.raises(RejectedError) as caught:
        provider.ensure_customer(SPEC, LastKnown(customer_id="ap@umbra.test"), attempt)
    assert "umbra" not in repr(caught.value)


def test_imported_customer_with_another_payer_is_rejected_unwritten(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(linked("cus_other"))
    with pytest.raises(RejectedError, match="charges cus_other, but our payer is cus_7"):
        provider.ensure_customer(PAID, LastKnown(customer_id=NO_ID), attempt)


def test_imported_customer_with_a_foreign_subscription_is_rejected_unwritten(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(customer(), subscriptions("org_1", "acme_main"))
    with pytest.raises(RejectedError, match=r"active subscription acme_main .*would bill twice"):
        provider.ensure_customer(SPEC, LastKnown(customer_id=NO_ID), attempt)
    assert "POST /customers" not in sent_requests(lago)


def test_more_subscriptions_than_a_page_are_not_guessed_at(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.respond_with(customer(), subscriptions("org_1", more=True))
    with pytest.raises(RejectedError, match="more than 100"):
        provider.ensure_customer(SPEC, LastKnown(customer_id=NO_ID), attempt)


@pytest.mark.parametrize(
    "times",
    [
        {"created_at": "2020-01-01T00:00:00Z", "updated_at": "2020-01-01T00:00:00Z"},
        {"created_at": "2999-01-01T00:00:00Z", "updated_at": "2999-01-01T00:00:09Z"},
    ],
    ids=["old", "updated later than created"],
)
def test_customer_that_was_there_before_us_is_checked_for_subscriptions(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt, times: dict[str, Json]
) -> None:
    lago.respond_with(customer(**times), subscriptions())
    assert provider.ensure_customer(SPEC, LastKnown(), attempt).id == NO_ID
    lago.respond_with(customer(**times), subscriptions("acme_main"))
    with pytest.raises(RejectedError, match="would bill twice"):
        provider.ensure_customer(SPEC, LastKnown(), attempt)
    assert sent_requests(lago) == ["POST /customers", LIST] * 2


def test_payer_at_lago_is_refused_where_stripe_charges(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.replies.append(linked("cus_9"))
    with pytest.raises(RejectedError, match=r"cus_9.*Stripe charges for this plan"):
        provider.ensure_customer(replace(SPEC, charged_by_other_provider=True), LastKnown(), attempt)


def test_customer_without_a_payer_is_fine_where_stripe_charges(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    lago.replies.append(customer())
    assert provider.ensure_customer(replace(SPEC, charged_by_other_provider=True), LastKnown(), attempt).id


def test_nothing_is_created_under_the_id_of_an_adopted_customer(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    adopted = replace(SPEC, external_ids=ExternalIds(customer_id="acme"))
    for known in (LastKnown(), LastKnown(customer_id=NO_ID)):
        lago.respond_with(*[ABSENT] * (1 if known.customer_id is None else 2))
        with pytest.raises(RejectedError, match="Lago has no customer"):
            provider.ensure_customer(adopted, known, attempt)
    assert sent_requests(lago)[0] == "GET /customers/acme"
    assert {each.method for each in lago.requests} == {"GET"}


def test_an_answer_about_another_customer_than_the_adopted_one_is_refused(
    lago: ScriptedLago, provider: LagoProvider, attempt: InMemoryAttempt
) -> None:
    """As through a proxy that turns ``%2E`` into a dot, at which Lago ends the id."""
    adopted = replace(SPEC, external_ids=ExternalIds(customer_id="acme.com"))
    lago.respond_with(customer(external_id="acme"))
    with pytest.raises(RejectedError, match="Lago returned another customer, acme"):
        provider.ensure_customer(adopted, LastKnown(customer_id=NO_ID), attempt)
    assert sent_requests(lago) == ["GET /customers/acme%2Ecom"]
