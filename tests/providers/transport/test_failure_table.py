"""The table of failures, row by row and word by word over real HTTP: what it says is what leaves the doors.

What each row should say is held by hand in ``test_stripe_door`` and ``test_lago_refusals``; here, that no row is out of
reach, that no code of the billers' own lists is missing, and that what is on no list parks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

import pytest
import stripe

from core.catalog.plans import EndingPolicy
from core.common.json_types import Json
from core.ports.errors import ProviderError, RejectedError
from core.ports.spec import CustomerSpec, LastKnown, Provider
from providers.lago.provider import LagoProvider
from providers.stripe.client import StripeClient, with_new_idempotency_key
from providers.stripe.responses import StripeCustomer
from providers.transport.failure_table import DEFAULT_RULE, FAILURE_RULES, Failure, FailureRule
from providers.transport.permits import UnlimitedPermits
from tests import contract
from tests.contract.documents import array, lago_document, obj, stripe_document
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.scripted_lago import Reply, ScriptedLago, customer, refusal
from tests.support.stripe_stub import KEY, StripeStub, running

SPEC = CustomerSpec(org_id="org_1", name="Umbra Labs")
ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
# Without an answer there is no answer to write down: these have tests of their own beside each door.
TRANSPORT_ERROR_WORDS = {"tls", "not_sent", "no_answer"}
TRIES = {"retry_inline": 3}


@dataclass(frozen=True)
class StripeErrorResponse:
    status: int
    error: Mapping[str, str] | str
    headers: Mapping[str, str] = field(default_factory=dict)


def status_of(row: FailureRule, otherwise: int) -> int:
    return int(min(row.status).replace("x", "0")) if row.status else otherwise


def ways(row: FailureRule) -> list[str]:
    """The words to try: each of the row's, or none where the status alone decides."""
    return sorted(row.match - TRANSPORT_ERROR_WORDS) if row.match else [""]


def rows(provider: Provider) -> list[FailureRule]:
    return [row for row in FAILURE_RULES[provider] if not row.match or row.match - TRANSPORT_ERROR_WORDS]


def names(provider: Provider) -> list[str]:
    return [f"{row.action} {min(row.match | row.status)}" for row in rows(provider)]


@pytest.fixture
def stub() -> Iterator[StripeStub]:
    with running() as stub:
        yield stub


@pytest.fixture
def stripe_client(stub: StripeStub) -> Iterator[StripeClient]:
    opened = StripeClient(KEY, stub.url, 5.0)
    yield opened
    opened.close()


@pytest.fixture
def lago() -> Iterator[ScriptedLago]:
    script = ScriptedLago()
    yield script
    script.close()


@pytest.fixture
def lago_provider(lago: ScriptedLago) -> Iterator[LagoProvider]:
    built = LagoProvider(lago.url, "key", payment_provider_code=None, ending=ENDING)
    yield built
    built.close()


def stripe_response(row: FailureRule, word: str) -> StripeErrorResponse:
    invalid = {"type": "invalid_request_error"}
    ours = {
        "no_code": StripeErrorResponse(400, {**invalid, "param": "name"}),
        "no_field": StripeErrorResponse(400, invalid),
        "missing_email": StripeErrorResponse(400, {**invalid, "message": "Missing email. In order to create invoices"}),
        "inactive_price": StripeErrorResponse(
            400, {**invalid, "param": "items[0][price]", "message": "The price specified is inactive."}
        ),
        "missing_context": StripeErrorResponse(
            400, {**invalid, "message": "must be used with a Stripe-Context header"}
        ),
        "missing_payment_method": StripeErrorResponse(
            400,
            {**invalid, "message": "This customer has no attached payment source or default payment method."},
        ),
        "idempotency_error": StripeErrorResponse(400, {"type": "idempotency_error"}),
        "saved_failure": StripeErrorResponse(500, {"type": "api_error"}, {"Idempotent-Replayed": "true"}),
        "missing_permission": StripeErrorResponse(403, {**invalid, "message": "Having the 'rak_a_read' permission"}),
        "not_to_be_repeated": StripeErrorResponse(500, {"type": "api_error"}, {"Stripe-Should-Retry": "false"}),
        "foreign": StripeErrorResponse(404, "<html>not here</html>"),
        "unreadable": StripeErrorResponse(200, "{}"),
        "resource-specific": StripeErrorResponse(
            429, {**invalid, "code": "rate_limit"}, {"Stripe-Rate-Limited-Reason": "resource-specific"}
        ),
    }
    return ours.get(word, StripeErrorResponse(status_of(row, 400), {**invalid, "code": word or "made_up_tomorrow"}))


