"""The check allows the requests of a billing sync, and reports those that Stripe would reject or misread."""

import pytest

from tests.contract import available, violations, where

pytestmark = pytest.mark.skipif(not available(), reason=where())

CUSTOMERS = "/v1/customers"
CUSTOMER = "/v1/customers/cus_1"
SUBSCRIPTIONS = "/v1/subscriptions"
SUBSCRIPTION = "/v1/subscriptions/sub_1"
ONE_ITEM = "customer=cus_1&items[0][price]=price_1"
FORM = "application/x-www-form-urlencoded"

ALLOWED = [
    ("POST", CUSTOMERS, "name=Acme+GmbH&email=ap%40acme.test&metadata[org_id]=org_1&metadata[7]=x"),
    ("POST", CUSTOMERS, ""),
    (
        "POST",
        CUSTOMERS,
        "address[city]=Berlin&tax_id_data[0][type]=eu_vat&tax_id_data[0][value]=DE1",
    ),
    ("POST", CUSTOMERS, "expand[0]=tax_ids&preferred_locales[0]=de&preferred_locales[1]=en"),
    ("POST", CUSTOMERS, "expand[]=tax_ids&expand[]=subscriptions"),
    ("POST", CUSTOMER, "name=&email=new%40acme.test&metadata[org_id]="),
    ("POST", CUSTOMER, "metadata="),
    ("POST", CUSTOMER, "metadata%5Border%5D=1"),
    ("GET", CUSTOMER, ""),
    ("GET", CUSTOMER, "expand[0]=subscriptions"),
    ("GET", CUSTOMERS, "created[gte]=1795417200&created[lte]=1795420800&limit=100"),
    ("GET", CUSTOMERS, "created=1795417200&email=ap%40acme.test&starting_after=cus_9"),
    ("GET", "/v1/customers/search", "query=metadata%5B%27org_id%27%5D%3A%27org_1%27&limit=10"),
    ("DELETE", CUSTOMER, ""),
    ("GET", "/v1/prices", "lookup_keys[0]=team_m&lookup_keys[1]=pro_m&active=true&expand[0]=data.product"),
    ("GET", "/v1/prices", "recurring[interval]=month&currency=eur&type=recurring"),
    ("POST", "/v1/prices", "product=prod_1&currency=eur&unit_amount_decimal=12.50&recurring[interval]=month"),
    (
        "POST",
        SUBSCRIPTIONS,
        f"{ONE_ITEM}&items[0][quantity]=3&collection_method=send_invoice&days_until_due=30&metadata[org_id]=org_1&billing_mode[type]=flexible",
    ),
    ("POST", SUBSCRIPTIONS, f"{ONE_ITEM}&payment_behavior=default_incomplete&trial_end=now"),
    ("POST", SUBSCRIPTIONS, f"{ONE_ITEM}&items[1][price]=q&billing_cycle_anchor=1795417200"),
    (
        "POST",
        SUBSCRIPTIONS,
        f"{ONE_ITEM}&trial_settings[end_behavior][billing_cycle_anchor]=now",
    ),
    (
        "POST",
        SUBSCRIPTION,
        "items[0][id]=si_1&items[0][price]=p&items[0][quantity]=3",
    ),
    ("POST", SUBSCRIPTION, "cancel_at_period_end=true&cancellation_details[comment]=left"),
    ("POST", SUBSCRIPTION, "billing_cycle_anchor[type]=now"),
    ("POST", SUBSCRIPTION, "pause_collection="),
    ("POST", "/v1/subscriptions/sub_1/pause", "type=subscription&bill_for[unused_time_from][type]=now"),
    ("POST", "/v1/subscriptions/sub_1/resume", "billing_cycle_anchor[type]=unchanged"),
    ("DELETE", SUBSCRIPTION, "invoice_now=true&prorate=false&cancellation_details[feedback]=unused"),
    ("GET", SUBSCRIPTIONS, "customer=cus_1&status=all&limit=100"),
    ("GET", SUBSCRIPTION, "expand[0]=items.data.price"),
    ("GET", "/v1/events", "type=customer.created&created[gte]=1795417200&delivery_success=false"),
    ("GET", "/v1/events", "types[0]=customer.updated&types[1]=invoice.paid"),
    ("GET", "/v1/account", ""),
    ("POST", "/v1/invoices/create_preview", "subscription=sub_1&subscription_details[billing_cycle_anchor][type]=now"),
    ("GET", "/v1/invoices", "customer=cus_1&subscription=sub_1&status=open&limit=100"),
    ("POST", "/v1/invoices/in_1/finalize", "auto_advance=false"),
    ("POST", "/v1/invoices/in_1/pay", "paid_out_of_band=true"),
    ("POST", "/v1/invoices/in_1/void", ""),
    ("POST", "/v1/credit_notes", "invoice=in_1&amount=100&credit_amount=100&metadata[org_id]=org_1"),
    ("GET", "/v1/credit_notes/preview", "invoice=in_1&lines[0][type]=custom_line_item&lines[0][quantity]=1"),
    ("GET", "/v1/customers/cus_1/balance_transactions", "invoice=in_1&limit=100"),
    ("POST", "/v1/webhook_endpoints", "url=http%3A%2F%2F127.0.0.1%3A1%2Fhook&enabled_events[0]=customer.updated"),
]

