"""Simulated Stripe behind ``/v1``: API key, rate limits, routes, and responses stored under the idempotency key."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from sandbox.faults import InjectedFault
from sandbox.http import JsonDocument, ProviderRequest, ProviderResponse
from sandbox.limits import TokenBucket
from sandbox.state import SandboxState
from sandbox.stripe_api import forms, permissions
from sandbox.stripe_api.balances import StripeBalancesApi
from sandbox.stripe_api.catalog import StripeCatalogApi
from sandbox.stripe_api.credit_notes import StripeCreditNotesApi
from sandbox.stripe_api.customers import StripeCustomersApi
from sandbox.stripe_api.discounts import StripeDiscountsApi
from sandbox.stripe_api.errors import StripeApiError, error_response, internal_error
from sandbox.stripe_api.events import StripeEventsApi
from sandbox.stripe_api.idempotency import StripeIdempotencyKeys
from sandbox.stripe_api.invoices import StripeInvoicesApi
from sandbox.stripe_api.payments import StripePaymentsApi
from sandbox.stripe_api.previews import StripePreviewsApi
from sandbox.stripe_api.serializers import API_VERSION, NO_REQUEST, StripeRequestCause, StripeTables
from sandbox.stripe_api.subscriptions import StripeSubscriptionsApi
from sandbox.stripe_api.webhook_endpoints import StripeWebhookEndpointsApi

STRIPE_OPERATION_REQUESTS_PER_SECOND = 25.0
STRIPE_REQUESTS_PER_SECOND = 100.0
STRIPE_SEARCHES_PER_SECOND = 20.0
MAX_OPERATION_BUCKETS = 200
BAD_STRIPE_API_KEY = "sk_bad"
PATH_ACTIONS = frozenset({"search", "create_preview", "preview"})
SEGMENTS_WITH_ID, SEGMENTS_WITH_CHILD = 2, 3  # segments of /v1/customers/cus_1 and of /v1/customers/cus_1/subscriptions

CollectionHandler = Callable[[JsonDocument], JsonDocument]
MemberHandler = Callable[[str, JsonDocument], JsonDocument]


@dataclass(frozen=True, slots=True)
class _Route:
    collection: CollectionHandler | None = None
    member: MemberHandler | None = None


class StripeApi:
    def __init__(self, state: SandboxState) -> None:
        self._state = state
        self.tables = StripeTables(state)
        self._idempotency_keys = StripeIdempotencyKeys(state.store, state.clock)
        self.balances = StripeBalancesApi(self.tables)
        self.invoices = StripeInvoicesApi(self.tables, self.balances)
        self.subscriptions = StripeSubscriptionsApi(self.tables, self.invoices)
        self.customers = StripeCustomersApi(self.tables, self.subscriptions, self.balances)
        self.catalog = StripeCatalogApi(self.tables)
        self.discounts = StripeDiscountsApi(self.tables)
        self.payments = StripePaymentsApi(self.tables, self.customers, self.invoices)
        self._routes = self._build_routes() | self._build_invoice_routes()
        self.reset_limits()

    def operations(self) -> frozenset[str]:
        """The names of all operations: ``POST /v1/customers/{id}``."""
        return frozenset(self._routes)

    def reset_limits(self) -> None:
        self._account_bucket = TokenBucket(STRIPE_REQUESTS_PER_SECOND)
        self._operation_buckets: dict[str, TokenBucket] = {}

    def _build_routes(self) -> dict[str, _Route]:
        catalog, events = self.catalog, StripeEventsApi(self.tables)
        customers, subscriptions = self.customers, self.subscriptions
        return {
            "GET /v1/account": _Route(self._account),
            "POST /v1/customers": _Route(customers.create),
            "GET /v1/customers": _Route(customers.list_customers),
            "GET /v1/customers/search": _Route(customers.search),
            "GET /v1/customers/{id}": _Route(member=customers.retrieve),
            "POST /v1/customers/{id}": _Route(member=customers.update),
            "DELETE /v1/customers/{id}": _Route(member=customers.delete),
            "GET /v1/customers/{id}/balance_transactions": _Route(member=self.balances.list_transactions),
            "POST /v1/customers/{id}/balance_transactions": _Route(member=self.balances.create),
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
            "GET /v1/subscriptions": _Route(subscriptions.list_subscriptions),
            "GET /v1/subscriptions/{id}": _Route(member=subscriptions.retrieve),
            "POST /v1/subscriptions/{id}": _Route(member=subscriptions.update),
            "DELETE /v1/subscriptions/{id}": _Route(member=subscriptions.cancel),
            "GET /v1/coupons": _Route(self.discounts.list_coupons),
            "GET /v1/events": _Route(events.list_events),
            "GET /v1/events/{id}": _Route(member=events.retrieve),
            "GET /v1/webhook_endpoints": _Route(StripeWebhookEndpointsApi(self.tables).list_endpoints),
        }

    def _build_invoice_routes(self) -> dict[str, _Route]:
        invoices, items = self.invoices, self.subscriptions.invoices.items
        credit_notes = StripeCreditNotesApi(self.tables, invoices, self.balances)
        return {
            "POST /v1/invoices/create_preview": _Route(StripePreviewsApi(self.tables, self.subscriptions).create),
            "GET /v1/invoices": _Route(invoices.list_invoices),
            "GET /v1/invoices/{id}": _Route(member=invoices.retrieve),
            "POST /v1/invoices/{id}": _Route(member=invoices.update),
            "DELETE /v1/invoices/{id}": _Route(member=invoices.delete),
            "GET /v1/invoices/{id}/lines": _Route(member=invoices.list_lines),
            "POST /v1/invoices/{id}/finalize": _Route(member=invoices.finalize_draft),
            "POST /v1/invoices/{id}/pay": _Route(member=invoices.pay),
            "POST /v1/invoices/{id}/void": _Route(member=invoices.void),
            "POST /v1/invoices/{id}/mark_uncollectible": _Route(member=invoices.mark_uncollectible),
            "GET /v1/invoiceitems": _Route(items.list_items),
            "GET /v1/invoiceitems/{id}": _Route(member=items.retrieve),
            "DELETE /v1/invoiceitems/{id}": _Route(member=items.delete),
            "POST /v1/credit_notes": _Route(credit_notes.create),
            "GET /v1/credit_notes": _Route(credit_notes.list_credit_notes),
            "GET /v1/credit_notes/preview": _Route(credit_notes.preview),
            "GET /v1/credit_notes/{id}": _Route(member=credit_notes.retrieve),
            "POST /v1/credit_notes/{id}/void": _Route(member=credit_notes.void),
        }

    def operation_name(self, method: str, path: str) -> str:
        parts = path.strip("/").split("/")[1:]
        if len(parts) == SEGMENTS_WITH_ID and parts[1] not in PATH_ACTIONS:
            parts[1] = "{id}"
        elif len(parts) >= SEGMENTS_WITH_CHILD:
            parts[1] = "{id}"
            parts[3:] = ["{id}"] * len(parts[3:])
        return f"{method} /v1/{'/'.join(parts)}"

    def reject(self, request: ProviderRequest) -> ProviderResponse | None:
        key = request.bearer_token
        if not key:
            message = (
                "You did not provide an API key. You need to provide your API key in the Authorization header, using "
                "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
            )
            return error_response(401, message)
        if key == BAD_STRIPE_API_KEY or key in self._state.settings.revoked_keys:
            return _invalid_key(key)
        settings = self._state.settings
        if settings.limits and (refused := self._check_rate_limit(request.operation)) is not None:
            return refused
        granted = settings.restricted_keys.get(key)
        return None if granted is None else permissions.refuse(request, granted, settings.stripe_account)

    def _check_rate_limit(self, operation: str) -> ProviderResponse | None:
        if len(self._operation_buckets) > MAX_OPERATION_BUCKETS:
            self._operation_buckets.clear()
        rate = STRIPE_SEARCHES_PER_SECOND if operation.endswith("/search") else STRIPE_OPERATION_REQUESTS_PER_SECOND
        if not self._operation_buckets.setdefault(operation, TokenBucket(rate)).try_acquire():
            return _rate_limit_error("endpoint-rate")
        return None if self._account_bucket.try_acquire() else _rate_limit_error("global-rate")

    def acquire_idempotency_key(self, request: ProviderRequest) -> ProviderResponse | None:
        return self._idempotency_keys.acquire(request)

    def release_idempotency_key(self, request: ProviderRequest) -> None:
        self._idempotency_keys.release(request)

    def perform(self, request: ProviderRequest, fault_kind: str | None) -> ProviderResponse:
        self.tables.cause = StripeRequestCause(
            request.id,
            request.headers.get("idempotency-key"),
            request.headers.get("stripe-version", API_VERSION),
        )
        try:
            response = internal_error() if fault_kind == "500_stored" else self._handle(request)
        except StripeApiError as error:
            response = error.response()
            if not error.stored:
                return response
        finally:
            self.tables.cause = NO_REQUEST
        if fault_kind == "500_after" and response.status < 400:  # noqa: PLR2004  # the operation was done
            response = internal_error()
        self._idempotency_keys.store(request, response)
        return response

    def _handle(self, request: ProviderRequest) -> ProviderResponse:
        route = self._routes.get(request.operation)
        if route is None:
            message = (
                f"Unrecognized request URL ({request.method}: {request.path}). Please see https://stripe.com/docs or "
                "we can help at https://support.stripe.com/."
            )
            raise StripeApiError(404, message)
        form = request.query if request.method == "GET" else request.body.decode(errors="replace")
        if request.method == "DELETE" and request.query:
            form = request.query  # stripe-python puts the parameters there (stripe.md 6)
        values = forms.decode(form)
        if route.collection is not None:
            return ProviderResponse.of(200, route.collection(values))
        assert route.member is not None  # noqa: S101  # a route has one or the other
        return ProviderResponse.of(200, route.member(unquote(request.path.split("/")[3]), values))

    def fault_response(self, request: ProviderRequest, fault: InjectedFault) -> ProviderResponse:
        match fault.kind:
            case "401":
                return _invalid_key(request.bearer_token)
            case "403":
                account = self._state.settings.stripe_account
                return permissions.missing_permission(request.bearer_token, fault.reason, account)
            case "429":
                return _rate_limit_error(fault.reason or "endpoint-rate", fault)
            case "lock_timeout":
                message = (
                    "This object cannot be accessed right now because another API request or Stripe process is "
                    "currently accessing it. If you see this error intermittently, retry the request."
                )
                return error_response(429, message, ("Stripe-Should-Retry", "true"), code="lock_timeout")
            case _:
                return internal_error()

    def add_headers(self, request: ProviderRequest, response: ProviderResponse) -> ProviderResponse:
        if response.content_type != "application/json":
            return response
        version = request.headers.get(
            "stripe-version", API_VERSION
        )  # Stripe names the version that the request asked for
        headers = (("Request-Id", request.id), ("Stripe-Version", version), *response.headers)
        return ProviderResponse(response.status, response.body, headers, response.content_type, response.drip_seconds)

    def _account(self, form: JsonDocument) -> JsonDocument:
        forms.validate(form, forms.EXPAND_FIELDS)
        return {
            "id": self._state.settings.stripe_account,
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


def _invalid_key(key: str) -> ProviderResponse:
    return error_response(401, f"Invalid API Key provided: {permissions.masked(key)}")


def _rate_limit_error(reason: str, fault: InjectedFault | None = None) -> ProviderResponse:
    headers: list[tuple[str, str]] = []
    if fault is None or fault.headers:
        headers.append(("Stripe-Rate-Limited-Reason", reason))
    if fault is not None and fault.retry_after is not None:
        headers.append(("Retry-After", str(fault.retry_after)))
    message = "Request rate limit exceeded. Learn more about rate limits here https://stripe.com/docs/rate-limits."
    return error_response(429, message, *headers, code="rate_limit")
