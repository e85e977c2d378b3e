"""Stripe's subscriptions (stripe.md 6), flexible billing mode, periods on the items.

Behavior that makes careless callers bill twice is simulated too. An update without the item's id adds an item, a price
change without a quantity resets it to 1, a canceled subscription accepts metadata only, and canceling twice is 404.
In a trial the period ends with it and nothing is charged; a trial cannot be changed later. Usage is not simulated: a
metered price costs nothing. The invoices are in ``subscription_invoices``.
"""

from collections.abc import Iterator

from sandbox.http import JsonDocument
from sandbox.months import period_containing, utc_datetime
from sandbox.stripe_api import forms
from sandbox.stripe_api.discounts import DISCOUNT_FIELDS, StripeDiscountsApi
from sandbox.stripe_api.errors import StripeApiError, invalid_param, missing_param, not_found
from sandbox.stripe_api.invoices import StripeInvoicesApi
from sandbox.stripe_api.prorations import billed_amount
from sandbox.stripe_api.serializers import API_VERSION, NO_REQUEST, StripeTables, new_id
from sandbox.stripe_api.subscription_invoices import StripeSubscriptionInvoices

MAX_SUBSCRIPTION_ITEMS = 20
MAX_SUBSCRIPTIONS = 500
MAX_TRIAL_DAYS = 730
SECONDS_OF_A_TRIAL_DAY = 24 * 3600
INCOMPLETE_EXPIRES_SECONDS = 23 * 3600
ENDED_STATUSES = frozenset({"canceled", "incomplete_expired"})
STRIPE_SUBSCRIPTION_STATUSES = (
    "incomplete",
    "incomplete_expired",
    "trialing",
    "active",
    "past_due",
    "canceled",
    "unpaid",
    "paused",
)
DAYS_BY_STRIPE_INTERVAL = {"day": 1, "week": 7}
MONTHS_BY_STRIPE_INTERVAL = {"month": 1, "year": 12}
OBJECT_ANCHOR_SINCE_VERSION = "2026-09-30"

PRORATION_BEHAVIOR_FIELD = forms.choice(("create_prorations", "always_invoice", "none"))
CANCELLATION_DETAILS_FIELDS = forms.record(
    {
        "comment": forms.text(),
        "feedback": forms.choice(
            (
                "customer_service",
                "low_quality",
                "missing_features",
                "other",
                "switched_service",
                "too_complex",
                "too_expensive",
                "unused",
            ),
            clearable=True,
        ),
    }
)
SUBSCRIPTION_ITEM_FIELDS = forms.record(
    {
        "price": forms.text(clearable=False),
        "quantity": forms.integer(0),
        "metadata": forms.metadata,
        **dict.fromkeys(
            ("billing_thresholds", "discounts", "plan", "price_data", "tax_rates", "trial"), forms.unsupported
        ),
    }
)
CHANGED_ITEM_FIELDS = forms.record(
    {
        **SUBSCRIPTION_ITEM_FIELDS.schema,
        "id": forms.text(clearable=False),
        "deleted": forms.boolean,
        "clear_usage": forms.unsupported,
    }
)
SUBSCRIPTION_COMMON_FIELDS: forms.FormSchema = {
    "automatic_tax": forms.record({"enabled": forms.boolean, "liability": forms.unsupported}, required=("enabled",)),
    "cancel_at": forms.integer(0, clearable=True),
    "cancel_at_period_end": forms.boolean,
    "collection_method": forms.choice(("charge_automatically", "send_invoice")),
    "days_until_due": forms.integer(0, clearable=True),
    "default_payment_method": forms.text(),
    "description": forms.text(500),
    "discounts": DISCOUNT_FIELDS,
    "metadata": forms.metadata,
    "off_session": forms.boolean,
    "payment_behavior": forms.choice(
        ("allow_incomplete", "default_incomplete", "error_if_incomplete", "pending_if_incomplete")
    ),
    "payment_settings": forms.record(
        {
            "save_default_payment_method": forms.choice(("off", "on_subscription")),
            "payment_method_types": forms.unsupported,
        }
    ),
    "proration_behavior": PRORATION_BEHAVIOR_FIELD,
    **dict.fromkeys(
        (
            "add_invoice_items",
            "application_fee_percent",
            "billing_schedules",
            "billing_thresholds",
            "default_source",
            "default_tax_rates",
            "invoice_settings",
            "on_behalf_of",
            "pending_invoice_item_interval",
            "transfer_data",
            "trial_end",
            "trial_from_plan",
            "trial_settings",
        ),
        forms.unsupported,
    ),
    **forms.EXPAND_FIELDS,
}