REFUSED = [
    ("POST", CUSTOMERS, "naem=Acme", "'naem' is not in the document, but 'name' is"),
    ("POST", CUSTOMERS, "id=cus_own", "'id' is not in the document"),
    ("POST", CUSTOMERS, "address[town]=Berlin", "address: 'town' is not in the document"),
    ("POST", CUSTOMERS, "metadata[org][id]=1", "metadata.org"),
    ("POST", CUSTOMERS, f"metadata[{'k' * 41}]=1", "is too long"),
    ("POST", CUSTOMERS, f"metadata[k]={'v' * 501}", "is too long"),
    ("POST", CUSTOMERS, "&".join(f"metadata[k{n}]=v" for n in range(51)), "metadata"),
    ("POST", CUSTOMERS, f"name={'n' * 257}", "name: "),
    ("POST", CUSTOMERS, "tax_exempt=yes", "'yes' is not one of"),
    ("POST", CUSTOMERS, "tax_id_data[type]=eu_vat", "tax_id_data"),
    ("POST", CUSTOMERS, "tax_id_data[][type]=eu_vat", "'tax_id_data[][type]' needs an index"),
    ("POST", CUSTOMERS, "name=a&name=b", "'name' is given twice"),
    ("POST", CUSTOMERS, "metadata=&metadata[a]=b", "is inside a field that already has a value"),
    ("POST", CUSTOMERS, "metadata[a=b", "unbalanced brackets"),
    ("POST", CUSTOMERS, "name=%FF", "codec can't decode"),
    ("PUT", CUSTOMER, "name=a", "no such operation"),
    ("POST", "/v1/customer", "name=a", "no such operation"),
    ("POST", "//v1/customers", "name=a", "no such operation"),
    ("POST", "/v1/customers/", "name=a", "no such operation"),
    ("GET", CUSTOMERS, "created[after]=1", "created: 'after' is not in the document"),
    ("GET", CUSTOMERS, "created[gte]=2026-11-23", "created.gte: '2026-11-23' is not of type 'integer'"),
    ("GET", CUSTOMERS, "limit=101", "limit: 101 is greater than the maximum of 100"),
    ("GET", CUSTOMERS, "metadata[org_id]=org_1", "'metadata' is not in the document"),
    ("GET", "/v1/customers/search", "limit=10", "'query' is a required property"),
    ("DELETE", CUSTOMER, "force=true", "'force' is not in the document"),
    ("GET", "/v1/prices", "lookup_keys=team_m", "lookup_keys: 'team_m' is not of type 'array'"),
    ("GET", "/v1/prices", "&".join(f"lookup_keys[{n}]=k{n}" for n in range(11)), "lookup_keys: "),
    ("GET", "/v1/prices", "active=True", "active: 'True' is not of type 'boolean'"),
    ("GET", "/v1/prices", "currency=EUR", "currency: 'EUR' is not a 'currency'"),
    ("POST", SUBSCRIPTIONS, "items[0][price]=p", "'customer' is a required property"),
    ("POST", SUBSCRIPTIONS, "customer=&items[0][price]=p", "customer: '' should be non-empty"),
    ("POST", SUBSCRIPTIONS, "customer=cus_1", "'items' is a required property"),
    (
        "POST",
        SUBSCRIPTIONS,
        f"{ONE_ITEM}&items[0][qty]=3",
        "items[0]: 'qty' is not in",
    ),
    ("POST", SUBSCRIPTIONS, f"{ONE_ITEM}&items[0][quantity]=1.5", "items[0].quantity: "),
    ("POST", SUBSCRIPTIONS, f"{ONE_ITEM}&collection_method=send_invoice", "'days_until_due'"),
    (
        "POST",
        SUBSCRIPTIONS,
        f"{ONE_ITEM}&proration_behavior=alwyas_invoice",
        "proration_behavior: ",
    ),
    ("POST", SUBSCRIPTIONS, f"{ONE_ITEM}&coupon=half", "'coupon' is not in the document"),
    (
        "POST",
        SUBSCRIPTIONS,
        f"{ONE_ITEM}&billing_cycle_anchor[type]=now",
        "billing_cycle_anchor: ",
    ),
    (
        "POST",
        SUBSCRIPTION,
        "billing_cycle_anchor=now",
        "billing_cycle_anchor: 'now' is not of type 'object'",
    ),
    ("POST", SUBSCRIPTION, "billing_cycle_anchor[type]=later", "billing_cycle_anchor.type: 'later'"),
    ("POST", SUBSCRIPTION, "customer=cus_2", "'customer' is not in the document"),
    ("DELETE", SUBSCRIPTION, "at_period_end=true", "'at_period_end' is not in the document"),
    ("GET", SUBSCRIPTIONS, "status=cancelled", "status: 'cancelled' is not one of"),
    ("GET", "/v1/events", "created_gte=1", "'created_gte' is not in the document, but 'created' is"),
    ("GET", "/v1/invoices/upcoming", "customer=cus_1", "'customer' is not in the document"),
    ("GET", "/v1/invoices", "status=overdue", "status: 'overdue' is not one of"),
    ("POST", "/v1/invoices/in_1/pay", "paid_out_of_band=yes", "paid_out_of_band: 'yes' is not of type 'boolean'"),
    ("POST", "/v1/credit_notes", "invoice=in_1&credit=100", "'credit' is not in the document"),
    ("POST", "/v1/account", "email=a%40b.test", "no such operation"),
]


