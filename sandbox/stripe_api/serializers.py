"""Stripe's objects, kept as Stripe shows them, and what is said about them: ids, events, lists, expansion."""

import copy
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass, field

from sandbox.http import Doc
from sandbox.state import World
from sandbox.stripe_api.errors import invalid, no_such

API_VERSION = "2026-10-28.endive"
EVENT_SECONDS = 30 * 24 * 3600  # Stripe keeps events 30 days (stripe.md 2)
DEFAULT_LIMIT = 10
ALPHABET = string.ascii_letters + string.digits
NOUNS = {"cus_": "customers", "sub_": "subscriptions", "price_": "prices", "prod_": "products"}


@dataclass(frozen=True, slots=True)
class Cause:
    """The request an event names as its cause; ``request_id`` None: nobody's call, the clock's or Lago's doing."""

    request_id: str | None = None
    idempotency_key: str | None = None
    version: str = API_VERSION


NOBODY = Cause()


def new_id(prefix: str, length: int = 14) -> str:
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(length))


@dataclass
class Tables:
    world: World
    cause: Cause = field(default=NOBODY)

    def __post_init__(self) -> None:
        store = self.world.store
        self.customers = store.table("stripe.customers", email=lambda row: row.get("email"))
        self.products = store.table("stripe.products")
        self.prices = store.table("stripe.prices", lookup_key=lambda row: row["lookup_key"])
        self.subscriptions = store.table("stripe.subscriptions", customer=lambda row: str(row["customer"]))
        self.events = store.table("stripe.events")
        self.invoices = store.table("stripe.invoices")
        # What search still shows: the customer before its last change, and when that was.
        self.before: dict[str, tuple[float, Doc | None]] = {}

    def now(self) -> int:
        return int(self.world.clock.now())

    def event(self, kind: str, row: Doc, previous: Doc | None = None) -> None:
        data: Doc = {"object": copy.deepcopy(row)}
        if previous is not None:
            data["previous_attributes"] = previous
        event_id = new_id("evt_", 24)
        event: Doc = {
            "id": event_id,
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now(),
            "data": data,
            "livemode": False,
            "pending_webhooks": 0,
            "request": {"id": self.cause.request_id, "idempotency_key": self.cause.idempotency_key},
            "type": kind,
        }
        self.events.put(event_id, event)
        self.world.webhooks.stripe(event)
        while (oldest := self.events.oldest()) and oldest[1]["created"] < self.now() - EVENT_SECONDS:
            self.events.drop(oldest[0])

    def page(self, rows: Iterable[Doc], params: Doc, url: str) -> Doc:
        """One page, newest first; ``rows`` come in order of creation."""
        ordered = sorted(rows, key=lambda row: int(row["created"]))[::-1]
        if "created" in params:
            ordered = [row for row in ordered if _inside(int(row["created"]), params["created"])]
        limit = params.get("limit", DEFAULT_LIMIT)
        start = 0
        if "starting_after" in params:
            start = _position(ordered, params["starting_after"], "starting_after") + 1
        elif "ending_before" in params:
            end = _position(ordered, params["ending_before"], "ending_before")
            start = max(0, end - limit)
            return {"object": "list", "url": url, "has_more": start > 0, "data": ordered[start:end]}
        data = ordered[start : start + limit]
        return {"object": "list", "url": url, "has_more": start + limit < len(ordered), "data": data}

    def expanded(self, document: Doc, params: Doc) -> Doc:
        """``expand[]=data.product``: ids in the answer become objects."""
        wanted = params.get("expand")
        if not wanted:
            return document
        document = copy.deepcopy(document)
        for path in wanted:
            self._expand(document, path.split("."), path)
        return document

    def _expand(self, node: object, names: list[str], path: str) -> None:
        if isinstance(node, list):
            for each in node:
                self._expand(each, names, path)
            return
        if not isinstance(node, dict) or names[0] not in node:
            raise invalid("expand", f"This property cannot be expanded ({path}).")
        value = node[names[0]]
        if isinstance(value, str):
            value = node[names[0]] = self._object(value, path)
        if len(names) > 1 and value is not None:
            self._expand(value, names[1:], path)

    def _object(self, key: str, path: str) -> Doc:
        for table in (self.customers, self.subscriptions, self.prices, self.products):
            if (row := table.get(key)) is not None:
                return copy.deepcopy(row)
        raise invalid("expand", f"This property cannot be expanded ({path}).")


def _inside(created: int, bounds: Doc) -> bool:
    return (
        created >= bounds.get("gte", created)
        and created <= bounds.get("lte", created)
        and ("gt" not in bounds or created > bounds["gt"])
        and ("lt" not in bounds or created < bounds["lt"])
    )


def _position(rows: list[Doc], key: str, param: str) -> int:
    for position, row in enumerate(rows):
        if row["id"] == key:
            return position
    noun = next((noun.removesuffix("s") for prefix, noun in NOUNS.items() if key.startswith(prefix)), "object")
    raise no_such(noun, key, param, own=False)