def stripe_error(
    stub: StripeStub,
    stripe_client: StripeClient,
    response: StripeErrorResponse,
    operation: str = "POST /v1/customers/{id}",
) -> ProviderError:
    if isinstance(response.error, str):
        stub.answer(response.status, response.error, response.headers)
    else:
        stub.refuse(response.status, response.error, response.headers)
    options = with_new_idempotency_key("test")
    with pytest.raises(ProviderError) as caught:
        stripe_client.send(
            UnlimitedPermits(may_write=True),
            operation,
            "update it",
            lambda: stripe_client.v1.customers.update("cus_1", {"name": "n"}, options),
            StripeCustomer,
        )
    return caught.value


@pytest.mark.parametrize("row", rows("stripe"), ids=names("stripe"))
def test_the_door_to_stripe_does_what_the_row_says(
    stub: StripeStub, stripe_client: StripeClient, row: FailureRule
) -> None:
    for word in ways(row):
        stub.answers.clear()
        stub.requests.clear()
        # A missing permission for customers concerns every organization, and is another row.
        operation = "GET /v1/invoices" if word == "missing_permission" else "POST /v1/customers/{id}"
        named = stripe_error(stub, stripe_client, stripe_response(row, word), operation)
        assert (type(named), row.message in named.message) == (row.error_class, True), word
        assert len(stub.requests) == TRIES.get(row.action, 1), word


def lago_response(row: FailureRule, word: str) -> Reply:
    status = status_of(row, 422)
    ours = {
        "no_code": Reply(status, {"status": status, "error": "Not Found"}),
        "foreign": Reply(status, b"<html>not here</html>"),
        "unreadable": customer(created_at="yesterday"),
        "stripe_authentication_failed": Reply(401, {"status": 401, "error": "Stripe authentication failed. ..."}),
    }
    if word in ours:
        return ours[word]
    at, _, code = word.rpartition(":")
    details: dict[str, Json] = {at: [code]} if at else {}
    return refusal(status, "validation_errors" if at else word or "made_up_tomorrow", **details)


def lago_error(lago: ScriptedLago, lago_provider: LagoProvider, reply: Reply) -> ProviderError:
    lago.replies.clear()
    lago.requests.clear()
    lago.respond_with(*[reply] * 6)
    with pytest.raises(ProviderError) as caught:
        lago_provider.ensure_customer(SPEC, LastKnown(), InMemoryAttempt())
    return caught.value


@pytest.mark.parametrize("row", rows("lago"), ids=names("lago"))
def test_the_door_to_lago_does_what_the_row_says(
    lago: ScriptedLago, lago_provider: LagoProvider, row: FailureRule
) -> None:
    for word in ways(row):
        named = lago_error(lago, lago_provider, lago_response(row, word))
        assert (type(named), row.message in named.message) == (row.error_class, True), word
        race = word == "external_id:value_already_exist"
        assert len(lago.requests) == (2 if race else TRIES.get(row.action, 1)), word