def _trial_end(param: str, value: forms.FormNode) -> int | None:
    """ "now" means no trial."""
    return None if value == "now" else forms.integer(0)(param, value)


SUBSCRIPTION_CREATE_FIELDS: forms.FormSchema = {
    **SUBSCRIPTION_COMMON_FIELDS,
    "billing_mode": forms.record({"type": forms.choice(("classic", "flexible")), "flexible": forms.unsupported}),
    "currency": forms.text(3, clearable=False),
    "customer": forms.text(clearable=False),
    "items": forms.array(SUBSCRIPTION_ITEM_FIELDS, MAX_SUBSCRIPTION_ITEMS),
    "trial_end": _trial_end,
    "trial_period_days": forms.integer(1, MAX_TRIAL_DAYS),
    **dict.fromkeys(
        (
            "backdate_start_date",
            "billing_cycle_anchor",
            "billing_cycle_anchor_config",
            "customer_account",
        ),
        forms.unsupported,
    ),
}


def _anchor(param: str, value: forms.FormNode) -> str | JsonDocument | None:
    """An object since endive, text before (stripe.md 6); which one is valid depends on Stripe-Version."""
    if isinstance(value, dict):
        return forms.record({"type": forms.choice(("now", "unchanged"))}, required=("type",))(param, value)
    return forms.choice(("now", "unchanged"))(param, value)


SUBSCRIPTION_UPDATE_FIELDS: forms.FormSchema = {
    **SUBSCRIPTION_COMMON_FIELDS,
    "billing_cycle_anchor": _anchor,
    "cancellation_details": CANCELLATION_DETAILS_FIELDS,
    "items": forms.array(CHANGED_ITEM_FIELDS, MAX_SUBSCRIPTION_ITEMS),
    "pause_collection": forms.record(
        {"behavior": forms.choice(("keep_as_draft", "mark_uncollectible", "void")), "resumes_at": forms.integer(0)},
        required=("behavior",),
    ),
    "proration_date": forms.integer(0),
}
SUBSCRIPTION_CANCEL_FIELDS: forms.FormSchema = {
    "cancellation_details": CANCELLATION_DETAILS_FIELDS,
    "invoice_now": forms.boolean,
    "prorate": forms.boolean,
    **forms.EXPAND_FIELDS,
}
SUBSCRIPTION_LIST_FIELDS: forms.FormSchema = {
    **forms.PAGINATION_FIELDS,
    "collection_method": SUBSCRIPTION_COMMON_FIELDS["collection_method"],
    "created": forms.time_range,
    "customer": forms.text(clearable=False),
    "price": forms.text(clearable=False),
    "status": forms.choice((*STRIPE_SUBSCRIPTION_STATUSES, "all", "ended")),
    **dict.fromkeys(
        ("automatic_tax", "current_period_end", "current_period_start", "customer_account", "test_clock"),
        forms.unsupported,
    ),
}


