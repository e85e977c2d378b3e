"""Stripe behind ``/v1``: who may ask, how often, which handler, and what is kept under the idempotency key."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from sandbox.faults import Fault
from sandbox.http import Answer, Doc, Request
from sandbox.limits import Bucket
from sandbox.state import World
from sandbox.stripe_api import forms
from sandbox.stripe_api.catalog import Catalog
from sandbox.stripe_api.customers import Customers
from sandbox.stripe_api.errors import Refusal, error, internal_error
from sandbox.stripe_api.events import Events
from sandbox.stripe_api.idempotency import IdempotencyKeys
from sandbox.stripe_api.payments import Payments
from sandbox.stripe_api.previews import Previews
from sandbox.stripe_api.serializers import API_VERSION, NOBODY, Cause, Tables
from sandbox.stripe_api.subscriptions import Subscriptions

OPERATION_RATE = 25.0
GLOBAL_RATE = 100.0
SEARCH_RATE = 20.0
MOST_BUCKETS = 200
BAD_KEY = "sk_bad"
NO_IDS = frozenset({"search", "create_preview"})
WITH_ID, WITH_CHILD = 2, 3  # segments of /v1/customers/cus_1 and of /v1/customers/cus_1/subscriptions

Collection = Callable[[Doc], Doc]
Member = Callable[[str, Doc], Doc]


@dataclass(frozen=True, slots=True)
class _Route:
    collection: Collection | None = None
    member: Member | None = None


class Stripe:
    def __init__(self, world: World) -> None:
        self._world = world
        self.tables = Tables(world)
        self._keys = IdempotencyKeys(world.store, world.clock)
        self.subscriptions = Subscriptions(self.tables)
        self.customers = Customers(self.tables, self.subscriptions)
        self.catalog = Catalog(self.tables)
        self.payments = Payments(self.tables, self.customers)
        self._routes = self._table()
        self.refill()

    def refill(self) -> None:
        self._global = Bucket(GLOBAL_RATE)
        self._buckets: dict[str, Bucket] = {}

    def _table(self) -> dict[str, _Route]:
        catalog, events = self.catalog, Events(self.tables)
        customers, subscriptions = self.customers, self.subscriptions
        return {
            "GET /v1/account": _Route(self._account),
            "POST /v1/customers": _Route(customers.create),
            "GET /v1/customers": _Route(customers.listing),
            "GET /v1/customers/search": _Route(customers.search),
            "GET /v1/customers/{id}": _Route(member=customers.retrieve),
            "POST /v1/customers/{id}": _Route(member=customers.update),
            "DELETE /v1/customers/{id}": _Route(member=customers.delete),
            "POST /v1/products": _Route(catalog.create_product),
            "GET /v1/products": _Route(catalog.list_products),
            "GET /v1/products/{id}": _Route(member=catalog.retrieve_product),
            "POST /v1/products/{id}": _Route(member=catalog.update_product),
            "DELETE /v1/products/{id}": _Route(member=catalog.delete_product),
            "POST /v1/prices": _Route(catalog.create_price),
            "GET /v1/prices": _Route(catalog.list_prices),
            "GET /v1/prices/{id}": _Route(member=catalog.retrieve_price),
            "POST /v1/prices/{id}": _Route(member=catalog.update_price),
            "POST /v1/subscriptions": _Route(subscriptions.create),
            "GET /v1/subscriptions": _Route(subscriptions.listing),
            "GET /v1/subscriptions/{id}": _Route(member=subscriptions.retrieve),
            "POST /v1/subscriptions/{id}": _Route(member=subscriptions.update),
            "DELETE /v1/subscriptions/{id}": _Route(member=subscriptions.cancel),
            "POST /v1/invoices/create_preview": _Route(Previews(self.tables, subscriptions).create),
            "GET /v1/events": _Route(events.listing),
            "GET /v1/events/{id}": _Route(member=events.retrieve),
        }

    def operation(self, method: str, path: str) -> str:
        parts = path.strip("/").split("/")[1:]
        if len(parts) == WITH_ID and parts[1] not in NO_IDS:
            parts[1] = "{id}"
        elif len(parts) >= WITH_CHILD:
            parts[1] = "{id}"
            parts[3:] = ["{id}"] * len(parts[3:])
        return f"{method} /v1/{'/'.join(parts)}"

    def refuse(self, request: Request) -> Answer | None:
        key = request.bearer
        if not key:
            message = (
                "You did not provide an API key. You need to provide your API key in the Authorization header, using "
                "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
            )
            return error(401, message)
        if key == BAD_KEY or key in self._world.settings.revoked_keys:
            return _invalid_key(key)
        if self._world.settings.limits:
            return self._limited(request.operation)
        return None

    def _limited(self, operation: str) -> Answer | None:
        if len(self._buckets) > MOST_BUCKETS:
            self._buckets.clear()
        rate = SEARCH_RATE if operation.endswith("/search") else OPERATION_RATE
        if not self._buckets.setdefault(operation, Bucket(rate)).take():
            return _rate_limited("endpoint-rate")
        return None if self._global.take() else _rate_limited("global-rate")

    def claim(self, request: Request) -> Answer | None:
        return self._keys.claim(request)

    def release(self, request: Request) -> None:
        self._keys.release(request)

    def perform(self, request: Request, failing: str | None) -> Answer:
        self.tables.cause = Cause(
            request.id,
            request.headers.get("idempotency-key"),
            request.headers.get("stripe-version", API_VERSION),
        )
        try:
            answer = internal_error() if failing == "500_stored" else self._handle(request)
        except Refusal as refusal:
            answer = refusal.answer()
            if not refusal.stored:
                return answer
        finally:
            self.tables.cause = NOBODY
        if failing == "500_after" and answer.status < 400:  # noqa: PLR2004  # it was done
            answer = internal_error()
        self._keys.keep(request, answer)
        return answer

    def _handle(self, request: Request) -> Answer:
        route = self._routes.get(request.operation)
        if route is None:
            message = (
                f"Unrecognized request URL ({request.method}: {request.path}). Please see https://stripe.com/docs or "
                "we can help at https://support.stripe.com/."
            )
            raise Refusal(404, message)
        form = request.query if request.method == "GET" else request.body.decode(errors="replace")
        if request.method == "DELETE" and request.query:
            form = request.query  # where stripe-python puts them (stripe.md 6)
        values = forms.tree(form)
        if route.collection is not None:
            return Answer.of(200, route.collection(values))
        assert route.member is not None  # noqa: S101  # a route is one or the other
        return Answer.of(200, route.member(unquote(request.path.split("/")[3]), values))

    def fault_answer(self, request: Request, fault: Fault) -> Answer:
        match fault.kind:
            case "401":
                return _invalid_key(request.bearer)
            case "429":
                return _rate_limited(fault.reason or "endpoint-rate", fault)
            case "lock_timeout":
                message = (
                    "This object cannot be accessed right now because another API request or Stripe process is "
                    "currently accessing it. If you see this error intermittently, retry the request."
                )
                return error(429, message, ("Stripe-Should-Retry", "true"), code="lock_timeout")
            case _:
                return internal_error()

    def dress(self, request: Request, answer: Answer) -> Answer:
        if answer.content_type != "application/json":
            return answer
        headers = (("Request-Id", request.id), ("Stripe-Version", API_VERSION), *answer.headers)
        return Answer(answer.status, answer.body, headers, answer.content_type, answer.drip_seconds)

    def _account(self, form: Doc) -> Doc:
        forms.read(form, forms.EXPAND)
        return {
            "id": self._world.settings.stripe_account,
            "object": "account",
            "business_type": None,
            "charges_enabled": True,
            "country": "US",
            "created": 1_600_000_000,
            "default_currency": "usd",
            "details_submitted": True,
            "email": None,
            "metadata": {},
            "payouts_enabled": True,
            "type": "standard",
        }


def _invalid_key(key: str) -> Answer:
    return error(401, f"Invalid API Key provided: {key[:3]}****{key[-4:]}")


def _rate_limited(reason: str, fault: Fault | None = None) -> Answer:
    headers: list[tuple[str, str]] = []
    if fault is None or fault.headers:
        headers.append(("Stripe-Rate-Limited-Reason", reason))
    if fault is not None and fault.retry_after is not None:
        headers.append(("Retry-After", str(fault.retry_after)))
    message = "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits."
    return error(429, message, *headers, code="rate_limit")
