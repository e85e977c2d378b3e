"""Lago's customer is made once, proven when it came from outside, linked to its payer, and never joined or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from core.catalog.plans import EndingPolicy
from core.common.json_types import Json
from core.ports.errors import RejectedError
from core.ports.spec import CustomerSpec, LastKnown
from providers.lago.provider import LagoProvider
from tests.providers.claims import InMemoryAttempt
from tests.providers.lago_script import NO_ID, Reply, Script, customer, refusal

SPEC = CustomerSpec(org_id="org_1", name="Umbra Labs", email="ap@umbra.test", currency="EUR")
PAID = replace(SPEC, payer_id="cus_7")
ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
ABSENT = refusal(404, "customer_not_found")


@pytest.fixture
def lago() -> Iterator[Script]:
    script = Script()
    yield script
    script.close()
    assert script.violations == []
    assert not script.replies


@pytest.fixture
def biller(lago: Script) -> Iterator[LagoProvider]:
    built = LagoProvider(lago.url, "key", payment_provider_code="stripe_main", ending=ENDING, timeout=2.0)
    yield built
    built.close()


@pytest.fixture
def claim() -> InMemoryAttempt:
    return InMemoryAttempt()


def linked(payer: str | None, **changed: Json) -> Reply:
    return customer(billing_configuration={"payment_provider": "stripe", "provider_customer_id": payer}, **changed)


def subscriptions(*external_ids: str, more: bool = False) -> Reply:
    rows: list[Json] = [
        {"lago_id": f"lago-{external_id}", "external_id": external_id, "status": "active"}
        for external_id in external_ids
    ]
    return Reply(200, {"subscriptions": rows, "meta": {"current_page": 1, "next_page": 2 if more else None}})


def asked(lago: Script) -> list[str]:
    return [f"{each.method} {each.target.removeprefix('/api/v1')}" for each in lago.asked]


LIST = "GET /subscriptions?external_customer_id=org_1&status%5B%5D=active&status%5B%5D=pending&per_page=100"


def test_new_customer_takes_one_call_and_names_only_what_we_know(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(customer())
    assert biller.ensure_customer(CustomerSpec(org_id="org_1", name="Umbra Labs"), LastKnown(), claim).id == NO_ID
    assert asked(lago) == ["POST /customers"]
    assert lago.asked[0].body == {"customer": {"external_id": "org_1", "name": "Umbra Labs"}}
    assert claim.request_count == 1


def test_payer_is_linked_in_the_same_call_and_lago_makes_none(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(linked("cus_7"))
    biller.ensure_customer(PAID, LastKnown(), claim)
    assert lago.asked[0].body == {
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


def test_payer_is_not_sent_without_a_code_for_lagos_connection(lago: Script, claim: InMemoryAttempt) -> None:
    lago.say(customer())
    biller = LagoProvider(lago.url, "key", payment_provider_code=None, ending=ENDING)
    biller.ensure_customer(PAID, LastKnown(), claim)
    biller.close()
    assert lago.asked[0].body == {
        "customer": {"external_id": "org_1", "name": "Umbra Labs", "email": "ap@umbra.test", "currency": "EUR"}
    }


def test_link_that_the_create_ignored_is_sent_once_more(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(linked(None), linked("cus_7"))
    assert biller.ensure_customer(PAID, LastKnown(), claim).id == NO_ID
    assert asked(lago) == ["POST /customers"] * 2


@pytest.mark.parametrize("shown", [None, "cus_other"])
def test_link_that_lago_does_not_take_is_rejected(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt, shown: str | None
) -> None:
    lago.say(linked(shown), linked(shown))
    with pytest.raises(RejectedError, match="cus_7 as the payer at its connection stripe_main"):
        biller.ensure_customer(PAID, LastKnown(), claim)


def test_known_customer_is_updated_in_one_call(lago: Script, biller: LagoProvider, claim: InMemoryAttempt) -> None:
    lago.say(customer(created_at="2020-01-01T00:00:00Z"))
    assert biller.ensure_customer(SPEC, LastKnown(customer_id=NO_ID, confirmed=True), claim).id == NO_ID
    assert asked(lago) == ["POST /customers"]


def test_known_customer_that_was_deleted_there_is_rejected_with_both_ids(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(customer())
    with pytest.raises(RejectedError, match=f"a new one, {NO_ID}, because the known one, lago-old, is no longer"):
        biller.ensure_customer(SPEC, LastKnown(customer_id="lago-old", confirmed=True), claim)


def test_answer_for_another_customer_is_rejected(lago: Script, biller: LagoProvider, claim: InMemoryAttempt) -> None:
    lago.say(customer(external_id="org_2"))
    with pytest.raises(RejectedError, match="org_2"):
        biller.ensure_customer(SPEC, LastKnown(), claim)


@pytest.mark.parametrize("imported", [NO_ID, "org_1"], ids=["lago_id", "external id"])
def test_imported_id_is_read_before_it_is_written(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt, imported: str
) -> None:
    lago.say(customer(), subscriptions("org_1", "org_1"), customer())
    assert biller.ensure_customer(SPEC, LastKnown(customer_id=imported), claim).id == NO_ID
    assert asked(lago) == ["GET /customers/org_1", LIST, "POST /customers"]
    assert claim.request_count == 3


def test_imported_id_of_another_customer_is_rejected_unwritten(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(customer())
    with pytest.raises(RejectedError, match=f"knows it as {NO_ID}, not as lago-other"):
        biller.ensure_customer(SPEC, LastKnown(customer_id="lago-other"), claim)
    assert asked(lago) == ["GET /customers/org_1"]


def test_imported_id_of_an_old_identity_is_rejected_unwritten(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(ABSENT, customer(external_id="acme", lago_id="lago-acme"))
    with pytest.raises(RejectedError, match=r"acme as lago-acme under another external id \(an old identity\)"):
        biller.ensure_customer(SPEC, LastKnown(customer_id="acme"), claim)
    assert asked(lago) == ["GET /customers/org_1", "GET /customers/acme"]


@pytest.mark.parametrize(("imported", "calls"), [("lago-gone", 2), ("org_1", 1)])
def test_imported_id_that_lago_does_not_know_is_rejected_unwritten(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt, imported: str, calls: int
) -> None:
    lago.say(*[ABSENT] * calls)
    with pytest.raises(RejectedError, match=f"no customer {imported}: deleted there, another account's key, or an old"):
        biller.ensure_customer(SPEC, LastKnown(customer_id=imported), claim)
    assert all(each.method == "GET" for each in lago.asked)


def test_imported_id_that_is_an_email_is_not_shown(lago: Script, biller: LagoProvider, claim: InMemoryAttempt) -> None:
    lago.say(ABSENT, ABSENT)
    with pytest.raises(RejectedError) as caught:
        biller.ensure_customer(SPEC, LastKnown(customer_id="ap@umbra.test"), claim)
    assert "umbra" not in repr(caught.value)


def test_imported_customer_with_another_payer_is_rejected_unwritten(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(linked("cus_other"))
    with pytest.raises(RejectedError, match="charges cus_other, but our payer is cus_7"):
        biller.ensure_customer(PAID, LastKnown(customer_id=NO_ID), claim)


def test_imported_customer_with_a_foreign_subscription_is_rejected_unwritten(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(customer(), subscriptions("org_1", "acme_main"))
    with pytest.raises(RejectedError, match=r"active subscription acme_main .*would bill twice"):
        biller.ensure_customer(SPEC, LastKnown(customer_id=NO_ID), claim)
    assert "POST /customers" not in asked(lago)


def test_more_subscriptions_than_a_page_are_not_guessed_at(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.say(customer(), subscriptions("org_1", more=True))
    with pytest.raises(RejectedError, match="more than 100"):
        biller.ensure_customer(SPEC, LastKnown(customer_id=NO_ID), claim)


@pytest.mark.parametrize(
    "times",
    [
        {"created_at": "2020-01-01T00:00:00Z", "updated_at": "2020-01-01T00:00:00Z"},
        {"created_at": "2999-01-01T00:00:00Z", "updated_at": "2999-01-01T00:00:09Z"},
    ],
    ids=["old", "updated later than created"],
)
def test_customer_that_was_there_before_us_is_checked_for_subscriptions(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt, times: dict[str, Json]
) -> None:
    lago.say(customer(**times), subscriptions())
    assert biller.ensure_customer(SPEC, LastKnown(), claim).id == NO_ID
    lago.say(customer(**times), subscriptions("acme_main"))
    with pytest.raises(RejectedError, match="would bill twice"):
        biller.ensure_customer(SPEC, LastKnown(), claim)
    assert asked(lago) == ["POST /customers", LIST] * 2


def test_payer_at_lago_is_refused_where_stripe_charges(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.replies.append(linked("cus_9"))
    with pytest.raises(RejectedError, match=r"cus_9.*Stripe charges for this plan"):
        biller.ensure_customer(replace(SPEC, charged_by_other_provider=True), LastKnown(), claim)


def test_customer_without_a_payer_is_fine_where_stripe_charges(
    lago: Script, biller: LagoProvider, claim: InMemoryAttempt
) -> None:
    lago.replies.append(customer())
    assert biller.ensure_customer(replace(SPEC, charged_by_other_provider=True), LastKnown(), claim).id
