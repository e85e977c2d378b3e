"""Stripe's tables, with rows as Stripe returns them, and its ids, events, lists and expansion."""

import copy
import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sandbox.http import JsonDocument
from sandbox.state import SandboxState
from sandbox.stripe_api.errors import invalid_param, not_found

API_VERSION = "2026-10-28.endive"
EVENT_RETENTION_SECONDS = 30 * 24 * 3600  # Stripe keeps events 30 days (stripe.md 2)
DEFAULT_STRIPE_PAGE_SIZE = 10
ID_ALPHABET = string.ascii_letters + string.digits
OBJECT_TYPE_BY_ID_PREFIX = {
    "cus_": "customers",
    "sub_": "subscriptions",
    "price_": "prices",
    "prod_": "products",
    "in_": "invoices",
    "cn_": "credit_notes",
}


@dataclass(frozen=True, slots=True)
class StripeRequestCause:
    """The request that an event names as its cause; ``request_id`` is None if the clock, Lago or a user caused it."""

    request_id: str | None = None
    idempotency_key: str | None = None
    version: str = API_VERSION


NO_REQUEST = StripeRequestCause()


def new_id(prefix: str, length: int = 14) -> str:
    return prefix + "".join(secrets.choice(ID_ALPHABET) for _ in range(length))


@dataclass
class StripeTables:
    state: SandboxState
    cause: StripeRequestCause = field(default=NO_REQUEST)

    def __post_init__(self) -> None:
        store = self.state.store
        self.customers = store.table("stripe.customers", email=lambda row: row.get("email"))
        self.products = store.table("stripe.products")
        self.prices = store.table("stripe.prices", lookup_key=lambda row: row["lookup_key"])
        self.subscriptions = store.table("stripe.subscriptions", customer=lambda row: str(row["customer"]))
        self.events = store.table("stripe.events")
        self.invoices = store.table(
            "stripe.subscription_invoices",  # older files have others, of another shape, as stripe.invoices
            customer=lambda row: str(row["customer"]),
            subscription=lambda row: row["subscription"],
        )
        self.invoice_items = store.table(
            "stripe.invoice_items", pending_of=lambda row: row["subscription"] if row["invoice"] is None else None
        )
        self.coupons = store.table("stripe.coupons")
        self.discounts = store.table("stripe.discounts")
        self.credit_notes = store.table("stripe.credit_notes", invoice=lambda row: str(row["invoice"]))
        self.balance_transactions = store.table(
            "stripe.balance_transactions", customer=lambda row: str(row["customer"])
        )
        # How an object is shown where a response expands its id; rows of the other tables are shown as they are.
        self.documents: dict[str, Callable[[JsonDocument], JsonDocument]] = {}
        # What search may still return: the customer before its last change, and the time of that change.
        self.before_last_change: dict[str, tuple[float, JsonDocument | None]] = {}

    def now(self) -> int:
        return int(self.state.clock.now())

    def price(self, price_id: str) -> JsonDocument:
        """A price that something refers to, so it exists: prices cannot be deleted."""
        price = self.prices.get(price_id)
        assert price is not None, price_id  # noqa: S101
        return price

    def emit(self, event_type: str, row: JsonDocument, previous: JsonDocument | None = None) -> None:
        data: JsonDocument = {"object": copy.deepcopy(row)}
        if previous is not None:
            data["previous_attributes"] = previous
        event_id = new_id("evt_", 24)
        event: JsonDocument = {
            "id": event_id,
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now(),
            "data": data,
            "livemode": False,
            "pending_webhooks": 0,
            "request": {"id": self.cause.request_id, "idempotency_key": self.cause.idempotency_key},
            "type": event_type,
        }
        self.events.put(event_id, event)
        self.state.webhooks.send_stripe(event)
        while (oldest := self.events.oldest()) and oldest[1]["created"] < self.now() - EVENT_RETENTION_SECONDS:
            self.events.delete(oldest[0])

    def page(self, rows: Iterable[JsonDocument], params: JsonDocument, url: str) -> JsonDocument:
        """One page, newest first; ``rows`` come in order of creation."""
        ordered = sorted(rows, key=lambda row: int(row["created"]))[::-1]
        if "created" in params:
            ordered = [row for row in ordered if _in_time_range(int(row["created"]), params["created"])]
        limit = params.get("limit", DEFAULT_STRIPE_PAGE_SIZE)
        start = 0
        if "starting_after" in params:
            start = _position(ordered, params["starting_after"], "starting_after") + 1
        elif "ending_before" in params:
            end = _position(ordered, params["ending_before"], "ending_before")
            start = max(0, end - limit)
            return {"object": "list", "url": url, "has_more": start > 0, "data": ordered[start:end]}
        data = ordered[start : start + limit]
        return {"object": "list", "url": url, "has_more": start + limit < len(ordered), "data": data}

    def expanded(self, document: JsonDocument, params: JsonDocument) -> JsonDocument:
        """``expand[]=data.product``: ids in the response become objects."""
        paths = params.get("expand")
        if not paths:
            return document
        document = copy.deepcopy(document)
        for path in paths:
            self._expand(document, path.split("."), path)
        return document

    def _expand(self, node: object, names: list[str], path: str) -> None:
        if isinstance(node, list):
            for each in node:
                self._expand(each, names, path)
            return
        if not isinstance(node, dict) or names[0] not in node:
            raise invalid_param("expand", f"This property cannot be expanded ({path}).")
        value = node[names[0]]
        if isinstance(value, str):
            value = node[names[0]] = self._object(value, path)
        elif isinstance(value, list):
            value = node[names[0]] = [self._object(one, path) if isinstance(one, str) else one for one in value]
        if len(names) > 1 and value is not None:
            self._expand(value, names[1:], path)

    def _object(self, key: str, path: str) -> JsonDocument:
        tables = (
            self.customers,
            self.subscriptions,
            self.prices,
            self.products,
            self.invoices,
            self.credit_notes,
            self.balance_transactions,
            self.coupons,
            self.discounts,
        )
        for table in tables:
            if (row := table.get(key)) is not None:
                return copy.deepcopy(self.documents.get(table.name, dict)(row))
        raise invalid_param("expand", f"This property cannot be expanded ({path}).")


def _in_time_range(created: int, bounds: JsonDocument) -> bool:
    return (
        created >= bounds.get("gte", created)
        and created <= bounds.get("lte", created)
        and ("gt" not in bounds or created > bounds["gt"])
        and ("lt" not in bounds or created < bounds["lt"])
    )


def _position(rows: list[JsonDocument], key: str, param: str) -> int:
    for position, row in enumerate(rows):
        if row["id"] == key:
            return position
    object_type = next(
        (
            object_type.removesuffix("s")
            for prefix, object_type in OBJECT_TYPE_BY_ID_PREFIX.items()
            if key.startswith(prefix)
        ),
        "object",
    )
    raise not_found(object_type, key, param, in_path=False)