def violated(method: str, path: str, form: str) -> list[str]:
    if method == "POST":
        return violations("stripe", method, path, "", form.encode(), FORM)
    return violations("stripe", method, path, form, b"", "")


@pytest.mark.parametrize(("method", "path", "form"), ALLOWED)
def test_a_request_stripe_takes_is_allowed(method: str, path: str, form: str) -> None:
    assert violated(method, path, form) == []


@pytest.mark.parametrize(("method", "path", "form", "reason"), REFUSED)
def test_a_request_stripe_refuses_or_misreads_is_named(method: str, path: str, form: str, reason: str) -> None:
    assert reason in "\n".join(violated(method, path, form))


def test_parameters_on_the_wrong_side_of_a_request_are_named() -> None:
    query_of_a_post = violations("stripe", "POST", CUSTOMERS, "name=Acme", b"", "")
    body_of_a_delete = violations("stripe", "DELETE", SUBSCRIPTION, "", b"prorate=false", FORM)
    assert "belong in the body" in query_of_a_post[0]
    assert "belong in the query string" in body_of_a_delete[0]


def test_json_for_stripe_is_named_by_its_content_type() -> None:
    found = violations("stripe", "POST", CUSTOMERS, "", b'{"name": "Acme"}', "application/json")
    assert found == [f"stripe POST /v1/customers: the body must be {FORM}, not 'application/json'"]


def test_a_charset_after_the_content_type_is_fine() -> None:
    assert violations("stripe", "POST", CUSTOMERS, "", b"name=Acme", f"{FORM}; charset=utf-8") == []


def test_every_mistake_of_a_request_is_named_in_one_go() -> None:
    found = violated("POST", SUBSCRIPTION, "items[0][prise]=p&cancel_at_period_end=yes&seats=3")
    assert len(found) == 3