class StripeSubscriptionsApi:
    def __init__(self, tables: StripeTables, invoices: StripeInvoicesApi) -> None:
        self._tables = tables
        self._discounts = StripeDiscountsApi(tables)
        self.invoices = StripeSubscriptionInvoices(tables, invoices)
        invoices.on_paid = self._on_invoice_paid
        tables.subscriptions.schedule(_due_at, self._on_due)
        tables.documents[tables.subscriptions.name] = self.serialize

    def create(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, SUBSCRIPTION_CREATE_FIELDS, "customer", "items")
        if not sent["items"]:
            raise missing_param("items")
        _check_collection(sent.get("collection_method", "charge_automatically"), sent.get("days_until_due"))
        customer = self._tables.customers.get(sent["customer"])
        if customer is None or customer.get("deleted"):
            raise not_found("customer", sent["customer"], "customer", in_path=False)
        _check_email(sent, customer)
        self._check_count(customer["id"])
        now = self._tables.now()
        row = _new_row(new_id("sub_", 24), customer["id"], now, sent)
        row["number"] = len(self._tables.subscriptions)  # the order of creation, also within one second
        _begin_trial(row, sent, now)
        for number, item in enumerate(sent["items"]):
            self._add_item(row, item, f"items[{number}]")
        row["currency"] = self._checked_currency(row, customer)
        row["status"] = self._first_status(row, customer, sent)
        _set_cancel(row, sent, self._tables.now())
        row["discounts"] = self._discounts.of_subscription(row, sent.get("discounts", []))
        if customer["currency"] is None:
            self._tables.customers.put(customer["id"], {**customer, "currency": row["currency"]})
        self._tables.subscriptions.put(row["id"], row)
        self.invoices.at_start(row)
        self._save(row, "customer.subscription.created")
        self._charge(row, 0 if row["status"] == "trialing" else self._period_amount(row), "subscription_create")
        return self._tables.expanded(self.serialize(row), sent)

    def retrieve(self, subscription_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, forms.EXPAND_FIELDS)
        return self._tables.expanded(self.serialize(self.find_existing(subscription_id)), sent)

    def update(self, subscription_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, SUBSCRIPTION_UPDATE_FIELDS)
        old = self.find_existing(subscription_id)
        if old["status"] in ENDED_STATUSES and set(sent) - {"metadata", "cancellation_details", "expand"}:
            raise StripeApiError(
                400,
                "A canceled subscription can only update its cancellation_details and metadata.",
                code="invalid_canceled_subscription_fields",
                stored=True,
            )
        self._check_anchor(sent)
        _check_email(sent, self._tables.customers.get(old["customer"]) or {})
        row = self.with_changed_items(old, sent.get("items", []))
        _refuse_end_of_scheduled(old, sent)
        _set_plain(row, sent)
        if "discounts" in sent:
            row["discounts"] = self._discounts.of_subscription(row, sent["discounts"])
        _check_collection(row["collection_method"], row["days_until_due"])
        if _restarts_now(sent):
            self._restart_period(row)
        _set_cancel(row, sent, self._tables.now())
        self._bill_change(old, row, sent)
        before, after = self._period_amount(old), self._period_amount(row)
        self._save(row, "customer.subscription.updated")
        if before != after or _price_ids(old) != _price_ids(row):
            without_proration = sent.get("proration_behavior") == "none" or row["status"] == "trialing"
            self._charge(row, 0 if without_proration else after - before, "plan_change")
        return self._tables.expanded(self.serialize(row), sent)

    def patch(self, subscription_id: str, sent: JsonDocument) -> JsonDocument:
        """An update by hand, which may also pause it (``status``) or attach the id of a ``schedule``; '' takes it off.

        What the phases of a schedule would change is not simulated.
        """
        by_hand: JsonDocument = {name: sent[name] for name in ("status", "schedule") if name in sent}
        if by_hand.get("status", "active") not in ("active", "paused"):
            raise invalid_param("status", "By hand a subscription can only become active or paused.")
        rest = {name: value for name, value in sent.items() if name not in by_hand}
        if by_hand:
            row = {**self.find_existing(subscription_id), **by_hand}
            row["schedule"] = row["schedule"] or None
            self._save(row, "customer.subscription.updated")
            if "status" in by_hand:
                event = "paused" if by_hand["status"] == "paused" else "resumed"
                self._tables.emit(f"customer.subscription.{event}", self.serialize(row))
            if not rest:
                return self.serialize(row)
        return self.update(subscription_id, rest)

    def cancel(self, subscription_id: str, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, SUBSCRIPTION_CANCEL_FIELDS)
        row = self.find_existing(subscription_id)
        if row["status"] in ENDED_STATUSES:
            raise not_found("subscription", subscription_id)
        row = {**row, "cancellation_details": _cancellation(row, sent, "cancellation_requested")}
        self.invoices.at_end(row, prorate=sent.get("prorate", False), invoice_now=sent.get("invoice_now", False))
        return self._tables.expanded(self.serialize(self._end(row)), sent)

    def list_subscriptions(self, form: JsonDocument) -> JsonDocument:
        sent = forms.validate(form, SUBSCRIPTION_LIST_FIELDS)
        if "customer" in sent:
            if self._tables.customers.get(sent["customer"]) is None:
                raise not_found("customer", sent["customer"], "customer", in_path=False)
            rows = sorted(
                self._tables.subscriptions.find_by("customer", sent["customer"]), key=lambda row: row["number"]
            )
        else:
            rows = list(self._tables.subscriptions)
        rows = [row for row in rows if _matches(row, sent)]
        page = self._tables.page(rows, sent, "/v1/subscriptions")
        page["data"] = [self.serialize(row) for row in page["data"]]
        return self._tables.expanded(page, sent)

    def of_customer(self, customer_id: str) -> JsonDocument:
        """The list in a customer whose ``subscriptions`` are expanded."""
        return {
            **self.list_subscriptions({"customer": customer_id}),
            "url": f"/v1/customers/{customer_id}/subscriptions",
        }

    def end_all(self, customer_id: str) -> None:
        for row in self._tables.subscriptions.find_by("customer", customer_id):
            if row["status"] not in ENDED_STATUSES:
                ended = dict(row)
                self.invoices.at_end(ended, prorate=False, invoice_now=False)
                self._end(ended)

    def serialize(self, row: JsonDocument) -> JsonDocument:
        """As Stripe returns it: the items as a list object, each with its whole price."""
        items = [self._serialize_item(item) for item in row["items"]]
        document = {name: value for name, value in row.items() if name != "number"}
        document["items"] = {
            "object": "list",
            "data": items,
            "has_more": False,
            "total_count": len(items),
            "url": f"/v1/subscription_items?subscription={row['id']}",
        }
        return document

    def _serialize_item(self, item: JsonDocument) -> JsonDocument:
        price = self._tables.price(item["price"])
        bills_usage = price["recurring"]["usage_type"] == "metered"
        omitted = ("billed", "quantity") if bills_usage else ("billed",)
        return {**{name: value for name, value in item.items() if name not in omitted}, "price": price}

    def find_existing(self, subscription_id: str) -> JsonDocument:
        if (row := self._tables.subscriptions.get(subscription_id)) is None:
            raise not_found("subscription", subscription_id)
        return row

    def with_changed_items(self, old: JsonDocument, items: list[JsonDocument]) -> JsonDocument:
        """A copy with changed items; nothing is saved."""
        row = {**old, "metadata": dict(old["metadata"]), "items": [dict(item) for item in old["items"]]}
        self._change_items(row, items)
        return row

    def restarts_period(self, old: JsonDocument, row: JsonDocument) -> bool:
        """Whether the change of items ends the current period and bills a new one at once."""
        if old["status"] == "trialing":
            return False
        prices = {item["id"]: self._tables.price(item["price"]) for item in old["items"]}
        return any(
            _restarts_period(prices[item["id"]], self._tables.price(item["price"]))
            for item in row["items"]
            if item["id"] in prices
        )

    def _bill_change(self, old: JsonDocument, row: JsonDocument, sent: JsonDocument) -> None:
        behavior = sent.get("proration_behavior", "create_prorations")
        moment = sent.get("proration_date") or self._tables.now()
        restarts = _restarts_now(sent) or self.restarts_period(old, row)
        self.invoices.at_change(old, row, behavior, moment, restarts=restarts)

    def _save(self, row: JsonDocument, event: str) -> None:
        self._tables.subscriptions.put(row["id"], row)
        self._tables.emit(event, self.serialize(row))

    def _check_count(self, customer_id: str) -> None:
        rows = self._tables.subscriptions.find_by("customer", customer_id)
        if sum(row["status"] not in ENDED_STATUSES for row in rows) >= MAX_SUBSCRIPTIONS:
            message = f"The customer {customer_id} has already reached the maximum {MAX_SUBSCRIPTIONS} subscriptions."
            raise StripeApiError(400, message, code="customer_max_subscriptions", stored=True)

    def _add_item(self, row: JsonDocument, item: JsonDocument, param: str) -> None:
        if "price" not in item:
            raise missing_param(f"{param}[price]")
        price = self._find_usable_price(item["price"], f"{param}[price]")
        if price["id"] in _price_ids(row):
            message = f"Cannot add multiple subscription items with the same plan: {price['id']}"
            raise StripeApiError(400, message, param="items", stored=True)
        if len(row["items"]) >= MAX_SUBSCRIPTION_ITEMS:
            raise invalid_param("items", f"A subscription may have at most {MAX_SUBSCRIPTION_ITEMS} items.")
        now = self._tables.now()
        row["items"].append(
            {
                "id": new_id("si_"),
                "object": "subscription_item",
                "billing_thresholds": None,
                "created": now,
                **_current_period(row, now, price),
                "billed": None,  # what was charged for it: see prorations.py
                "discounts": [],
                "metadata": forms.merge_metadata({}, item.get("metadata", {})),
                "price": price["id"],
                "quantity": item.get("quantity", 1),
                "subscription": row["id"],
                "tax_rates": [],
            }
        )

    def _find_usable_price(self, price_id: str, param: str) -> JsonDocument:
        price = self._tables.prices.get(price_id)
        if price is None:
            raise not_found("price", price_id, param, in_path=False)
        if not price["active"]:
            message = "The price specified is inactive. This field only accepts active prices."
            raise StripeApiError(400, message, param=param, stored=True)
        if price["type"] != "recurring":
            message = (
                "The price specified is set to `type=one_time` but this field only accepts prices with "
                "`type=recurring`."
            )
            raise StripeApiError(400, message, param=param, stored=True)
        return price

    def _change_items(self, row: JsonDocument, changes: list[JsonDocument]) -> None:
        for number, change in enumerate(changes):
            param = f"items[{number}]"
            if "id" not in change:
                self._add_item(row, change, param)
                continue
            item = next((item for item in row["items"] if item["id"] == change["id"]), None)
            if item is None:
                raise not_found("subscription_item", change["id"], f"{param}[id]", in_path=False)
            if change.get("deleted"):
                row["items"].remove(item)
                continue
            if "price" in change and change["price"] != item["price"]:
                self._change_price(row, item, self._find_usable_price(change["price"], f"{param}[price]"))
            if "quantity" in change:
                item["quantity"] = change["quantity"]
            if "metadata" in change:
                item["metadata"] = forms.merge_metadata(item["metadata"], change["metadata"])
        if changes and not row["items"]:
            raise invalid_param("items", "A subscription must have at least one active plan.")
        if changes:
            self._checked_currency(row, None)

    def _change_price(self, row: JsonDocument, item: JsonDocument, price: JsonDocument) -> None:
        if price["id"] in _price_ids(row):
            message = f"Cannot add multiple subscription items with the same plan: {price['id']}"
            raise StripeApiError(400, message, param="items", stored=True)
        old = self._tables.price(item["price"])
        item["price"] = price["id"]
        item["quantity"] = 1  # the documented default: a price change without a quantity resets it
        if row["status"] != "trialing" and _restarts_period(old, price):
            self._restart_period(row)

    def _restart_period(self, row: JsonDocument) -> None:
        """Restart the billing cycle now: for ``billing_cycle_anchor: now``, another interval, or from free to paid."""
        now = self._tables.now()
        row["billing_cycle_anchor"] = now
        for item in row["items"]:
            item.update(period_at(now, now, self._tables.price(item["price"])))

    def _check_anchor(self, sent: JsonDocument) -> None:
        anchor = sent.get("billing_cycle_anchor")
        if anchor is None:
            return
        version = self._tables.cause.version or API_VERSION
        if isinstance(anchor, dict) != (version[:10] >= OBJECT_ANCHOR_SINCE_VERSION):
            raise invalid_param("billing_cycle_anchor", "Invalid billing_cycle_anchor")

    def _checked_currency(self, row: JsonDocument, customer: JsonDocument | None) -> str:
        found = {str(self._tables.price(item["price"])["currency"]) for item in row["items"]}
        expected = customer["currency"] if customer is not None else row["currency"]
        if len(found | ({expected} if expected else set())) > 1:
            message = (
                "You cannot combine currencies on a single customer. This customer has had a subscription, coupon, "
                f"or invoice item with currency {expected}."
            )
            raise StripeApiError(400, message, stored=True)
        return found.pop()

    def _first_status(self, row: JsonDocument, customer: JsonDocument, sent: JsonDocument) -> str:
        if row["trial_end"] is not None:
            return "trialing"
        if row["collection_method"] == "send_invoice" or self._period_amount(row) == 0:
            return "active"
        if sent.get("payment_behavior") == "default_incomplete":
            return "incomplete"
        if not (row["default_payment_method"] or customer["invoice_settings"]["default_payment_method"]):
            raise StripeApiError(
                400,
                "This customer has no attached payment source or default payment method. Please consider adding a "
                "default payment method.",
                code="resource_missing",
                stored=True,
            )
        return "active"

    def _period_amount(self, row: JsonDocument) -> int:
        return sum(billed_amount(self._tables.price(item["price"]), item["quantity"]) for item in row["items"])

    def _charge(self, row: JsonDocument, amount: int, reason: str) -> None:
        self._tables.state.ledger.charge(
            "stripe",
            customer=row["customer"],
            subscription=row["id"],
            amount=amount,
            currency=row["currency"],
            reason=reason,
        )

    def _end(self, row: JsonDocument, status: str = "canceled") -> JsonDocument:
        now = self._tables.now()
        row["status"] = status
        row["ended_at"] = now
        row["canceled_at"] = row["canceled_at"] or now
        self._save(row, "customer.subscription.deleted" if status == "canceled" else "customer.subscription.updated")
        return row

    def _on_due(self, row: JsonDocument, moment: float) -> None:
        self._tables.cause = NO_REQUEST
        row = {**row, "items": [dict(item) for item in row["items"]]}
        if row["status"] == "incomplete":
            self.invoices.at_expiry(row)
            self._end(row, "incomplete_expired")
            return
        if row["cancel_at"] is not None and row["cancel_at"] <= moment:
            # Prorations that wait are collected at the end of the period.
            self.invoices.at_end(row, prorate=False, invoice_now=True)
            self._end(row)
            return
        self._renew(row, int(moment))

    def _renew(self, row: JsonDocument, moment: int) -> None:
        renewed = [item for item in row["items"] if item["current_period_end"] <= moment]
        started = min(item["current_period_start"] for item in renewed)
        for item in renewed:
            item.update(period_at(row["billing_cycle_anchor"], moment, self._tables.price(item["price"])))
        if row["status"] == "paused":  # it makes no invoices
            self._save(row, "customer.subscription.updated")
            return
        row["status"] = "active" if row["status"] == "trialing" else row["status"]
        self.invoices.at_renewal(row, renewed, (started, moment))
        self._save(row, "customer.subscription.updated")
        self._charge(row, self._period_amount({**row, "items": renewed}), "renewal")

    def _on_invoice_paid(self, subscription_id: str) -> None:
        """The first payment came: the subscription begins."""
        row = self._tables.subscriptions.get(subscription_id)
        if row is not None and row["status"] in ("incomplete", "past_due"):
            self._save({**row, "status": "active"}, "customer.subscription.updated")


