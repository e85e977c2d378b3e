"""Simulated Lago behind ``/api/v1``: API key, rate limit, routes as Rails parses them, and Lago's own Stripe calls."""

import json
from collections.abc import Callable
from urllib.parse import unquote

from sandbox.faults import InjectedFault
from sandbox.http import JsonDocument, ProviderRequest, ProviderResponse
from sandbox.lago_api.applied_coupons import LagoAppliedCouponsApi
from sandbox.lago_api.customers import LagoCustomersApi
from sandbox.lago_api.errors import (
    LagoApiError,
    bad_request,
    forbidden,
    internal_error,
    malformed_json,
    not_found,
    third_party,
    unauthorized,
)
from sandbox.lago_api.invoices import LagoInvoicesApi
from sandbox.lago_api.plans import LagoPlansApi
from sandbox.lago_api.serializers import LagoQuery, LagoTables
from sandbox.lago_api.subscriptions import LagoSubscriptionsApi
from sandbox.lago_api.webhook_endpoints import list_endpoints
from sandbox.limits import FixedWindow
from sandbox.state import SandboxState
from sandbox.stripe_api.errors import StripeApiError
from sandbox.stripe_api.provider import StripeApi

LAGO_REQUESTS_PER_SECOND = 50
TOO_MANY_REQUESTS = 429
TOO_MANY_REQUESTS_BODY: JsonDocument = {
    "status": 429,
    "error": "Too Many Requests",
}  # not documented; any JSON will do (lago.md 2)
BAD_LAGO_API_KEY = "bad"
THIRD_PARTY_MESSAGE = "No such customer: 'cus_sandbox'"

STRIPE_ADDRESS_FIELDS = {
    "city": "city",
    "country": "country",
    "line1": "address_line1",
    "line2": "address_line2",
    "postal_code": "zipcode",
    "state": "state",
}

LagoHandler = Callable[[ProviderRequest, str], JsonDocument]


class LagoStripeConnection:
    """Lago's own calls to Stripe. They are not billing-sync's, so they are in neither the call log nor the limits."""

    def __init__(self, stripe: StripeApi) -> None:
        self._stripe = stripe

    def create_customer(self, customer: JsonDocument) -> str:
        metadata = {"lago_customer_id": customer["lago_id"], "customer_id": customer["external_id"]}
        stripe_customer = self._stripe.customers.create({**_stripe_fields(customer), "metadata": metadata})
        return str(stripe_customer["id"])

    def update_customer(self, customer: JsonDocument) -> None:
        """Write what Lago holds. What it does not hold stays as it is at Stripe (lago.md 3.5)."""
        try:
            self._stripe.customers.update(customer["provider_customer_id"], _stripe_fields(customer))
        except StripeApiError as error:
            raise third_party(error.message) from None


