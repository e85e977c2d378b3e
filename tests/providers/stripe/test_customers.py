"""One Stripe customer an organization, whatever is lost, saved, forgotten, renamed or deleted on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from core.common.json_types import Json
from core.ports.errors import (
    AmbiguousError,
    MisconfiguredError,
    MustWaitError,
    OutcomeUnknownError,
    ProviderError,
    RejectedError,
    UnavailableError,
)
from core.ports.provider import BillingProvider, Intent
from core.ports.spec import CustomerSpec, LastKnown
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.stripe_world import StripeWorld

ORG = "org_1"
SPEC = CustomerSpec(org_id=ORG, name="Acme", email="billing@acme.example")
MARKS = {"billing_sync_org_id": ORG, "billing_sync_database_id": "database_1"}
UNKNOWN = LastKnown()

CREATE = "POST /v1/customers"
READ = "GET /v1/customers/{id}"
UPDATE = "POST /v1/customers/{id}"
EVENTS = "GET /v1/events"
LIST = "GET /v1/customers"


def lose_the_answer(world: StripeWorld, attempt: InMemoryAttempt, spec: CustomerSpec = SPEC) -> str:
    """The customer that is there now, and that nobody here knows of."""
    world.fault(CREATE, "lost_answer")
    with pytest.raises(UnavailableError, match="outcome is unknown"):
        world.provider.ensure_customer(spec, UNKNOWN, attempt)
    (left,) = world.customers()
    world.clear_calls()
    return str(left["id"])


def make(
    world: StripeWorld, attempt: InMemoryAttempt, spec: CustomerSpec = SPEC, last_known: LastKnown = UNKNOWN
) -> str:
    return world.provider.ensure_customer(spec, last_known, attempt).id


def test_new_customer_is_one_call_with_our_mark_on_it(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    made = world.provider.ensure_customer(SPEC, UNKNOWN, attempt)
    assert world.calls() == [CREATE]
    (there,) = world.customers()
    assert (there["id"], made.livemode) == (made.id, False)
    assert (there["name"], there["email"], there["metadata"]) == ("Acme", "billing@acme.example", MARKS)
    assert [intent.body for intent in attempt.recorded] == [
        {"name": "Acme", "email": "billing@acme.example", "metadata": MARKS}
    ]


def test_unknown_address_is_not_sent_and_not_erased(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    made = make(world, attempt)
    make(world, attempt, CustomerSpec(org_id=ORG, name="Acme"), LastKnown(customer_id=made, confirmed=True))
    assert world.customers()[0]["email"] == "billing@acme.example"


def test_lost_answer_then_retry_is_one_customer(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    left = lose_the_answer(world, attempt)
    assert make(world, attempt) == left
    assert len(world.customers()) == 1
    assert world.calls() == [CREATE, READ]
    assert (len(attempt.recorded), len(attempt.resent)) == (1, 1)


def test_renamed_between_lost_answer_and_retry_is_one_customer_with_the_new_name(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    left = lose_the_answer(world, attempt)
    assert make(world, attempt, replace(SPEC, name="Acme GmbH", email="new@acme.example")) == left
    (there,) = world.customers()
    assert (there["name"], there["email"]) == ("Acme GmbH", "new@acme.example")
    assert world.calls() == [CREATE, READ, UPDATE]
    assert world.replays() == 1


def test_renamed_before_a_request_that_never_arrived_ends_with_the_new_name(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "reset")
    with pytest.raises(UnavailableError):
        make(world, attempt)
    make(world, attempt, replace(SPEC, name="Acme GmbH"))
    assert [there["name"] for there in world.customers()] == ["Acme GmbH"]
    assert world.calls() == [CREATE, CREATE, UPDATE]


@pytest.mark.parametrize("kind", ["500_before", "hang", "html_502", "reset", "429", "lock_timeout"])
def test_failure_that_did_nothing_costs_a_retry_under_the_same_key(
    world: StripeWorld, attempt: InMemoryAttempt, kind: str
) -> None:
    world.fault(CREATE, kind, times=3 if kind == "lock_timeout" else 1)
    with pytest.raises(ProviderError):
        make(world, attempt)
    make(world, attempt)
    assert len(world.customers()) == 1
    assert len(attempt.recorded) == 1


def test_saved_failure_that_did_nothing_is_searched_for_and_then_made_under_a_new_key(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "500_stored")
    with pytest.raises(UnavailableError):
        make(world, attempt)
    world.clear_calls()
    make(world, attempt)
    assert world.calls() == [CREATE, LIST, EVENTS, CREATE]
    assert len(world.customers()) == 1
    assert [intent.generation for intent in attempt.recorded] == [1, 2]
    assert len({intent.idempotency_key for intent in attempt.recorded}) == 2


def test_saved_failure_that_did_it_all_the_same_is_adopted(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    world.fault(CREATE, "500_after")
    with pytest.raises(UnavailableError):
        make(world, attempt)
    (left,) = world.customers()
    world.clear_calls()
    assert make(world, attempt, replace(SPEC, name="Acme GmbH")) == left["id"]
    assert world.calls() == [CREATE, LIST, EVENTS, READ, UPDATE]
    assert [there["name"] for there in world.customers()] == ["Acme GmbH"]
    assert len(attempt.recorded) == 1


def grow_old(world: StripeWorld) -> None:
    """A day and an hour later: the key is forgotten there and not trusted here."""
    world.advance(timedelta(hours=25))
    world.clear_calls()


def test_forgotten_key_finds_the_customer_by_our_mark(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    left = lose_the_answer(world, attempt)
    grow_old(world)
    assert make(world, attempt) == left
    assert world.calls() == [LIST, EVENTS, READ]
    assert len(world.customers()) == 1


def test_forgotten_key_finds_the_customer_by_its_event_where_the_mark_was_removed(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    left = lose_the_answer(world, attempt)
    world.post(f"/v1/customers/{left}", {"metadata[billing_sync_org_id]": ""})
    grow_old(world)
    assert make(world, attempt) == left
    assert world.calls() == [LIST, EVENTS, READ, READ, UPDATE]
    assert [there["metadata"] for there in world.customers()] == [MARKS]


def test_forgotten_key_that_left_nothing_allows_one_more_create(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    world.fault(CREATE, "reset")
    with pytest.raises(UnavailableError):
        make(world, attempt)
    grow_old(world)
    make(world, attempt)
    assert world.calls() == [LIST, EVENTS, CREATE]
    assert (len(attempt.recorded), len(world.customers())) == (2, 1)


def test_forgotten_key_is_searched_for_in_the_whole_time_it_was_sent(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "reset")
    with pytest.raises(UnavailableError):
        make(world, attempt)
    world.advance(timedelta(hours=20))
    left = lose_the_answer(world, attempt)
    world.advance(timedelta(hours=6))
    assert make(world, attempt) == left


def test_a_create_that_may_still_be_under_way_is_waited_for_when_its_key_has_grown_old(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "reset")
    with pytest.raises(UnavailableError):
        make(world, attempt)
    assert attempt.stored is not None
    attempt.stored = replace(attempt.stored, first_sent_at=attempt.stored.first_sent_at - timedelta(hours=23))
    world.clear_calls()
    with pytest.raises(MustWaitError) as waits:
        make(world, attempt)
    assert 290 < waits.value.retry_after <= 300
    assert world.calls() == []


class RestoredAttempt(InMemoryAttempt):
    """As after a restored backup: the create is forgotten, and the next one is written under the same key."""

    def __init__(self, lost_intent: Intent, world: StripeWorld) -> None:
        super().__init__(now=world.now)
        self._keys = [lost_intent.idempotency_key]

    def record_intent(self, operation: str, body: Mapping[str, Json]) -> Intent:
        written = super().record_intent(operation, body)
        self.stored = replace(written, idempotency_key=self._keys.pop()) if self._keys else written
        return self.stored


def test_create_that_a_restored_database_forgot_is_found_though_the_name_changed(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    left = lose_the_answer(world, attempt)
    world.advance(timedelta(hours=5))
    restored = RestoredAttempt(attempt.recorded[0], world)
    renamed = replace(SPEC, name="Acme GmbH")
    with pytest.raises(OutcomeUnknownError, match="used for another request"):
        make(world, restored, renamed)
    assert make(world, restored, renamed) == left
    assert [customer["name"] for customer in world.customers()] == ["Acme GmbH"]


def test_create_that_a_restored_database_forgot_is_read_as_it_is_now(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    left = lose_the_answer(world, attempt)
    world.post(f"/v1/customers/{left}", {"name": "Changed since"})
    assert make(world, RestoredAttempt(attempt.recorded[0], world)) == left
    assert [customer["name"] for customer in world.customers()] == ["Acme"]


def test_customer_among_hundreds_of_others_is_found(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    left = lose_the_answer(world, attempt)
    for number in range(210):
        world.post("/v1/customers", {"name": f"other {number}", "metadata[billing_sync_org_id]": f"org_other_{number}"})
    grow_old(world)
    assert make(world, attempt) == left
    assert world.calls() == [LIST, LIST, LIST, EVENTS, EVENTS, EVENTS, READ]


def test_two_live_customers_are_named_and_neither_is_taken(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    left = lose_the_answer(world, attempt)
    other = world.post("/v1/customers", {"name": "by hand", "metadata[billing_sync_org_id]": ORG})["id"]
    grow_old(world)
    with pytest.raises(AmbiguousError) as caught:
        make(world, attempt)
    assert left in caught.value.message
    assert other in caught.value.message
    assert len(attempt.recorded) == 1


@pytest.mark.parametrize("age", [timedelta(0), timedelta(hours=25)])
def test_customer_deleted_meanwhile_is_not_made_again_by_itself(
    world: StripeWorld, attempt: InMemoryAttempt, age: timedelta
) -> None:
    left = lose_the_answer(world, attempt)
    world.delete(f"/v1/customers/{left}")
    world.advance(age)
    with pytest.raises(RejectedError, match=f"{left} was deleted in Stripe"):
        make(world, attempt)
    assert world.customers() == []


def test_refused_body_is_replaced_by_the_corrected_one(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    with pytest.raises(RejectedError, match="email"):
        make(world, attempt, replace(SPEC, email="not an address"))
    make(world, attempt)
    assert [there["email"] for there in world.customers()] == ["billing@acme.example"]


def test_two_workers_at_once_make_one_customer(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    world.fault(CREATE, "slow", seconds=0.3)
    first = world.in_thread(lambda: make(world, attempt))
    world.wait_until_written(attempt)
    second = make(world, InMemoryAttempt(attempt.stored, world.now))
    assert first() == second
    assert len(world.customers()) == 1


def test_known_customer_is_updated_in_one_call(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    made = make(world, attempt)
    world.clear_calls()
    again = make(world, InMemoryAttempt(), replace(SPEC, name="Acme GmbH"), LastKnown(customer_id=made, confirmed=True))
    assert (again, world.calls()) == (made, [UPDATE])
    assert world.customers()[0]["name"] == "Acme GmbH"


def test_name_that_goes_there_and_back_within_a_day_ends_where_it_should(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    made = LastKnown(customer_id=make(world, attempt), confirmed=True)
    for name in ("Acme", "Acme GmbH", "Acme"):
        make(world, attempt, replace(SPEC, name=name), made)
        assert world.customers()[0]["name"] == name


def test_brought_in_customer_is_read_before_it_is_written(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    made = str(world.post("/v1/customers", {"name": "Old Name", "metadata[crm]": "42"})["id"])
    world.clear_calls()
    assert make(world, attempt, last_known=LastKnown(customer_id=made)) == made
    assert world.calls() == [READ, UPDATE]
    assert world.customers()[0]["metadata"] == {"crm": "42", **MARKS}
    assert attempt.recorded == []


@pytest.mark.parametrize("verified", [False, True])
def test_known_id_that_stripe_does_not_know_is_refused_with_the_way_out(
    world: StripeWorld, attempt: InMemoryAttempt, *, verified: bool
) -> None:
    with pytest.raises(RejectedError, match=r"has no customer cus_nowhere: .* another account or mode.*correct the id"):
        make(world, attempt, last_known=LastKnown(customer_id="cus_nowhere", confirmed=verified))
    assert CREATE not in world.calls()


def test_brought_in_id_that_is_an_email_is_not_shown(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    with pytest.raises(RejectedError) as refused:
        make(world, attempt, last_known=LastKnown(customer_id="jane@acme.example"))
    assert "jane" not in str(refused.value)
    assert "correct the id with `billing-sync set-customer-id " in str(refused.value)


def test_mark_that_is_an_email_is_not_shown(world: StripeWorld, attempt: InMemoryAttempt) -> None:
    made = str(
        world.post("/v1/customers", {"name": "Theirs", "metadata[billing_sync_org_id]": "jane@acme.example"})["id"]
    )
    with pytest.raises(RejectedError, match="linked to organization") as refused:
        make(world, attempt, last_known=LastKnown(customer_id=made))
    assert "jane" not in str(refused.value)


@pytest.mark.parametrize("verified", [False, True])
def test_known_customer_that_was_deleted_is_refused_and_not_replaced(
    world: StripeWorld, attempt: InMemoryAttempt, *, verified: bool
) -> None:
    made = make(world, attempt)
    world.delete(f"/v1/customers/{made}")
    with pytest.raises(RejectedError, match="deleted"):
        make(world, attempt, last_known=LastKnown(customer_id=made, confirmed=verified))
    assert world.customers() == []


@pytest.mark.parametrize("customer_id", ["", ".", "..", " "])
@pytest.mark.parametrize("verified", [False, True])
def test_id_that_names_no_customer_makes_none(
    world: StripeWorld, attempt: InMemoryAttempt, customer_id: str, *, verified: bool
) -> None:
    with pytest.raises(RejectedError, match="is not a customer id"):
        make(world, attempt, last_known=LastKnown(customer_id=customer_id, confirmed=verified))
    assert world.calls() == []


def test_brought_in_customer_of_another_organization_is_refused_and_untouched(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    made = str(world.post("/v1/customers", {"name": "Theirs", "metadata[billing_sync_org_id]": "org_2"})["id"])
    with pytest.raises(RejectedError, match="linked to organization org_2"):
        make(world, attempt, last_known=LastKnown(customer_id=made))
    assert world.customers()[0]["name"] == "Theirs"


def test_bad_key_is_our_configuration_and_not_the_organizations_fault(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    world.fault(CREATE, "401")
    with pytest.raises(MisconfiguredError, match="STRIPE_SECRET_KEY"):
        make(world, attempt)
    make(world, attempt)
    assert len(world.customers()) == 1


def test_every_subscription_of_a_customer_with_many_is_named_where_lago_charges(
    world: StripeWorld, attempt: InMemoryAttempt
) -> None:
    """Stripe shows ten of them with the customer; the others are read from the list."""
    world.sell_all()
    customer = world.post("/v1/customers", {"name": "Acme", "email": "billing@acme.example"})["id"]
    form = {"customer": customer, "items[0][price]": world.price("starter"), "collection_method": "send_invoice"}
    theirs = [world.post("/v1/subscriptions", {**form, "days_until_due": "30"})["id"] for _ in range(12)]
    spec = replace(SPEC, charged_by_other_provider=True)
    with pytest.raises(RejectedError, match="pays for") as refused:
        make(world, attempt, spec, LastKnown(customer_id=customer))
    assert [each for each in theirs if each not in str(refused.value)] == []
    assert world.calls() == [READ, "GET /v1/subscriptions"]


def test_stripe_is_a_biller_like_any_other(world: StripeWorld) -> None:
    provider: BillingProvider = world.provider
    assert provider.provider == "stripe"


def test_the_account_is_told_with_the_mode_that_the_key_names(world: StripeWorld) -> None:
    account = world.provider.fetch_account()
    assert (account.id, account.livemode) == ("acct_sandbox", False)
    assert world.calls() == ["GET /v1/account"]