def _due_at(row: JsonDocument) -> float | None:
    if row["status"] in ENDED_STATUSES:
        return None
    if row["status"] == "incomplete":
        return float(row["created"] + INCOMPLETE_EXPIRES_SECONDS)
    return float(min(_due_times(row)))


def _due_times(row: JsonDocument) -> Iterator[int]:
    yield from (item["current_period_end"] for item in row["items"])
    if row["cancel_at"] is not None:
        yield row["cancel_at"]


def _restarts_now(sent: JsonDocument) -> bool:
    return sent.get("billing_cycle_anchor") in ("now", {"type": "now"})


def _restarts_period(old: JsonDocument, price: JsonDocument) -> bool:
    """Another interval, or from free to paid (Stripe's description of the update)."""
    return bool(old["recurring"] != price["recurring"] or (old["unit_amount"] == 0 and price["unit_amount"] != 0))


def _price_ids(row: JsonDocument) -> list[str]:
    return [item["price"] for item in row["items"]]


def period_at(anchor: int, moment: int, price: JsonDocument) -> JsonDocument:
    """``current_period_start`` and ``current_period_end``, as an item has them."""
    interval, count = price["recurring"]["interval"], price["recurring"]["interval_count"]
    start, end = period_containing(
        utc_datetime(anchor),
        utc_datetime(moment),
        days=DAYS_BY_STRIPE_INTERVAL.get(interval, 0) * count,
        months=MONTHS_BY_STRIPE_INTERVAL.get(interval, 0) * count,
    )
    return {"current_period_end": int(end.timestamp()), "current_period_start": int(start.timestamp())}