class LagoApi:
    def __init__(self, state: SandboxState, stripe: StripeApi) -> None:
        self._state = state
        self.tables = LagoTables(state)
        self.subscriptions = LagoSubscriptionsApi(self.tables)
        self.customers = LagoCustomersApi(self.tables, LagoStripeConnection(stripe), self.subscriptions.end_all)
        self.plans = LagoPlansApi(self.tables)
        self.invoices = LagoInvoicesApi(self.tables, self.customers)
        self.applied_coupons = LagoAppliedCouponsApi(self.tables)
        self._routes = self._build_routes()
        self.reset_limits()

    def reset_limits(self) -> None:
        self._window = FixedWindow(LAGO_REQUESTS_PER_SECOND)

    def _build_routes(self) -> dict[str, LagoHandler]:
        customers, subscriptions, plans = self.customers, self.subscriptions, self.plans
        return {
            "GET /health": self._health,
            "GET /api/v1/organizations": self._organization,
            "POST /api/v1/customers": lambda request, _: customers.upsert(_body_object(request, "customer")),
            "GET /api/v1/customers": lambda request, _: customers.list_customers(LagoQuery.parse(request.query)),
            "GET /api/v1/customers/{id}": lambda _, key: customers.retrieve(key),
            "DELETE /api/v1/customers/{id}": lambda _, key: customers.delete(key),
            "GET /api/v1/customers/{id}/current_usage": lambda request, key: customers.current_usage(
                key, LagoQuery.parse(request.query)
            ),
            "GET /api/v1/customers/{id}/subscriptions": lambda request, key: subscriptions.list_subscriptions(
                LagoQuery.parse(request.query), customers.find_existing(key)
            ),
            "GET /api/v1/customers/{id}/applied_coupons": lambda request, key: (
                self.applied_coupons.list_applied_coupons(LagoQuery.parse(request.query), customers.find_existing(key))
            ),
            "GET /api/v1/applied_coupons": lambda request, _: self.applied_coupons.list_applied_coupons(
                LagoQuery.parse(request.query)
            ),
            "POST /api/v1/invoices/{id}": self._preview,
            "GET /api/v1/webhook_endpoints": lambda request, _: list_endpoints(
                self._state, LagoQuery.parse(request.query)
            ),
            "GET /api/v1/invoices": lambda request, _: self.invoices.list_invoices(LagoQuery.parse(request.query)),
            "POST /api/v1/plans": lambda request, _: plans.create(_body_object(request, "plan")),
            "GET /api/v1/plans": lambda request, _: plans.list_plans(LagoQuery.parse(request.query)),
            "GET /api/v1/plans/{id}": lambda _, key: plans.retrieve(key),
            "PUT /api/v1/plans/{id}": lambda request, key: plans.update(key, _body_object(request, "plan")),
            "POST /api/v1/subscriptions": lambda request, _: subscriptions.create_or_change(
                _body_object(request, "subscription"), customers
            ),
            "GET /api/v1/subscriptions": lambda request, _: subscriptions.list_subscriptions(
                LagoQuery.parse(request.query)
            ),
            "GET /api/v1/subscriptions/{id}": lambda request, key: subscriptions.retrieve(
                key, LagoQuery.parse(request.query)
            ),
            "PUT /api/v1/subscriptions/{id}": lambda request, key: subscriptions.update(
                key, _body_object(request, "subscription"), LagoQuery.parse(request.query)
            ),
            "DELETE /api/v1/subscriptions/{id}": lambda request, key: subscriptions.delete(
                key, LagoQuery.parse(request.query)
            ),
        }

    def operation_name(self, method: str, path: str) -> str:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "v1"] and len(parts) > 3:  # noqa: PLR2004  # api, v1, object type, id
            parts[3] = "{id}"
            parts[5:] = ["{id}"] * len(parts[5:])
        return f"{method} /{'/'.join(parts)}"

    def reject(self, request: ProviderRequest) -> ProviderResponse | None:
        if request.operation not in self._routes:
            return not_found("resource_not_found").response()  # before the key is looked at (lago.md 1.1)
        if request.path == "/health":
            return None
        key = request.bearer_token
        if not key or key == BAD_LAGO_API_KEY or key in self._state.settings.revoked_keys:
            return unauthorized().response()
        if self._state.settings.limits and not self._window.try_acquire():
            return ProviderResponse.of(TOO_MANY_REQUESTS, TOO_MANY_REQUESTS_BODY, *self._rate_headers())
        return None

    def acquire_idempotency_key(self, request: ProviderRequest) -> ProviderResponse | None:  # noqa: ARG002  # Lago has no idempotency keys
        return None

    def release_idempotency_key(self, request: ProviderRequest) -> None:
        pass

    def perform(self, request: ProviderRequest, fault_kind: str | None) -> ProviderResponse:
        if fault_kind == "500_stored":
            return internal_error()
        try:
            response = ProviderResponse.of(200, self._handle(request))
        except LagoApiError as error:
            return error.response()
        if fault_kind == "500_after":
            return internal_error()
        return third_party(THIRD_PARTY_MESSAGE).response() if fault_kind == "422_third_party" else response

    def _handle(self, request: ProviderRequest) -> JsonDocument:
        handler = self._routes.get(request.operation)
        parts = request.path.strip("/").split("/")
        key = parts[3] if len(parts) > 3 else ""  # noqa: PLR2004
        if handler is None:
            raise not_found("resource_not_found")
        if "." in key and parts[2] == "customers":
            # Rails reads a dot as the start of a format: /customers/acme.com is customer ``acme`` (lago.md 3.4).
            # The routes of plans and subscriptions say what an id is, so there it is only a character.
            key, _, suffix = key.partition(".")
            if "." in suffix or len(parts) > 4:  # noqa: PLR2004
                raise not_found("resource_not_found")
        return handler(request, unquote(key))

    def fault_response(self, request: ProviderRequest, fault: InjectedFault) -> ProviderResponse:  # noqa: ARG002
        match fault.kind:
            case "401":
                return unauthorized().response()
            case "429" | "lock_timeout":
                if fault.headers:
                    reset = 1 if fault.retry_after is None else fault.retry_after
                    return ProviderResponse.of(TOO_MANY_REQUESTS, TOO_MANY_REQUESTS_BODY, *_rate_headers(0, reset))
                headers = () if fault.retry_after is None else (("Retry-After", str(fault.retry_after)),)
                return ProviderResponse.of(TOO_MANY_REQUESTS, TOO_MANY_REQUESTS_BODY, *headers)
            case _:
                return internal_error()

    def add_headers(self, request: ProviderRequest, response: ProviderResponse) -> ProviderResponse:
        headers = (("X-Request-Id", request.id), *response.headers)
        if (
            self._state.settings.limits and response.status != TOO_MANY_REQUESTS
        ):  # a 429 has its own headers, or deliberately none
            headers += self._rate_headers()
        return ProviderResponse(response.status, response.body, headers, response.content_type, response.drip_seconds)

    def _rate_headers(self) -> tuple[tuple[str, str], ...]:
        return _rate_headers(self._window.remaining, 1)

    def _health(self, _request: ProviderRequest, _key: str) -> JsonDocument:
        return {"version": "sandbox", "github_url": "https://github.com/getlago/lago-api", "message": "Success"}

    def _preview(self, _request: ProviderRequest, key: str) -> JsonDocument:
        raise forbidden("feature_unavailable") if key == "preview" else not_found("resource_not_found")

    def _organization(self, _request: ProviderRequest, _key: str) -> JsonDocument:
        return {
            "organization": {
                "lago_id": self._state.settings.lago_organization,
                "name": "Sandbox",
                "default_currency": "USD",
                "created_at": "2026-01-01T00:00:00Z",
                "timezone": "UTC",
            }
        }


def _rate_headers(remaining: int, reset: int) -> tuple[tuple[str, str], ...]:
    return (
        ("x-ratelimit-limit", str(LAGO_REQUESTS_PER_SECOND)),
        ("x-ratelimit-remaining", str(remaining)),
        ("x-ratelimit-reset", str(reset)),
    )


def _body_object(request: ProviderRequest, name: str) -> JsonDocument:
    try:
        document = json.loads(request.body or b"{}")
    except ValueError:
        raise malformed_json() from None
    body = document.get(name) if isinstance(document, dict) else None
    if not isinstance(body, dict) or not body:
        raise bad_request(name)
    return body


def _stripe_fields(customer: JsonDocument) -> JsonDocument:
    email = (customer["email"] or "").split(",")[0].strip()
    texts = {"name": (customer["name"] or "")[:256], "email": email, "phone": (customer["phone"] or "")[:20]}
    address = {field: customer[name] for field, name in STRIPE_ADDRESS_FIELDS.items() if customer[name]}
    return {name: value for name, value in texts.items() if value} | ({"address": address} if address else {})
