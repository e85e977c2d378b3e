"""Lago behind ``/api/v1``: key, limit, routes as Rails parses them, and what Lago itself does at Stripe."""

import json
from collections.abc import Callable
from urllib.parse import unquote

from sandbox.faults import Fault
from sandbox.http import Answer, Doc, Request
from sandbox.lago_api.customers import Customers
from sandbox.lago_api.errors import (
    Refusal,
    bad_request,
    internal_error,
    not_found,
    third_party,
    unauthorized,
    unreadable,
)
from sandbox.lago_api.invoices import Invoices
from sandbox.lago_api.plans import Plans
from sandbox.lago_api.serializers import Query, Tables
from sandbox.lago_api.subscriptions import Subscriptions
from sandbox.limits import Window
from sandbox.state import World
from sandbox.stripe_api.errors import Refusal as StripeRefusal
from sandbox.stripe_api.provider import Stripe

LIMIT = 50
TOO_MANY = 429
TOO_MANY_BODY: Doc = {"status": 429, "error": "Too Many Requests"}  # not documented; any JSON will do (lago.md 2)
BAD_KEY = "bad"
THIRD_PARTY = "No such customer: 'cus_sandbox'"

Handler = Callable[[Request, str], Doc]


class LagoAtStripe:
    """Lago's own calls to Stripe: not ours, so they are in neither the call log nor the limits."""

    def __init__(self, stripe: Stripe) -> None:
        self._stripe = stripe

    def make(self, customer: Doc) -> str:
        metadata = {"lago_customer_id": customer["lago_id"], "customer_id": customer["external_id"]}
        made = self._stripe.customers.create({**_filled(customer), "metadata": metadata})
        return str(made["id"])

    def write(self, customer: Doc) -> None:
        """Name, email and phone as Lago has them; what it does not have becomes blank (lago.md 3.5)."""
        try:
            self._stripe.customers.update(customer["provider_customer_id"], _blanked(customer))
        except StripeRefusal as refusal:
            raise third_party(refusal.message) from None