def _begin_trial(row: JsonDocument, sent: JsonDocument, now: int) -> None:
    days = sent.get("trial_period_days")
    ends = sent.get("trial_end") if days is None else now + days * SECONDS_OF_A_TRIAL_DAY
    if ends is None:
        return
    if ends <= now:
        raise invalid_param("trial_end", "Timestamp must be in the future.")
    row.update(trial_start=now, trial_end=ends, billing_cycle_anchor=ends)


def _current_period(row: JsonDocument, now: int, price: JsonDocument) -> JsonDocument:
    """In a trial it is the trial."""
    if row["trial_end"] is not None and now < row["trial_end"]:
        return {"current_period_end": row["trial_end"], "current_period_start": row["trial_start"]}
    return period_at(row["billing_cycle_anchor"], now, price)


def _matches(row: JsonDocument, sent: JsonDocument) -> bool:
    status = sent.get("status")
    if status is None:
        matches = row["status"] != "canceled"
    elif status == "all":
        matches = True
    else:
        matches = row["status"] in (ENDED_STATUSES if status == "ended" else {status})
    if "collection_method" in sent and row["collection_method"] != sent["collection_method"]:
        return False
    return matches and ("price" not in sent or sent["price"] in _price_ids(row))


def _check_collection(method: str, days: int | None) -> None:
    if method == "send_invoice" and days is None:
        message = "If you specify `collection_method` as `send_invoice`, you must also specify `days_until_due`."
        raise invalid_param("days_until_due", message, "parameter_missing")
    if method == "charge_automatically" and days is not None:
        message = "`days_until_due` is only allowed when `collection_method` is `send_invoice`."
        raise invalid_param("days_until_due", message)


