"""Each of our readers reads what a real Lago answered, and each recorded webhook verifies and is read.

An answer is served with its status and its body to the reader that has it in production. What no reader of ours has,
because we do not send that request, is listed with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from core.catalog.plans import EndingPolicy
from core.ports.arrangement import Arrangement
from core.ports.errors import MisconfiguredError, ProviderError, RejectedError
from core.ports.observed import ObservedPayment, ObservedState
from core.ports.provider import Customer, Subscription
from core.ports.quotes import PlanChangeQuery
from core.ports.spec import CustomerSpec, LastKnown, PriceSpec, SubscriptionSpec
from providers.lago.client import parse_time
from providers.lago.provider import LagoProvider
from providers.lago.webhooks import LAGO_WEBHOOK_EFFECTS, HmacCheck, JwtCheck, LagoWebhookParser
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.lago_recordings import RecordedCall, RecordedWebhook, all_calls, keys, webhooks
from tests.support.scripted_lago import Reply, ScriptedLago, refusal

ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
NO_SUBSCRIPTIONS = Reply(200, {"subscriptions": [], "meta": {"current_page": 0, "next_page": None}})
NO_INVOICES = Reply(200, {"invoices": [], "meta": {"current_page": 0, "next_page": None}})
NO_SUBSCRIPTION = refusal(404, "subscription_not_found")
NO_PLAN = refusal(404, "plan_not_found")

NOT_OURS = {
    "GET nowhere": "an address that Lago does not have",
    "GET /nowhere": "an address that Lago does not have",
    "PUT customers": "an address that Lago does not have",
    "POST billable_metrics": "usage is set up in Lago",
    "POST add_ons": "fixed charges are set up in Lago",
    "GET plans": "plans are read one by one",
    "PUT subscriptions/{id}": "we set no planned end",
    "DELETE customers/{id}": "we delete no customer",
    "POST invoices/{id}": "a preview needs a licence",
    "GET webhook_endpoints": "webhook endpoints are set up in Lago",
    "GET webhooks/{id}": "an operator copies the key",
    "GET credit_notes": "credits are left to Lago",
    "POST invoices/{id}/retry_payment": "payments are left to Lago",
    "POST invoices/{id}/lose_dispute": "disputes are left to Lago",
}
ANSWERED = [call for call in all_calls() if call.status is not None]
OURS = [call for call in ANSWERED if call.operation not in NOT_OURS]


@dataclass(frozen=True)
class RecordedReader:
    """``read`` gives what our reader made of the answer, ``expected`` what it should make of it.

    ``absent``: the codes that mean that there is nothing. ``before`` and ``after`` answer the reader's other requests.
    """

    read: Callable[[LagoProvider, RecordedCall], object]
    expected: Callable[[dict[str, Any]], object]
    root: str
    absent: frozenset[str] = frozenset()
    before: tuple[Reply, ...] = ()
    after: tuple[Reply, ...] = ()


@pytest.fixture(scope="module")
def lago() -> Iterator[ScriptedLago]:
    script = ScriptedLago()
    yield script
    script.close()


@pytest.fixture(scope="module")
def provider(lago: ScriptedLago) -> Iterator[LagoProvider]:
    built = LagoProvider(lago.url, "key", payment_provider_code="stripe_main", ending=ENDING)
    yield built
    built.close()


# --- what is asked, and what is expected of the answer


def _account(provider: LagoProvider, _call: RecordedCall) -> object:
    return provider.fetch_account().id


def _price(provider: LagoProvider, call: RecordedCall) -> object:
    return provider.find_price(call.key)


def _created_price(provider: LagoProvider, call: RecordedCall) -> object:
    """What differs from the order is rejected, so an answer that is accepted has been read as the order."""
    ordered = _expected_order(_object(call.request, "plan"))
    provider.create_price(ordered)
    return ordered


def _expected_order(shown: dict[str, Any]) -> PriceSpec:
    return PriceSpec(
        code=shown["code"],
        name=shown["name"],
        amount=shown["amount_cents"],
        currency=shown["amount_currency"],
        interval=shown["interval"],
    )


def _expected_price(shown: dict[str, Any]) -> PriceSpec:
    """Of the recorded plans that were read, one has other terms: a fixed charge."""
    fixed = tuple(f"it has a fixed charge beside its amount: {each['add_on_code']}" for each in shown["fixed_charges"])
    return replace(_expected_order(shown), other_terms=fixed)


def _written_customer(provider: LagoProvider, call: RecordedCall) -> object:
    sent, shown = _object(call.request, "customer"), _object(call.response, "customer")
    spec = CustomerSpec(
        org_id=sent.get("external_id", "org_1"),
        name=sent.get("name") or "",
        email=sent.get("email"),
        currency=sent.get("currency"),
        payer_id=(sent.get("billing_configuration") or {}).get("provider_customer_id"),
    )
    known = LastKnown(customer_id=shown["lago_id"], confirmed=True) if shown else LastKnown()
    return provider.ensure_customer(spec, known, InMemoryAttempt())


def _expected_customer(shown: dict[str, Any]) -> object:
    return Customer(id=shown["lago_id"], payer_id=shown["billing_configuration"].get("provider_customer_id"))


def _observed_customer(provider: LagoProvider, call: RecordedCall) -> object:
    found = provider.reader.read(call.key, ()).customers
    return [(each.id, each.org_id, each.name, each.currency, each.payer_id) for each in found]


def _expected_observed_customer(shown: dict[str, Any]) -> object:
    if not shown:
        return []
    payer_id = shown["billing_configuration"].get("provider_customer_id")
    return [(shown["lago_id"], shown["external_id"], shown["name"], shown["currency"], payer_id)]


def _listed_customers(provider: LagoProvider, _call: RecordedCall) -> object:
    page = provider.reader.customers(None)
    return [(each.id, each.org_id, each.name) for each in page.rows], page.next_cursor is not None


def _expected_customers(shown: dict[str, Any]) -> object:
    rows = [(each["lago_id"], each["external_id"], each["name"]) for each in shown["customers"]]
    return rows, shown["meta"]["next_page"] is not None


def _written_subscription(provider: LagoProvider, call: RecordedCall) -> object:
    """Ordered so that the recorded answer is what was wanted: a plan at once, or another one at period end."""
    sent, shown = _object(call.request, "subscription"), _object(call.response, "subscription")
    plan_code = shown.get("plan_code", sent["plan_code"])
    return _ensure(provider, plan_code, shown, LastKnown(plan_code=plan_code if shown.get("next_plan_code") else None))


def _ensure(provider: LagoProvider, plan_code: str, shown: dict[str, Any], known: LastKnown) -> object:
    spec = SubscriptionSpec(
        org_id=shown.get("external_id", "org_1"),
        customer_id=shown.get("lago_customer_id", "none"),
        plan_code=plan_code,
        next_plan_code=shown.get("next_plan_code"),
    )
    return provider.ensure_subscription(spec, known, InMemoryAttempt())


def _expected_subscription(shown: dict[str, Any]) -> object:
    is_scheduled = shown["downgrade_plan_date"] is not None
    period_end = shown["current_billing_period_ending_at"]
    return Subscription(
        id=shown["lago_id"],
        plan_code=shown["plan_code"],
        next_plan_code=shown["next_plan_code"],
        next_plan_at=datetime.fromisoformat(period_end) + timedelta(seconds=1) if is_scheduled else None,
        price_id=str(shown["plan_amount_cents"]),
        arrangement=Arrangement(ends_at=parse_time("", shown["ending_at"])) if shown["ending_at"] else None,
    )


def _read_subscription(provider: LagoProvider, call: RecordedCall) -> object:
    """What is there is what is wanted, so one read is all."""
    shown = _object(call.response, "subscription")
    known = LastKnown(customer_id=shown["lago_customer_id"], confirmed=True)
    return _ensure(provider, shown["plan_code"], shown, known)


def _period_end(provider: LagoProvider, call: RecordedCall) -> object:
    shown = _object(call.response, "subscription")
    spec = SubscriptionSpec(org_id=call.key, customer_id="", plan_code=shown.get("plan_code", "none"))
    query = PlanChangeQuery(spec=spec, subscription_id=None, list_price=0, currency="USD")
    return provider.usage_and_preview.quote(query).next_at is not None


def _expected_period_end(shown: dict[str, Any]) -> object:
    """A plan with free days that are not over has no known next charge."""
    has_free_days = shown.get("plan", {}).get("trial_period") and shown["trial_ended_at"] is None
    return shown.get("current_billing_period_ending_at") is not None and not has_free_days


def _listed_subscriptions(provider: LagoProvider, _call: RecordedCall) -> object:
    page = provider.reader.subscriptions(None)
    rows = [(each.id, each.org_id, each.plan_code, each.next_plan_code, each.started) for each in page.rows]
    return rows, page.next_cursor is not None


def _expected_subscriptions(shown: dict[str, Any]) -> object:
    rows = [
        (each["lago_id"], each["external_id"], each["plan_code"], each["next_plan_code"], each["status"] == "active")
        for each in shown["subscriptions"]
        if each["status"] == "active" or each["previous_plan_code"] is None
    ]
    return rows, shown["meta"]["next_page"] is not None


def _end(provider: LagoProvider, call: RecordedCall) -> object:
    """Returns only if the answer says that it ended, or that there is none."""
    provider.end_subscription(LastKnown(), call.key, InMemoryAttempt())
    return None


def _usage(provider: LagoProvider, call: RecordedCall) -> object:
    usage = provider.usage_and_preview.usage(call.key)
    return usage and (usage.amount, usage.currency, [(each.code, each.units, each.amount) for each in usage.metrics])


def _expected_usage(shown: dict[str, Any]) -> object:
    if not shown:
        return None
    charges = [
        (each["billable_metric"]["code"], each["units"], each["amount_cents"]) for each in shown["charges_usage"]
    ]
    return shown["amount_cents"], shown["currency"], charges


def _read_payment(provider: LagoProvider, call: RecordedCall) -> object:
    return provider.reader.read_payment(call.key, ObservedState(), is_charging=True)


def _expected_unpaid(shown: dict[str, Any]) -> object:
    rows = shown["invoices"]
    return ObservedPayment(
        failed=any(each["payment_status"] == "failed" for each in rows),
        overdue=any(each["payment_overdue"] and each["payment_status"] == "pending" for each in rows),
    )


def _expected_disputed(shown: dict[str, Any]) -> object:
    lost_at = [each["payment_dispute_lost_at"] for each in shown["invoices"]]
    return ObservedPayment(dispute_lost_at=max((parse_time("", each) for each in lost_at if each), default=None))


def _nothing(_shown: dict[str, Any]) -> object:
    return None


NO_SUBSCRIPTION_CODE = frozenset({"subscription_not_found"})
UNPAID_INVOICES = RecordedReader(_read_payment, _expected_unpaid, "", after=(NO_INVOICES,))
DISPUTED_INVOICES = RecordedReader(_read_payment, _expected_disputed, "", before=(NO_INVOICES,))
QUOTE = RecordedReader(_period_end, _expected_period_end, "subscription", NO_SUBSCRIPTION_CODE)
READ_BEFORE_WRITE = RecordedReader(_read_subscription, _expected_subscription, "subscription")
END_OF_PENDING = RecordedReader(
    _end,
    _nothing,
    "subscription",
    NO_SUBSCRIPTION_CODE,
    before=(NO_SUBSCRIPTION,),
    after=(NO_SUBSCRIPTION, NO_SUBSCRIPTION),
)
READERS = {
    "GET organizations": RecordedReader(_account, lambda shown: shown["lago_id"], "organization"),
    "GET plans/{id}": RecordedReader(
        _price, lambda shown: _expected_price(shown) if shown else None, "plan", frozenset({"plan_not_found"})
    ),
    "POST plans": RecordedReader(_created_price, _expected_order, "plan", after=(NO_PLAN,)),
    "POST customers": RecordedReader(_written_customer, _expected_customer, "customer"),
    "GET customers/{id}": RecordedReader(
        _observed_customer,
        _expected_observed_customer,
        "customer",
        frozenset({"customer_not_found"}),
        after=(NO_SUBSCRIPTIONS, NO_SUBSCRIPTION),
    ),
    "GET customers": RecordedReader(_listed_customers, _expected_customers, ""),
    "POST subscriptions": RecordedReader(_written_subscription, _expected_subscription, "subscription"),
    "GET subscriptions": RecordedReader(_listed_subscriptions, _expected_subscriptions, ""),
    "DELETE subscriptions/{id}": RecordedReader(
        _end, _nothing, "subscription", NO_SUBSCRIPTION_CODE, after=(NO_SUBSCRIPTION,) * 3
    ),
    "GET customers/{id}/current_usage": RecordedReader(
        _usage, _expected_usage, "customer_usage", frozenset({"resource_not_found", "no_active_subscription"})
    ),
}


def _readers(call: RecordedCall) -> list[RecordedReader]:
    if call.operation == "GET subscriptions/{id}":
        is_active = _object(call.response, "subscription").get("status") == "active"
        return [QUOTE, READ_BEFORE_WRITE] if is_active else [QUOTE]
    if call.operation == "DELETE subscriptions/{id}" and "status=pending" in call.query:
        return [END_OF_PENDING]
    if call.operation == "GET invoices":
        return [UNPAID_INVOICES, DISPUTED_INVOICES]
    return [READERS[call.operation]]


def _object(document: object, root: str) -> dict[str, Any]:
    found = document.get(root) if root and isinstance(document, dict) else document
    return found if isinstance(found, dict) else {}


def _is_foreign(shown: dict[str, Any]) -> bool:
    """Whether it has not started, or is not under the customer's own id: both are never what we ordered."""
    return bool(shown) and (shown["status"] != "active" or shown["external_id"] != shown["external_customer_id"])


