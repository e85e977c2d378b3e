"""The API as one ASGI application: its routes, the permission table that guards them, and the OpenAPI document."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import compile_path
from starlette.types import ASGIApp

from api import problems
from api.auth.authorization import ORGANIZATION_HEADER
from api.auth.permissions import PERMISSIONS, PermissionRule
from api.connections import MAX_CONNECTIONS
from api.context import ApiContext
from api.metrics import HttpMetrics
from api.middleware import REQUEST_ID_HEADER, RequestMiddleware
from api.openapi import docs_ui, examples
from api.problems import PROBLEM_MEDIA_TYPE, Problem, ProblemError
from api.request_limits import RequestLimits
from api.routes import (
    auth,
    dashboard,
    events,
    health,
    history,
    invitations,
    legacy_org,
    legacy_subscriptions,
    members,
    metrics,
    organizations,
    plan_preview,
    provider_webhooks,
    sync_status,
    webhook_endpoints,
)
from api.routing import ApiRoute
from api.schemas.requests import TIERS_MARKER
from api.sync_waits import SyncWaits
from api.unit_of_work import REPLAYED_HEADER
from core.reporting import metrics as metric_queries
from core.reporting import sync_status as sync_queries
from core.reporting.metrics import StoreMetrics
from core.reporting.sync_status import OrganizationVersion

ROUTERS: Final = (
    organizations,
    plan_preview,
    members,
    invitations,
    history,
    sync_status,
    events,
    webhook_endpoints,
    dashboard,
    auth,
    provider_webhooks,
    health,
    metrics,
    legacy_org,
    legacy_subscriptions,
)
_PATH_PATTERNS: Final[dict[tuple[str, str], re.Pattern[str]]] = {
    route: compile_path(route[1])[0] for route in PERMISSIONS
}
API_DESCRIPTION: Final = """
Manage organizations, members and plans. Every change is synced to Lago and Stripe and returns `sync.version`.
`GET /api/organizations/{org_id}/sync?version=…&wait=5s` tells when both providers are in sync.

Authenticate with `Authorization: Bearer …`: an access token of your sign-in service, or an API key
(`billing-sync keys create`). Errors are RFC 9457 problem details.
"""


class PermissionTableError(Exception):
    """A route has no rule in the permission table, or a rule has no route."""


def build_app(
    context: ApiContext,
    *,
    version: str,
    max_connections: int = MAX_CONNECTIONS,
    secure: bool = False,
    allowed_origins: Collection[str] = (),
) -> tuple[RequestMiddleware, FastAPI]:
    """Return the application that a server runs, and the FastAPI app inside. Raises ``PermissionTableError``.

    ``allowed_origins``: the origins whose pages may call the API from a browser.
    """
    app = FastAPI(
        title="billing-sync",
        version=version,
        description=API_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        # A redirect would name the host of the request's Host header, which anybody may write.
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.stopping = stopping = threading.Event()
    app.state.limits = limits = RequestLimits(max_connections)
    app.state.sync_waits = SyncWaits(partial(_read_versions_in_sync, context), stopping)
    app.state.threads = None
    app.state.metrics = metrics = HttpMetrics(lambda: _read_metrics(context), context.clock)
    problems.install(app)
    app.add_exception_handler(HTTPStatus.METHOD_NOT_ALLOWED, _method_not_allowed)
    for module in ROUTERS:
        app.include_router(module.router)
    docs_ui.add_docs_routes(app)
    openapi = _describe_operations(app.openapi())
    _insert_tiers(openapi, context.catalog.tiers(), context.catalog.offered_tiers()[-1])
    examples.add_examples(openapi)
    events.describe(openapi)
    webhook_endpoints.describe(openapi)
    app.openapi_schema = openapi
    _check_permission_table(app, openapi)
    return RequestMiddleware(_with_cors(allowed_origins, app), metrics, limits, secure=secure), app


def _with_cors(allowed_origins: Collection[str], app: FastAPI) -> ASGIApp:
    """Cookies are not allowed: the credential is in the Authorization header, and a page must have it to send it."""
    if not allowed_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(allowed_origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", ORGANIZATION_HEADER, REQUEST_ID_HEADER],
        expose_headers=[REQUEST_ID_HEADER, REPLAYED_HEADER, "Retry-After"],
    )


def _read_metrics(context: ApiContext) -> StoreMetrics:
    with context.database.read() as session:
        return metric_queries.read(session, context.clock())


def _read_versions_in_sync(
    context: ApiContext, versions: Collection[OrganizationVersion]
) -> AbstractSet[OrganizationVersion]:
    with context.database.read() as session:
        return sync_queries.final_versions(session, versions)


def _check_permission_table(app: FastAPI, document: dict[str, Any]) -> None:
    """The permission table and the routes must name the same methods and paths, and each route must authorize."""
    if unauthorized := [
        each.path for each in app.routes if isinstance(each, APIRoute) and not isinstance(each, ApiRoute)
    ]:
        message = f"these routes are no ApiRoute, so nobody is authorized: {unauthorized}"
        raise PermissionTableError(message)
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    if mismatched := described ^ set(PERMISSIONS):
        message = f"routes and permissions differ: {sorted(mismatched)}"
        raise PermissionTableError(message)


def _method_not_allowed(request: Request, _error: Exception) -> Response:
    """The 405 names every method that the path accepts; the framework only knows one route at a time."""
    matching = {route for route, path in _PATH_PATTERNS.items() if path.fullmatch(request.url.path)}
    # A literal path wins over a parameter: /selector is not an {org_id}.
    fewest_parameters = min((path.count("{") for _, path in matching), default=0)
    allowed = sorted({method for method, path in matching if path.count("{") == fewest_parameters})
    problem = ProblemError(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method-not-allowed",
        f"This path accepts {' and '.join(allowed)}.",
        headers={"Allow": ", ".join(allowed)},
    )
    return problems.response(problem, request.state.request_id)


def _describe_operations(document: dict[str, Any]) -> dict[str, Any]:
    """Add to each operation who may call it and which problems it can return."""
    schemas = document["components"]["schemas"]
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"))
    schemas["Problem"] = problem
    document["components"]["securitySchemes"] = {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "An access token of the sign-in service, or an API key (`bsk_…`).",
        }
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rule = PERMISSIONS.get((method.upper(), path))
            if rule is not None:
                _describe_operation(operation, rule, method)
    return document


def _insert_tiers(node: Any, tiers: list[str], example: str) -> None:  # noqa: ANN401 - any JSON
    """List the catalog's tiers wherever a tier is expected. One that is sold no longer may be kept."""
    if isinstance(node, list):
        for child in node:
            _insert_tiers(child, tiers, example)
    elif isinstance(node, dict):
        if node.pop(TIERS_MARKER, None):
            for name in ("minLength", "maxLength", "pattern"):
                node.pop(name, None)
            node["enum"], node["examples"] = tiers, [example]
        for child in node.values():
            _insert_tiers(child, tiers, example)