def _check_email(sent: JsonDocument, customer: JsonDocument) -> None:
    """Stripe mails what it sends (stripe.md 6). The refusal has neither a code nor a param."""
    if sent.get("collection_method") == "send_invoice" and not customer.get("email"):
        message = (
            "Missing email. In order to create invoices that are sent to the customer, the customer must have a "
            "valid email."
        )
        raise StripeApiError(400, message, stored=True)


def _cancellation(row: JsonDocument, sent: JsonDocument, reason: str | None) -> JsonDocument:
    details = sent.get("cancellation_details") or {}
    return {**row["cancellation_details"], **details, "reason": reason}


def _set_plain(row: JsonDocument, sent: JsonDocument) -> None:
    for name in ("collection_method", "days_until_due", "default_payment_method", "description", "pause_collection"):
        if name in sent:
            row[name] = sent[name]
    if sent.get("collection_method") == "charge_automatically" and "days_until_due" not in sent:
        row["days_until_due"] = None
    if "metadata" in sent:
        row["metadata"] = forms.merge_metadata(row["metadata"], sent["metadata"])
    if "cancellation_details" in sent:
        row["cancellation_details"] = _cancellation(row, sent, row["cancellation_details"]["reason"])
    if "automatic_tax" in sent and sent["automatic_tax"] is not None:
        row["automatic_tax"] = {**row["automatic_tax"], "enabled": sent["automatic_tax"]["enabled"]}