def _expected_error(call: RecordedCall, reader: RecordedReader) -> type[ProviderError] | None:
    """As lago.md 1.1 and the failure table have it: our settings are wrong, or the data of one organization."""
    assert call.status is not None
    if call.operation == "POST subscriptions" and _is_foreign(_object(call.response, "subscription")):
        return RejectedError
    if call.status < 400 or call.code in reader.absent:
        return None
    is_about_settings = call.status in {401, 403} or "payment_provider_not_found" in json.dumps(call.response)
    return MisconfiguredError if is_about_settings else RejectedError


# --- the tests


@pytest.mark.sends_wrong_requests
@pytest.mark.parametrize("call", OURS, ids=lambda call: f"{call.place} {call.operation}")
def test_recorded_answer_is_read_by_our_reader(lago: ScriptedLago, provider: LagoProvider, call: RecordedCall) -> None:
    assert call.status is not None
    for reader in _readers(call):
        lago.replies.clear()
        lago.respond_with(*reader.before, Reply(call.status, call.response_bytes), *reader.after)
        error = _expected_error(call, reader)
        if error is not None:
            with pytest.raises(error):
                reader.read(provider, call)
        else:
            shown = _object(call.response, reader.root) if call.status < 400 else {}
            assert reader.read(provider, call) == reader.expected(shown)
        assert reader.after or not lago.replies


