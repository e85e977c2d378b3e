"""Authorization before a route runs: who calls, for which organization, and whether the permission table allows it.

The request's state then has ``organization``, ``role`` and ``organizations``. The organization is the one that the path
names, else the one of ``X-Organization-ID``, else the caller's first. Membership is looked up at every request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated, Final, Literal

from fastapi import Depends, Request
from sqlalchemy.orm import Session
from starlette.routing import Route

from api import problems
from api.auth.permissions import PERMISSIONS, PermissionRule
from api.connections import connection_address
from api.context import ApiContext, ContextDep
from api.issuer_client import IssuerUnavailableError
from api.oidc import InvalidTokenError, UnknownKeyError
from api.problems import ProblemError
from core.access import api_keys
from core.access.api_keys import ServiceCaller
from core.access.users import UserProfile
from core.db.models.organizations import MembershipRole
from core.events.event_types import Cause
from core.organizations import commands, queries
from core.organizations.queries import OrganizationRow
from core.organizations.validation import ORGANIZATION_ID_PATTERN

ORGANIZATION_HEADER: Final = "X-Organization-ID"
API_EVENT_SOURCE: Final = "api"
_SUBJECTS_WITH_ROLE: Final = frozenset({"organization", "current"})
_UNKNOWN_KEY: Final = (
    "The access token may be signed with a new key of the sign-in service, which the API has not fetched yet. Send the "
    "request again after the number of seconds in Retry-After."
)
ISSUER_UNAVAILABLE_DETAIL: Final = (
    "The sign-in service does not respond as expected, so your token cannot be checked. Send the request again later. "
    "An operator finds the reason in the log of the API and with `billing-sync doctor`."
)
_KEY_NOT_VALID: Final = "The API key is unknown, has been revoked or has expired."

Caller = UserProfile | ServiceCaller
CallerRole = MembershipRole | Literal["service"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """An authorized caller. ``organizations`` are a user's own; a service has none and sees what its scopes allow."""

    caller: Caller
    request_id: str
    organization: OrganizationRow | None
    role: CallerRole
    organizations: tuple[OrganizationRow, ...]

    @property
    def user_id(self) -> str | None:
        """``None``: a service calls."""
        return self.caller.user_id if isinstance(self.caller, UserProfile) else None

    @property
    def name(self) -> str:
        """Distinguishes callers, and users from services."""
        return caller_name(self.caller)

    @property
    def cause(self) -> Cause:
        return Cause(
            actor=self.caller.user_id if isinstance(self.caller, UserProfile) else self.name,
            source=API_EVENT_SOURCE,
            caused_by=f"request:{self.request_id}",
            key_id=None if isinstance(self.caller, UserProfile) else self.caller.key_id,
        )

    @property
    def service(self) -> ServiceCaller:
        """For routes that no user may call."""
        if isinstance(self.caller, UserProfile):
            message = "the permission table lets a user call this route"
            raise TypeError(message)
        return self.caller


def caller_name(caller: Caller) -> str:
    """All keys of a service account are one caller: a repeat with another key finds the response of the first."""
    return f"user:{caller.user_id}" if isinstance(caller, UserProfile) else f"service:{caller.account_id}"


async def prepare_token(request: Request, context: ContextDep) -> None:
    """Runs before ``authorize``. If the sign-in service must be called, the request waits for it without a thread."""
    credential = _credential(request)
    if context.issuer is None or credential.startswith(api_keys.API_KEY_PREFIX) or rule_of(request).public:
        return
    await context.issuer.prepare(credential)


def authorize(request: Request, context: ContextDep) -> None:
    """Runs for every route. Raises ``ProblemError``: 401, 403, 404, 429, or 503 if the sign-in service is down."""
    rule = rule_of(request)
    if rule.public:
        if not rule.is_unlimited:
            _check_rate_limit(context, _address(request))
        return
    principal = _authorize(request, context, rule)
    request.state.principal = principal
    request.state.organization = principal.organization
    request.state.role = principal.role
    request.state.organizations = principal.organizations


def authorize_again(request: Request, context: ApiContext) -> Principal:
    """The same question once more, for a request that waits. It does not count as another request."""
    caller = _authenticate(request, context)
    with context.database.read() as session:
        return _principal(request, session, rule_of(request), caller)


def confirm(session: Session, principal: Principal, rule: PermissionRule, now: datetime) -> Principal:
    """The principal as the transaction that writes sees it. Call it before anything is changed.

    Raises ``ProblemError`` if the caller has lost the membership, the role, the key or its scope meanwhile. Then the
    organization's row or the key's is locked, so they stay as they are until the transaction ends.
    """
    if isinstance(principal.caller, ServiceCaller):
        service = api_keys.lock(session, principal.caller.key_id, now)
        if service is None:
            raise problems.unauthorized(_KEY_NOT_VALID, invalid_token=True)
        _refuse_missing_scope(rule, service)
        return replace(principal, caller=service)
    if principal.organization is None or rule.path_subject not in _SUBJECTS_WITH_ROLE:
        return principal
    org_id = principal.organization.organization.id
    commands.lock(session, org_id)
    organization = _visible_organization(session, org_id, principal.caller.user_id)
    _refuse_other_role(rule, organization.role)
    return replace(principal, organization=organization, role=organization.role)


async def get_principal(request: Request) -> Principal:
    """Async, so that it needs no thread."""
    principal = request.state.principal
    if not isinstance(principal, Principal):
        message = "a public route has no principal"
        raise TypeError(message)
    return principal


