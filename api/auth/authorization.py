"""Who is calling, for which organization, and whether the table lets them: decided before a route runs.

The request's state then has ``organization``, ``role`` and ``organizations``: the one that the path names, else the one
of ``X-Organization-ID``, else the caller's first; membership is looked up for each of them, every time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from fastapi import Depends, Request
from sqlalchemy.orm import Session
from starlette.routing import Route

from api import problems
from api.auth.permissions import TABLE, Rule
from api.context import Runtime, TheRuntime
from api.oidc import IssuerAwayError, TokenRefusedError
from api.problems import ProblemError
from core.access import api_keys
from core.access.api_keys import Service
from core.access.users import Profile
from core.db.models.organizations import Role
from core.events.event_types import Cause
from core.organizations import queries
from core.organizations.queries import Entry
from core.organizations.validation import ID_PATTERN

HEADER: Final = "X-Organization-ID"
SOURCE: Final = "api"

Caller = Profile | Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Somebody who may. ``organizations`` are a person's own; a service has none and sees what its scopes say."""

    caller: Caller
    request_id: str
    organization: Entry | None
    role: Role | Literal["service"] | None
    organizations: tuple[Entry, ...]

    @property
    def user_id(self) -> str | None:
        """``None``: a service calls."""
        return self.caller.user_id if isinstance(self.caller, Profile) else None

    @property
    def name(self) -> str:
        """Tells callers apart, people from services too."""
        return name_of(self.caller)

    @property
    def cause(self) -> Cause:
        actor = self.caller.user_id if isinstance(self.caller, Profile) else self.name
        return Cause(actor=actor, source=SOURCE, caused_by=f"request:{self.request_id}")


def name_of(caller: Caller) -> str:
    return f"person:{caller.user_id}" if isinstance(caller, Profile) else f"service:{caller.id}"


def admit(request: Request, runtime: TheRuntime) -> None:
    """For every route. Raises ``ProblemError``: 401, 403, 404, 429, or 503 where the sign-in service is away."""
    rule = rule_of(request)
    if rule.public:
        return
    admission = _admitted(request, runtime, rule)
    request.state.admission = admission
    request.state.organization = admission.organization
    request.state.role = admission.role
    request.state.organizations = admission.organizations


def admission_of(request: Request) -> Admission:
    admission = request.state.admission
    if not isinstance(admission, Admission):
        message = "a public route has no admission"
        raise TypeError(message)
    return admission


TheAdmission = Annotated[Admission, Depends(admission_of)]


def rule_of(request: Request) -> Rule:
    route = request.scope["route"]
    if not isinstance(route, Route):
        message = f"{type(route).__name__} is no route that the table knows"
        raise TypeError(message)
    return TABLE[request.method, route.path]


def _admitted(request: Request, runtime: Runtime, rule: Rule) -> Admission:
    try:
        caller = _caller(request, runtime)
    except ProblemError:
        # Who shows nothing that opens is told apart by the address alone.
        _keep_pace(runtime, f"address:{request.client.host if request.client else ''}")
        raise
    _keep_pace(runtime, name_of(caller))
    with runtime.database.read() as session:
        if isinstance(caller, Service):
            return _service(request, session, rule, caller)
        return _person(request, session, rule, caller)


def _keep_pace(runtime: Runtime, caller: str) -> None:
    if (seconds := runtime.paces.take(caller)) > 0:
        raise problems.too_many(seconds)


def _caller(request: Request, runtime: Runtime) -> Caller:
    kind, _, shown = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not shown.strip():
        detail = "Sign in: send the header `Authorization: Bearer …` with an access token or a service's key."
        raise problems.unauthorized(detail, refused=False)
    shown = shown.strip()
    if shown.startswith(api_keys.PREFIX):
        return _holder(runtime, shown)
    if runtime.issuer is None:
        detail = "Only keys of services are let in here: no sign-in service is named (OIDC_ISSUER)."
        raise problems.unauthorized(detail, refused=True)
    try:
        return runtime.issuer.person(shown)
    except TokenRefusedError as error:
        detail = f"The access token is refused: {error}. Sign in again."
        raise problems.unauthorized(detail, refused=True) from None
    except IssuerAwayError:
        detail = "The sign-in service does not answer, so nobody can be told who you are. Try again."
        raise problems.unavailable(detail) from None


def _holder(runtime: Runtime, key: str) -> Service:
    with runtime.database.read() as session:
        service = api_keys.find(session, key)
    if service is None:
        detail = "The key is not known, or was revoked."
        raise problems.unauthorized(detail, refused=True)
    return service


def _service(request: Request, session: Session, rule: Rule, service: Service) -> Admission:
    if rule.scope is None:
        detail = "This is for people; a service cannot ask it."
        raise problems.forbidden(detail)
    if rule.scope not in service.scopes:
        detail = f"The key lacks the scope {rule.scope}."
        raise problems.forbidden(detail)
    org_id = _named(request)
    organization = None if org_id is None else _known(session, org_id, None)
    if rule.about == "current" and organization is None:
        raise problems.no_organization()
    return Admission(
        caller=service,
        request_id=request.state.request_id,
        organization=organization,
        role="service",
        organizations=(),
    )


def _person(request: Request, session: Session, rule: Rule, person: Profile) -> Admission:
    if rule.about == "user" and request.path_params["user_id"] != person.user_id:
        detail = "There is no such user, or it is not you."
        raise problems.not_found(detail)
    own = tuple(queries.seats(session, person.user_id))
    org_id = _named(request)
    organization = (own[0] if own else None) if org_id is None else _known(session, org_id, person.user_id)
    role = organization.role if organization else None
    if not rule.people:
        detail = "This is for services alone."
        raise problems.forbidden(detail)
    if rule.about == "current" and organization is None:
        raise problems.no_organization()
    if rule.about in {"organization", "current"} and role not in rule.roles:
        detail = f"In this organization it is for {' and '.join(sorted(rule.roles))} alone."
        raise problems.forbidden(detail)
    return Admission(
        caller=person,
        request_id=request.state.request_id,
        organization=organization,
        role=role,
        organizations=own,
    )


def _named(request: Request) -> str | None:
    """The organization that the path names, else the header."""
    return request.path_params.get("org_id") or request.headers.get(HEADER)


def _known(session: Session, org_id: str, user_id: str | None) -> Entry:
    found = queries.entry(session, org_id, user_id) if ID_PATTERN.fullmatch(org_id) else None
    if found is None:
        raise problems.no_organization()
    return found
