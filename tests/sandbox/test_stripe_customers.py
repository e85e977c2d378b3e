"""Stripe's customers as stripe.md 4 has them."""

from urllib.parse import urlencode

import httpx
import pytest
import stripe

from sandbox.client import SandboxClient


def test_a_customer_comes_back_as_it_was_made(billing: stripe.StripeClient) -> None:
    made = billing.v1.customers.create({"name": "Acme", "email": "a@acme.test", "metadata": {"org_id": "org_1"}})
    found = billing.v1.customers.retrieve(made.id)
    assert found.to_dict() == made.to_dict()
    assert made.id.startswith("cus_")
    assert made.livemode is False
    assert made.metadata is not None
    assert made.metadata["org_id"] == "org_1"


def test_an_update_keeps_what_it_does_not_name_and_an_empty_text_unsets(billing: stripe.StripeClient) -> None:
    made = billing.v1.customers.create({"name": "Acme", "email": "a@acme.test", "metadata": {"a": "1", "b": "2"}})
    changed = billing.v1.customers.update(made.id, {"email": "", "metadata": {"a": "", "c": "3"}})
    assert (changed.name, changed.email) == ("Acme", None)
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"b": "2", "c": "3"}
    cleared = billing.v1.customers.update(made.id, {"metadata": ""})
    assert cleared.metadata is not None
    assert cleared.metadata.to_dict() == {}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"nmae": "Acme"}, "parameter_unknown", "nmae"),
        ({"email": "acme.test"}, "email_invalid", "email"),
        ({"balance": "much"}, "parameter_invalid_integer", "balance"),
        ({"name": "x" * 257}, None, "name"),
        ({"metadata[key_longer_than_the_forty_characters_allowed]": "1"}, None, "metadata"),
        ({f"metadata[k{number}]": "1" for number in range(51)}, None, "metadata"),
        ({"tax_id_data[0][type]": "eu_vat"}, "sandbox_unsupported", "tax_id_data"),
    ],
)
def test_a_wrong_parameter_is_400_and_named(raw: httpx.Client, fields: dict[str, str], code: str, param: str) -> None:
    answer = raw.post("/v1/customers", data=fields)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["type"] == "invalid_request_error"
    assert (error.get("code"), error["param"]) == (code, param)
    assert answer.headers["Request-Id"].startswith("req_")


def test_a_deleted_customer_is_read_as_deleted_and_changed_no_more(billing: stripe.StripeClient) -> None:
    made = billing.v1.customers.create({"name": "Acme"})
    assert billing.v1.customers.delete(made.id).deleted is True
    assert billing.v1.customers.retrieve(made.id).to_dict() == {"id": made.id, "object": "customer", "deleted": True}
    with pytest.raises(stripe.InvalidRequestError, match="No such customer") as update:
        billing.v1.customers.update(made.id, {"name": "Other"})
    with pytest.raises(stripe.InvalidRequestError) as again:
        billing.v1.customers.delete(made.id)
    assert [(error.value.http_status, error.value.code) for error in (update, again)] == [(404, "resource_missing")] * 2
    assert billing.v1.customers.list().data == []


def test_an_unknown_customer_is_404(billing: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="No such customer: 'cus_nobody'") as error:
        billing.v1.customers.retrieve("cus_nobody")
    assert (error.value.http_status, error.value.code, error.value.param) == (404, "resource_missing", "id")


def test_lists_see_every_write_at_once_newest_first_and_in_pages(billing: stripe.StripeClient) -> None:
    ids = [billing.v1.customers.create({"name": str(number)}).id for number in range(5)]
    first = billing.v1.customers.list({"limit": 2})
    second = billing.v1.customers.list({"limit": 2, "starting_after": first.data[-1].id})
    assert [each.id for each in first.data + second.data] == ids[:0:-1]
    assert first.has_more
    assert [each.id for each in billing.v1.customers.list({"limit": 2}).auto_paging_iter()] == ids[::-1]
    back = billing.v1.customers.list({"limit": 2, "ending_before": second.data[0].id})
    assert [each.id for each in back.data] == [each.id for each in first.data]


def test_lists_filter_by_email_exactly_and_by_creation_time(
    billing: stripe.StripeClient, sandbox: SandboxClient
) -> None:
    old = billing.v1.customers.create({"email": "a@acme.test"})
    sandbox.advance(3600)
    new = billing.v1.customers.create({"email": "A@acme.test"})
    assert [each.id for each in billing.v1.customers.list({"email": "a@acme.test"}).data] == [old.id]
    since = billing.v1.customers.list({"created": {"gte": old.created + 1}})
    assert [each.id for each in since.data] == [new.id]
    until = billing.v1.customers.list({"created": {"gte": old.created, "lte": old.created}})
    assert [each.id for each in until.data] == [old.id]


