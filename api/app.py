"""The API as one ASGI application: the routes, the table that guards them, and the document that describes both."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection
from http import HTTPStatus
from typing import Any, Final

from fastapi import Depends, FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import compile_path
from starlette.types import ASGIApp

from api import problems
from api.auth.authorization import HEADER, admit
from api.auth.permissions import TABLE, Rule
from api.context import Runtime
from api.metrics import Measures
from api.middleware import REQUEST_ID, Door
from api.openapi import docs_ui, examples
from api.problems import MEDIA_TYPE, Problem, ProblemError
from api.routes import (
    auth,
    dashboard,
    events,
    health,
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
from api.schemas.requests import TIERS
from api.unit_of_work import REPLAYED
from core.reporting import metrics as metric_queries
from core.reporting.metrics import Figures

ROUTERS: Final = (
    organizations,
    plan_preview,
    members,
    invitations,
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
_PATHS: Final[dict[tuple[str, str], re.Pattern[str]]] = {route: compile_path(route[1])[0] for route in TABLE}
ABOUT: Final = """
Organizations, their members and plans; every change reaches Lago and Stripe, and answers with `sync.sequence`:
`GET /api/organizations/{org_id}/sync?through=…&wait=5s` says when both billers hold it.

Send `Authorization: Bearer …` with an access token of the sign-in service, or with a key of a service
(`billing-sync keys create`). Errors are RFC 9457 problem details.
"""


class TableError(Exception):
    """A route without a rule, or a rule without a route."""


def build(
    runtime: Runtime, *, version: str, secure: bool = False, origins: Collection[str] = ()
) -> tuple[Door, FastAPI]:
    """The application as a server runs it, and the FastAPI app inside. Raises ``TableError``.

    ``origins``: whose pages may call it from a browser.
    """
    app = FastAPI(
        title="billing-sync",
        version=version,
        description=ABOUT,
        dependencies=[Depends(admit)],
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    app.state.runtime = runtime
    app.state.stopping = threading.Event()
    app.state.measures = measures = Measures(lambda: _figures(runtime), runtime.clock)
    problems.install(app)
    app.add_exception_handler(HTTPStatus.METHOD_NOT_ALLOWED, _other_method)
    for module in ROUTERS:
        app.include_router(module.router)
    docs_ui.add(app)
    document = _described(app.openapi())
    _list_tiers(document, runtime.catalog.tiers())
    examples.add(document)
    events.describe(document)
    webhook_endpoints.describe(document)
    app.openapi_schema = document
    _compare(document)
    return Door(_open_to(origins, app), measures, secure=secure), app


def _open_to(origins: Collection[str], app: FastAPI) -> ASGIApp:
    """Without credentials: what opens is in the Authorization header, which a page must know to send it."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", HEADER, REQUEST_ID],
        expose_headers=[REQUEST_ID, REPLAYED, "Retry-After"],
    )


def _figures(runtime: Runtime) -> Figures:
    with runtime.database.read() as session:
        return metric_queries.read(session)


def _compare(document: dict[str, Any]) -> None:
    """The table and the routes name the same."""
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    if odd := routes ^ set(TABLE):
        message = f"routes and permissions differ: {sorted(odd)}"
        raise TableError(message)


def _other_method(request: Request, _error: Exception) -> Response:
    """405 names every method that the path takes; the framework knows of one route at a time."""
    fitting = {route for route, path in _PATHS.items() if path.fullmatch(request.url.path)}
    # What is written out goes before what stands for anything: /selector is no {org_id}.
    least = min((path.count("{") for _, path in fitting), default=0)
    taken = sorted({method for method, path in fitting if path.count("{") == least})
    refusal = ProblemError(
        HTTPStatus.METHOD_NOT_ALLOWED,
        "method-not-allowed",
        f"This path takes {' and '.join(taken)}.",
        headers={"Allow": ", ".join(taken)},
    )
    return problems.response(refusal, request.state.request_id)


def _described(document: dict[str, Any]) -> dict[str, Any]:
    """Each operation with who may call it and how it refuses, as the table says."""
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
            "description": "An access token of the sign-in service, or a service's key (`bsk_…`).",
        }
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            rule = TABLE.get((method.upper(), path))
            if rule is not None:
                _describe(operation, rule, method)
    return document


def _list_tiers(node: Any, tiers: list[str]) -> None:  # noqa: ANN401 - any JSON
    """Where a tier of the catalog is meant, the document says which there are."""
    if isinstance(node, list):
        for each in node:
            _list_tiers(each, tiers)
    elif isinstance(node, dict):
        if node.pop(TIERS, None):
            for name in ("minLength", "maxLength", "pattern"):
                node.pop(name, None)
            node["enum"], node["examples"] = tiers, [tiers[-1]]
        for each in node.values():
            _list_tiers(each, tiers)


def _describe(operation: dict[str, Any], rule: Rule, method: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    changes = method != "get"
    refusals = {
        "400": operation["operationId"].endswith("auth_callback_get"),
        "401": not rule.public,
        "403": not rule.public,
        "404": not rule.public or "auth" in operation["operationId"],
        "408": "requestBody" in operation,
        "409": changes,
        "413": "requestBody" in operation,
        "422": "parameters" in operation or "requestBody" in operation,
        "429": not rule.public,
        "503": True,
    }
    for status, possible in refusals.items():
        if possible:
            responses[status] = _REFUSED[status]
    if rule.public:
        return
    operation["security"] = [{"bearer": []}]
    operation["description"] = f"{operation.get('description', '')}\n\n{_who(rule)}".strip()
    if rule.about != "organization":
        operation.setdefault("parameters", []).append(_HEADER)


def _who(rule: Rule) -> str:
    members = f"members who are {', '.join(sorted(rule.roles))}" if rule.roles else ""
    people = {
        "organization": members,
        "current": members,
        "user": "the user",
        "nothing": "whoever is signed in" if rule.people else "",
    }[rule.about]
    services = f"services with the scope `{rule.scope}`" if rule.scope else ""
    return "Who may: " + ", ".join(filter(None, (people, services))) + "."


def _refused(description: str) -> dict[str, Any]:
    return {"description": description, "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}


_REFUSED: Final = {
    "400": _refused("The sign-in could not be finished."),
    "401": _refused("Nobody is signed in, or what was shown does not open."),
    "403": _refused("Signed in, but this role or key may not."),
    "404": _refused("Not there, or not the caller's business."),
    "408": _refused("The body did not arrive in time."),
    "409": _refused("It collides with what is there: a taken name, a member who is one, the last owner."),
    "413": _refused("The body is too large."),
    "422": _refused("A value is not what it must be; `errors` names the fields."),
    "429": _refused("The caller asks too often; `Retry-After` says for how many seconds to wait."),
    "503": _refused("The database or the sign-in service does not answer; nothing was changed."),
}
_HEADER: Final = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The organization that is meant; left out: the caller's first.",
}