PrincipalDep = Annotated[Principal, Depends(get_principal)]


def rule_of(request: Request) -> PermissionRule:
    route = request.scope["route"]
    if not isinstance(route, Route):
        message = f"{type(route).__name__} is not a route of the permission table"
        raise TypeError(message)
    return PERMISSIONS[request.method, route.path]


def _authorize(request: Request, context: ApiContext, rule: PermissionRule) -> Principal:
    try:
        caller = _authenticate(request, context)
    except ProblemError:
        _check_rate_limit(context, _address(request))
        raise
    _check_rate_limit(context, caller_name(caller))
    with context.database.read() as session:
        return _principal(request, session, rule, caller)


def _principal(request: Request, session: Session, rule: PermissionRule, caller: Caller) -> Principal:
    if isinstance(caller, ServiceCaller):
        return _authorize_service(request, session, rule, caller)
    return _authorize_user(request, session, rule, caller)


def _address(request: Request) -> str:
    """Callers without a valid credential are distinguished by their address alone."""
    return f"address:{connection_address(request.client.host if request.client else '')}"


def _check_rate_limit(context: ApiContext, caller: str) -> None:
    if (retry_after := context.rate_limiter.acquire(caller)) > 0:
        raise problems.too_many_requests(retry_after)


def _credential(request: Request) -> str:
    """Empty if the request has none."""
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""


def _authenticate(request: Request, context: ApiContext) -> Caller:
    credential = _credential(request)
    if not credential:
        detail = "Send the header `Authorization: Bearer …` with an access token or an API key."
        raise problems.unauthorized(detail, invalid_token=False)
    if credential.startswith(api_keys.API_KEY_PREFIX):
        return _authenticate_key(context, credential)
    if context.issuer is None:
        detail = "Only API keys are accepted: no sign-in service is configured (OIDC_ISSUER)."
        raise problems.unauthorized(detail, invalid_token=True)
    try:
        return context.issuer.verify_access_token(credential)
    except InvalidTokenError as error:
        detail = f"The access token was rejected: {error}. Sign in again."
        raise problems.unauthorized(detail, invalid_token=True) from None
    except UnknownKeyError as error:
        raise problems.unavailable(_UNKNOWN_KEY, error.retry_after) from None
    except IssuerUnavailableError:
        raise problems.unavailable(ISSUER_UNAVAILABLE_DETAIL) from None


def _authenticate_key(context: ApiContext, api_key: str) -> ServiceCaller:
    with context.database.read() as session:
        service = api_keys.find(session, api_key, context.clock())
    if service is None:
        raise problems.unauthorized(_KEY_NOT_VALID, invalid_token=True)
    return service


def _authorize_service(request: Request, session: Session, rule: PermissionRule, service: ServiceCaller) -> Principal:
    _refuse_missing_scope(rule, service)
    org_id = _requested_org_id(request)
    organization = None if org_id is None else _visible_organization(session, org_id, None)
    if rule.path_subject == "current" and organization is None:
        detail = f"An API key belongs to no organization. Send the header {ORGANIZATION_HEADER} with the id of one."
        raise problems.not_found(detail)
    return Principal(
        caller=service,
        request_id=request.state.request_id,
        organization=organization,
        role="service",
        organizations=(),
    )


def _authorize_user(request: Request, session: Session, rule: PermissionRule, user: UserProfile) -> Principal:
    if rule.path_subject == "user" and request.path_params["user_id"] != user.user_id:
        detail = "There is no such user, or the user is not you."
        raise problems.not_found(detail)
    organizations = tuple(queries.memberships_of_user(session, user.user_id))
    org_id = _requested_org_id(request)
    organization = (
        (organizations[0] if organizations else None)
        if org_id is None
        else _visible_organization(session, org_id, user.user_id)
    )
    role = organization.role if organization else None
    if not rule.allows_users:
        detail = "This route is for services only."
        raise problems.forbidden(detail)
    if rule.path_subject == "current" and organization is None:
        detail = "You are not a member of any organization. Create one, or accept an invitation to one."
        raise problems.not_found(detail)
    if rule.path_subject in _SUBJECTS_WITH_ROLE:
        _refuse_other_role(rule, role)
    return Principal(
        caller=user,
        request_id=request.state.request_id,
        organization=organization,
        role=role,
        organizations=organizations,
    )


def _refuse_missing_scope(rule: PermissionRule, service: ServiceCaller) -> None:
    if rule.scope is None:
        detail = "This route is for users; an API key cannot call it."
        raise problems.forbidden(detail)
    if rule.scope not in service.scopes:
        detail = (
            f"The API key lacks the scope {rule.scope}. Create another key with it: "
            f"`billing-sync keys create NAME --scope {rule.scope}`."
        )
        raise problems.forbidden(detail)


def _refuse_other_role(rule: PermissionRule, role: MembershipRole | None) -> None:
    if role not in rule.roles:
        detail = f"This requires the role {' or '.join(sorted(rule.roles))} in this organization."
        raise problems.forbidden(detail)


def _requested_org_id(request: Request) -> str | None:
    """The organization that the path names, else the header."""
    return request.path_params.get("org_id") or request.headers.get(ORGANIZATION_HEADER)


def _visible_organization(session: Session, org_id: str, user_id: str | None) -> OrganizationRow:
    organization = (
        queries.find_organization(session, org_id, user_id) if ORGANIZATION_ID_PATTERN.fullmatch(org_id) else None
    )
    if organization is None:
        raise problems.organization_not_found()
    return organization