def _describe_operation(operation: dict[str, Any], rule: PermissionRule, method: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    changes = method != "get"
    possible_problems = {
        "400": operation["operationId"].endswith("auth_callback_get"),
        "401": not rule.public,
        "403": not rule.public,
        "404": not rule.public or "auth" in operation["operationId"],
        "408": "requestBody" in operation,
        "409": changes,
        "413": "requestBody" in operation,
        "422": "parameters" in operation or "requestBody" in operation,
        "429": not rule.is_unlimited,
        "503": True,
    }
    for status, possible in possible_problems.items():
        if possible:
            responses[status] = _PROBLEM_RESPONSES[status]
    if rule.public:
        return
    operation["security"] = [{"bearer": []}]
    operation["description"] = f"{operation.get('description', '')}\n\n{_allowed_callers(rule)}".strip()
    if rule.path_subject != "organization":
        operation.setdefault("parameters", []).append(_ORGANIZATION_HEADER_PARAMETER)


def _allowed_callers(rule: PermissionRule) -> str:
    members = f"members who are {', '.join(sorted(rule.roles))}" if rule.roles else ""
    users = {
        "organization": members,
        "current": members,
        "user": "the user",
        "nothing": "any signed-in user" if rule.allows_users else "",
    }[rule.path_subject]
    services = f"services with the scope `{rule.scope}`" if rule.scope else ""
    return "Allowed: " + ", ".join(filter(None, (users, services))) + "."


def _problem_response(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


_PROBLEM_RESPONSES: Final = {
    "400": _problem_response("The sign-in could not be completed."),
    "401": _problem_response("The credentials are missing or invalid."),
    "403": _problem_response("The role or API key does not allow this."),
    "404": _problem_response("Not found, or not visible to the caller."),
    "408": _problem_response("The body did not arrive in time."),
    "409": _problem_response("Conflict: the name is in use, the user is already a member, or it is the last owner."),
    "413": _problem_response("The body is too large."),
    "422": _problem_response("A value is invalid; `errors` names the fields."),
    "429": _problem_response("Rate limit exceeded; `Retry-After` gives the seconds to wait."),
    "503": _problem_response("The database or the sign-in service did not respond; no change was made."),
}
_ORGANIZATION_HEADER_PARAMETER: Final = {
    "name": ORGANIZATION_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The organization to act on; default: the caller's first.",
}