@pytest.mark.parametrize("code", ["value_is_too_long", "invalid_email_format", "payment_provider_not_found"])
def test_a_code_means_the_same_about_whatever_field(lago: ScriptedLago, lago_provider: LagoProvider, code: str) -> None:
    row = next(row for row in FAILURE_RULES["lago"] if code in row.match)
    assert row.message in lago_error(lago, lago_provider, refusal(422, "validation_errors", field=[code])).message


@pytest.mark.parametrize("status", [400, 404, 406, 410, 413, 418, 422])
def test_a_code_on_no_list_is_parked_after_one_try(
    stub: StripeStub, stripe_client: StripeClient, lago: ScriptedLago, lago_provider: LagoProvider, status: int
) -> None:
    unknown = StripeErrorResponse(status, {"type": "invalid_request_error", "code": "made_up_tomorrow"})
    assert type(stripe_error(stub, stripe_client, unknown)) is RejectedError
    assert type(lago_error(lago, lago_provider, refusal(status, "made_up_tomorrow"))) is RejectedError
    assert (len(stub.requests), len(lago.requests)) == (1, 1)


@pytest.mark.parametrize("provider", FAILURE_RULES)
def test_a_word_stands_in_one_row_only(provider: Provider) -> None:
    counted = Counter(word for row in FAILURE_RULES[provider] for word in row.match)
    assert [word for word, times in counted.items() if times > 1 and word != "foreign"] == []


def codes_of(annotation: object) -> set[str]:
    return {code for part in get_args(annotation) for code in get_args(part) if isinstance(code, str)}


@pytest.mark.parametrize("error", [stripe.Invoice.LastFinalizationError, stripe.SetupIntent.LastSetupError])
def test_every_code_of_stripes_own_list_is_in_the_table(error: type[stripe.StripeObject]) -> None:
    """The list is generated from Stripe's document into its SDK; a new version of it with a new code fails here."""
    codes = codes_of(error.__annotations__["code"])
    assert {"lock_timeout", "resource_missing", "card_declined"} < codes
    listed = {word for row in FAILURE_RULES["stripe"] for word in row.match}
    assert codes - listed == set(), "name each in providers/transport/failures.toml"


@pytest.mark.skipif(not contract.available(), reason=contract.where())
class TestAgainstTheDocuments:
    def test_every_type_of_stripes_document_leads_somewhere(self) -> None:
        schemas = obj(obj(stripe_document()["components"])["schemas"])
        types = array(obj(obj(obj(schemas["api_errors"])["properties"])["type"])["enum"])
        answers = {"api_error": 500, "card_error": 402, "idempotency_error": 400, "invalid_request_error": 400}
        assert set(map(str, types)) == set(answers)
        kinds = {"idempotency_error": "idempotency_error", "invalid_request_error": "no_code"}
        for kind, status in answers.items():
            assert row_of("stripe", status, kinds.get(kind, "")) is not DEFAULT_RULE, kind

    def test_every_refusal_of_lagos_document_is_in_the_table(self) -> None:
        components = obj(lago_document()["components"])
        schemas = obj(components["schemas"])
        refusals = [name for name in schemas if name.startswith("ApiError")]
        assert len(refusals) >= 6
        for name in refusals:
            properties = obj(obj(schemas[name])["properties"])
            status = int(str(obj(properties["status"])["example"]))
            code = str(obj(properties["code"])["example"]) if "code" in properties else "no_code"
            assert row_of("lago", status, code) is not DEFAULT_RULE, name


def row_of(provider: Provider, status: int, word: str) -> FailureRule:
    return Failure(provider=provider, context="it", codes=(word,), details="", status=status).rule


@pytest.mark.parametrize(
    "row", [row for each in FAILURE_RULES.values() for row in each if row.action == "park"], ids=lambda row: row.message
)
def test_a_failure_that_parks_names_what_to_do(row: FailureRule) -> None:
    """A wrong billing email alone is retried by its correction."""
    assert "`billing-sync " in row.message or "correct the organization's billing email" in row.message