def _refuse_end_of_scheduled(row: JsonDocument, sent: JsonDocument) -> None:
    if row["schedule"] is not None and {"cancel_at", "cancel_at_period_end"} & set(sent):
        message = (
            f"The subscription is managed by the subscription schedule `{row['schedule']}`, and updating any "
            "cancelation behavior directly is not allowed. Please update the schedule instead."
        )
        raise StripeApiError(400, message, stored=True)


def _set_cancel(row: JsonDocument, sent: JsonDocument, now: int) -> None:
    if "cancel_at_period_end" in sent:
        row["cancel_at_period_end"] = sent["cancel_at_period_end"]
        row["cancel_at"] = None
    elif "cancel_at" in sent:
        row["cancel_at_period_end"] = False
        row["cancel_at"] = sent["cancel_at"]
    else:
        return
    if row["cancel_at_period_end"]:
        row["cancel_at"] = max(item["current_period_end"] for item in row["items"])
    reason = "cancellation_requested" if row["cancel_at"] is not None else None
    row["canceled_at"] = now if reason else None
    row["cancellation_details"] = {**row["cancellation_details"], "reason": reason}


# Fields of a subscription that the sandbox never sets.
ALWAYS_EMPTY_FIELDS = (
    "application",
    "application_fee_percent",
    "billing_cycle_anchor_config",
    "billing_thresholds",
    "customer_account",
    "default_source",
    "next_pending_invoice_item_invoice",
    "on_behalf_of",
    "pending_invoice_item_interval",
    "pending_setup_intent",
    "pending_update",
    "test_clock",
    "transfer_data",
)
INITIALLY_EMPTY_FIELDS = (
    "cancel_at",
    "canceled_at",
    "currency",
    "days_until_due",
    "default_payment_method",
    "description",
    "ended_at",
    "latest_invoice",
    "pause_collection",
    "schedule",
    "trial_end",
    "trial_start",
)


def _new_row(subscription_id: str, customer_id: str, now: int, sent: JsonDocument) -> JsonDocument:
    saved = (sent.get("payment_settings") or {}).get("save_default_payment_method", "off")
    row: JsonDocument = {
        "id": subscription_id,
        "object": "subscription",
        **dict.fromkeys(ALWAYS_EMPTY_FIELDS),
        **dict.fromkeys(INITIALLY_EMPTY_FIELDS),
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": now,
        "billing_mode": {"type": (sent.get("billing_mode") or {}).get("type", "flexible"), "flexible": None},
        "billing_schedules": [],
        "cancel_at_period_end": False,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": now,
        "customer": customer_id,
        "default_tax_rates": [],
        "discounts": [],
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "items": [],
        "livemode": False,
        "metadata": {},
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": saved,
        },
        "start_date": now,
        "status": "active",
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
    }
    _set_plain(row, sent)
    return row