def test_search_lags_behind_by_the_sandboxs_clock(billing: stripe.StripeClient, sandbox: SandboxClient) -> None:
    made = billing.v1.customers.create({"name": "Acme", "metadata": {"org_id": "42"}})
    query = {"query": "metadata['org_id']:'42'"}
    assert billing.v1.customers.search({"query": query["query"]}).data == []
    sandbox.advance(61)
    assert [each.id for each in billing.v1.customers.search({"query": query["query"]}).data] == [made.id]
    billing.v1.customers.update(made.id, {"metadata": {"org_id": "43"}})
    assert [each.id for each in billing.v1.customers.search({"query": query["query"]}).data] == [made.id]
    sandbox.settings(search_lag_seconds=0)
    assert billing.v1.customers.search({"query": query["query"]}).data == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("name~'cme'", True),
        ("email:'A@ACME.TEST' AND name:'acme'", True),
        ("-name:'acme'", False),
        ("phone:null", True),
        ("created>1", True),
        ("name:'other' OR name:'acme'", True),
        ("name:'O\\'Neil'", False),
    ],
)
def test_search_understands_its_language(
    billing: stripe.StripeClient, sandbox: SandboxClient, query: str, *, found: bool
) -> None:
    sandbox.settings(search_lag_seconds=0)
    billing.v1.customers.create({"name": "Acme", "email": "a@acme.test"})
    assert bool(billing.v1.customers.search({"query": query}).data) is found


def test_a_search_it_cannot_read_is_400(raw: httpx.Client) -> None:
    answer = raw.get("/v1/customers/search?" + urlencode({"query": "org_id=42"}))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "query")
    assert raw.get("/v1/customers/search").json()["error"]["code"] == "parameter_missing"


def test_events_tie_a_customer_to_the_key_that_made_it(billing: stripe.StripeClient, sandbox: SandboxClient) -> None:
    made = billing.v1.customers.create({"name": "Acme"}, {"idempotency_key": "create:org_1:1"})
    billing.v1.customers.update(made.id, {"name": "Acme GmbH"})
    events = billing.v1.events.list({"type": "customer.created", "created": {"gte": made.created}}).data
    assert [event.request and event.request.idempotency_key for event in events] == ["create:org_1:1"]
    assert events[0].data.object["id"] == made.id
    both = billing.v1.events.list({"types": ["customer.created", "customer.updated"]}).data
    assert [event.type for event in both] == ["customer.updated", "customer.created"]
    assert both[0].data["previous_attributes"]["name"] == "Acme"
    assert billing.v1.events.list({"created": {"lt": made.created}}).data == []
    sandbox.advance(31 * 24 * 3600)
    assert billing.v1.events.list().data == []


def test_the_account_and_the_key_are_known(billing: stripe.StripeClient, sandbox: SandboxClient) -> None:
    assert billing.v1.accounts.retrieve_current().id == "acct_sandbox"
    sandbox.settings(stripe_account="acct_other", revoked_keys=["sk_test_old"])
    assert billing.v1.accounts.retrieve_current().id == "acct_other"
    for key in ("sk_bad", "sk_test_old"):
        with pytest.raises(stripe.AuthenticationError, match="Invalid API Key"):
            billing.v1.customers.list({}, {"api_key": key})


def test_an_unknown_route_and_a_missing_key_are_answered_like_stripe(raw: httpx.Client) -> None:
    unknown = raw.get("/v1/nothing")
    assert unknown.status_code == 404
    assert "Unrecognized request URL (GET: /v1/nothing)" in unknown.json()["error"]["message"]
    assert raw.get("/v1/customers", headers={"Authorization": ""}).status_code == 401


def test_a_customer_shows_its_live_subscriptions_only_to_who_asks(
    billing: stripe.StripeClient, sandbox: SandboxClient
) -> None:
    made = billing.v1.customers.create({"name": "Acme", "email": "a@acme.test"})
    price = sandbox.preload_stripe_prices([{**MONTHLY, "lookup_key": "old"}])[0]
    ended, live = (sandbox.preload_stripe_subscription(made.id, price["id"])["id"] for _ in range(2))
    billing.v1.subscriptions.cancel(ended)
    assert "subscriptions" not in billing.v1.customers.retrieve(made.id).to_dict()
    shown = billing.v1.customers.retrieve(made.id, {"expand": ["subscriptions"]}).to_dict()
    assert [subscription["id"] for subscription in shown["subscriptions"]["data"]] == [live]
    assert shown["subscriptions"]["has_more"] is False


MONTHLY = {
    "currency": "usd",
    "unit_amount": 4900,
    "recurring": {"interval": "month"},
    "product_data": {"name": "Old"},
}