class Lago:
    def __init__(self, world: World, stripe: Stripe) -> None:
        self._world = world
        self.tables = Tables(world)
        self.subscriptions = Subscriptions(self.tables)
        self.customers = Customers(self.tables, LagoAtStripe(stripe), self.subscriptions.end_all)
        self.plans = Plans(self.tables)
        self.invoices = Invoices(self.tables, self.customers)
        self._routes = self._table()
        self.refill()

    def refill(self) -> None:
        self._window = Window(LIMIT)

    def _table(self) -> dict[str, Handler]:
        customers, subscriptions, plans = self.customers, self.subscriptions, self.plans
        return {
            "GET /health": self._health,
            "GET /api/v1/organizations": self._organization,
            "POST /api/v1/customers": lambda request, _: customers.upsert(_root(request, "customer")),
            "GET /api/v1/customers": lambda request, _: customers.listing(Query.of(request.query)),
            "GET /api/v1/customers/{id}": lambda _, key: customers.retrieve(key),
            "DELETE /api/v1/customers/{id}": lambda _, key: customers.delete(key),
            "GET /api/v1/customers/{id}/current_usage": lambda request, key: customers.current_usage(
                key, Query.of(request.query)
            ),
            "GET /api/v1/customers/{id}/subscriptions": lambda request, key: subscriptions.listing(
                Query.of(request.query), customers.living(key)
            ),
            "GET /api/v1/invoices": lambda request, _: self.invoices.listing(Query.of(request.query)),
            "POST /api/v1/plans": lambda request, _: plans.create(_root(request, "plan")),
            "GET /api/v1/plans": lambda request, _: plans.listing(Query.of(request.query)),
            "GET /api/v1/plans/{id}": lambda _, key: plans.retrieve(key),
            "PUT /api/v1/plans/{id}": lambda request, key: plans.update(key, _root(request, "plan")),
            "POST /api/v1/subscriptions": lambda request, _: subscriptions.post(
                _root(request, "subscription"), customers
            ),
            "GET /api/v1/subscriptions": lambda request, _: subscriptions.listing(Query.of(request.query)),
            "GET /api/v1/subscriptions/{id}": lambda request, key: subscriptions.retrieve(key, Query.of(request.query)),
            "PUT /api/v1/subscriptions/{id}": lambda request, key: subscriptions.update(
                key, _root(request, "subscription"), Query.of(request.query)
            ),
            "DELETE /api/v1/subscriptions/{id}": lambda request, key: subscriptions.delete(
                key, Query.of(request.query)
            ),
        }

    def operation(self, method: str, path: str) -> str:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "v1"] and len(parts) > 3:  # noqa: PLR2004  # api, v1, noun, id
            parts[3] = "{id}"
            parts[5:] = ["{id}"] * len(parts[5:])
        return f"{method} /{'/'.join(parts)}"

    def refuse(self, request: Request) -> Answer | None:
        if request.path == "/health":
            return None
        key = request.bearer
        if not key or key == BAD_KEY or key in self._world.settings.revoked_keys:
            return unauthorized().answer()
        if self._world.settings.limits and not self._window.take():
            return Answer.of(TOO_MANY, TOO_MANY_BODY, *self._rate_headers())
        return None

    def claim(self, request: Request) -> Answer | None:  # noqa: ARG002  # Lago knows no idempotency keys
        return None

    def release(self, request: Request) -> None:
        pass

    def perform(self, request: Request, failing: str | None) -> Answer:
        if failing == "500_stored":
            return internal_error()
        try:
            answer = Answer.of(200, self._handle(request))
        except Refusal as refusal:
            return refusal.answer()
        if failing == "500_after":
            return internal_error()
        return third_party(THIRD_PARTY).answer() if failing == "422_third_party" else answer

    def _handle(self, request: Request) -> Doc:
        handler = self._routes.get(request.operation)
        parts = request.path.strip("/").split("/")
        key = parts[3] if len(parts) > 3 else ""  # noqa: PLR2004
        if handler is None:
            raise not_found("resource_not_found")
        if "." in key:
            # Rails reads a dot as the start of a format: /customers/acme.com is customer ``acme`` (lago.md 3.4).
            key, _, form = key.partition(".")
            if "." in form or len(parts) > 4:  # noqa: PLR2004
                raise not_found("resource_not_found")
        return handler(request, unquote(key))

    def fault_answer(self, request: Request, fault: Fault) -> Answer:  # noqa: ARG002
        match fault.kind:
            case "401":
                return unauthorized().answer()
            case "429" | "lock_timeout":
                if fault.headers:
                    reset = 1 if fault.retry_after is None else fault.retry_after
                    return Answer.of(TOO_MANY, TOO_MANY_BODY, *_rate_headers(0, reset))
                only = () if fault.retry_after is None else (("Retry-After", str(fault.retry_after)),)
                return Answer.of(TOO_MANY, TOO_MANY_BODY, *only)
            case _:
                return internal_error()

    def dress(self, request: Request, answer: Answer) -> Answer:
        headers = (("X-Request-Id", request.id), *answer.headers)
        if self._world.settings.limits and answer.status != TOO_MANY:  # those bring their own, or none on purpose
            headers += self._rate_headers()
        return Answer(answer.status, answer.body, headers, answer.content_type, answer.drip_seconds)

    def _rate_headers(self) -> tuple[tuple[str, str], ...]:
        return _rate_headers(self._window.remaining, 1)

    def _health(self, _request: Request, _key: str) -> Doc:
        return {"version": "sandbox", "github_url": "https://github.com/getlago/lago-api", "message": "Success"}

    def _organization(self, _request: Request, _key: str) -> Doc:
        return {
            "organization": {
                "lago_id": self._world.settings.lago_organization,
                "name": "Sandbox",
                "default_currency": "USD",
                "created_at": "2026-01-01T00:00:00Z",
                "timezone": "UTC",
            }
        }


def _rate_headers(remaining: int, reset: int) -> tuple[tuple[str, str], ...]:
    return (
        ("x-ratelimit-limit", str(LIMIT)),
        ("x-ratelimit-remaining", str(remaining)),
        ("x-ratelimit-reset", str(reset)),
    )


def _root(request: Request, name: str) -> Doc:
    try:
        document = json.loads(request.body or b"{}")
    except ValueError:
        raise unreadable() from None
    inner = document.get(name) if isinstance(document, dict) else None
    if not isinstance(inner, dict) or not inner:
        raise bad_request(name)
    return inner


def _filled(customer: Doc) -> Doc:
    return {name: value for name, value in _blanked(customer).items() if value}


def _blanked(customer: Doc) -> Doc:
    email = (customer["email"] or "").split(",")[0].strip()
    return {"name": (customer["name"] or "")[:256], "email": email, "phone": (customer["phone"] or "")[:20]}