def test_usage_whose_presentation_has_a_null_is_read(lago: ScriptedLago, provider: LagoProvider) -> None:
    """Recorded usage has no presentation keys, so one is put in, as Lago's serializer writes it (lago.md 1.3, B5)."""
    call = next(call for call in OURS if call.code is None and '"charges_usage": [{' in json.dumps(call.response))
    document = json.loads(call.response_bytes)
    breakdown = {"presentation_by": {"region": None}, "units": "1.0"}
    document["customer_usage"]["charges_usage"][0]["presentation_breakdowns"] = [breakdown]
    lago.replies.clear()
    lago.respond_with(Reply(200, document))
    assert _usage(provider, call) == _expected_usage(document["customer_usage"])


def test_only_what_we_never_send_has_no_reader() -> None:
    operations = {call.operation for call in ANSWERED}
    assert operations - {*READERS, "GET subscriptions/{id}", "GET invoices"} == NOT_OURS.keys()


def _parser(webhook: RecordedWebhook) -> LagoWebhookParser:
    if webhook.headers["x-lago-signature-algorithm"] == "jwt":
        return LagoWebhookParser(JwtCheck(keys()["jwt_public_key_as_lago_gives_it"]))
    return LagoWebhookParser(HmacCheck(keys()["hmac_key"]))


@pytest.mark.parametrize("number", range(len(webhooks())))
def test_recorded_webhook_is_verified_over_its_bytes_and_read(number: int) -> None:
    webhook = webhooks()[number]
    headers = webhook.headers
    parsed = _parser(webhook).parse(webhook.raw, headers["x-lago-signature"], headers["x-lago-unique-key"])
    payload = webhook.payload
    assert (parsed.id, parsed.type) == (headers["x-lago-unique-key"], payload["webhook_type"])
    assert parsed.account_id == payload["organization_id"]
    assert parsed.effect == LAGO_WEBHOOK_EFFECTS.get(payload["webhook_type"])
    if parsed.effect is not None:
        ids = re.findall(r'"(?:external_id|external_customer_id)":"(org_[^"]+)"', webhook.raw.decode())
        assert parsed.org_id == (ids[0] if ids else None)
        assert parsed.customer_id is not None
        assert f'"{parsed.customer_id}"' in webhook.raw.decode()
        assert parsed.object_id is not None or parsed.type.startswith("customer.")


def test_both_algorithms_are_recorded() -> None:
    assert {webhook.headers["x-lago-signature-algorithm"] for webhook in webhooks()} == {"jwt", "hmac"}
