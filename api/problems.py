"""Problem details: every error is returned as an RFC 9457 problem with the request's id.

``type`` names the kind of problem for programs, ``detail`` tells users what to do, and ``help`` names the entry of the
runbook. A request of the wrong form is
rejected by field and reason, without the value, which may be a secret in the wrong place. An error of core may repeat a
value, for example a name that is taken. An unexpected error is a 500 that gives no details; its traceback is in the
log, after the line ``request`` that has the request's id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from core.access.idempotency import IdempotencyKeyReusedError
from core.access.invitations import OwnersInvitationError
from core.access.limits import TooManyInvitationsError, TooManyOrganizationsError
from core.access.received_invitations import InvitationError, InvitationProblem
from core.common import runbook
from core.common.validation import InvalidChangeError
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, is_read_only_error
from core.db.models.organizations import Organization
from core.organizations.commands import NameTakenError
from core.organizations.memberships import AlreadyMemberError, LastOwnerError

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
PROBLEM_TYPE_PREFIX: Final = "urn:billing-sync:problem:"
MAYBE_CHANGED_DETAIL: Final = (
    "The database did not respond in time. The change may have been made. Send the request again with the same "
    "Idempotency-Key; without a key, read the organization first."
)
READ_ONLY_DETAIL: Final = "The database is read-only. No change was made. Send the request again later."
_RETRY_AFTER_SECONDS: Final = 2.0
_READ_METHODS: Final = frozenset({"GET", "HEAD"})
_CONFLICT_KINDS: Final[dict[type[InvalidChangeError], str]] = {
    NameTakenError: "name-taken",
    AlreadyMemberError: "already-member",
    LastOwnerError: "last-owner",
    TooManyInvitationsError: "too-many-invitations",
    TooManyOrganizationsError: "too-many-organizations",
}
_INVITATION_PROBLEMS: Final[dict[InvitationProblem, tuple[HTTPStatus, str]]] = {
    "unknown": (HTTPStatus.NOT_FOUND, "not-found"),
    "unverified": (HTTPStatus.FORBIDDEN, "email-not-verified"),
    "not-yours": (HTTPStatus.FORBIDDEN, "invitation-not-yours"),
    "used": (HTTPStatus.CONFLICT, "invitation-used"),
    "revoked": (HTTPStatus.CONFLICT, "invitation-revoked"),
    "expired": (HTTPStatus.CONFLICT, "invitation-expired"),
    "void": (HTTPStatus.CONFLICT, "invitation-void"),
    "deleted": (HTTPStatus.CONFLICT, "deleted"),
    "suspended": (HTTPStatus.CONFLICT, "suspended"),
}


class FieldError(BaseModel):
    """An invalid part of the request, and what is wrong with it."""

    field: str = Field(examples=["body.name"])
    detail: str = Field(examples=["name cannot be empty"])


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": f"{PROBLEM_TYPE_PREFIX}not-found",
                    "title": "Not found",
                    "status": 404,
                    "detail": "There is no such organization, or you are not a member of it. Check its id.",
                    "help": runbook.problem_entry("not-found"),
                    "request_id": "0c9c8f5e6a4b4f0f8f6f0a1b2c3d4e5f",
                    "errors": [],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    help: str = Field(description="The entry of this kind of problem in the runbook, as a path in the repository.")
    request_id: str
    errors: list[FieldError]


class ProblemError(Exception):
    """Ends a request with a problem. ``kind`` is the last part of the problem's ``type``."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, kind, detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.errors, self.headers = list(errors), headers or {}


def unauthorized(detail: str, *, invalid_token: bool) -> ProblemError:
    """``invalid_token``: a credential was sent but is not valid; otherwise none was sent."""
    challenge = 'Bearer realm="billing-sync"' + (', error="invalid_token"' if invalid_token else "")
    return ProblemError(HTTPStatus.UNAUTHORIZED, "unauthorized", detail, headers={"WWW-Authenticate": challenge})


def forbidden(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.FORBIDDEN, "forbidden", detail)


def organization_not_found() -> ProblemError:
    """The same detail for an organization that does not exist and for one that the caller may not see."""
    return ProblemError(
        HTTPStatus.NOT_FOUND,
        "not-found",
        "There is no such organization, or you are not a member of it. Check its id.",
    )


def not_found(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.NOT_FOUND, "not-found", detail)


def conflict(kind: str, detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.CONFLICT, kind, detail)


def refuse_deleted(organization: Organization) -> None:
    """Raises ``ProblemError`` if the organization is deleted."""
    if organization.status == "deleted":
        raise conflict("deleted", "The organization is deleted. A service can reactivate it by setting its status.")


def refuse_suspended(organization: Organization) -> None:
    """Raises ``ProblemError`` if the organization is suspended. Reading, billing details and leaving go on."""
    if organization.status == "suspended":
        detail = (
            "The organization is suspended: its plan and its members cannot be changed. A service can reactivate it."
        )
        raise conflict("suspended", detail)


def unprocessable(field: str, detail: str) -> ProblemError:
    return ProblemError(
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid-request",
        f"{field}: {detail}",
        [FieldError(field=field, detail=detail)],
    )


def too_many_requests(retry_after: float) -> ProblemError:
    """``retry_after``: seconds until the caller may send another request."""
    detail = "Rate limit exceeded. Retry after the number of seconds in Retry-After. No change was made."
    return ProblemError(
        HTTPStatus.TOO_MANY_REQUESTS, "too-many-requests", detail, headers={"Retry-After": str(math.ceil(retry_after))}
    )


def unavailable(detail: str, retry_after: float = _RETRY_AFTER_SECONDS) -> ProblemError:
    """``retry_after``: seconds."""
    return ProblemError(
        HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", detail, headers={"Retry-After": str(math.ceil(retry_after))}
    )


def install(app: FastAPI) -> None:
    """Have every error of this app returned as a problem."""
    expected = (
        ProblemError,
        RequestValidationError,
        HTTPException,
        InvalidChangeError,
        InvitationError,
        OwnersInvitationError,
        IdempotencyKeyReusedError,
    )
    for kind in (*expected, *DATABASE_UNAVAILABLE_ERRORS, Exception):
        app.add_exception_handler(kind, _handle_error)


def _handle_error(request: Request, error: Exception) -> Response:
    problem = _to_problem(error, is_read=request.method in _READ_METHODS)
    return response(problem, str(request.scope.get("state", {}).get("request_id", "")))


def response(problem: ProblemError, request_id: str) -> Response:
    body = Problem(
        type=f"{PROBLEM_TYPE_PREFIX}{problem.kind}",
        title=problem.status.phrase,
        status=problem.status,
        detail=problem.detail,
        help=runbook.problem_entry(problem.kind),
        request_id=request_id,
        errors=problem.errors,
    )
    return Response(body.model_dump_json(), problem.status, problem.headers, PROBLEM_MEDIA_TYPE)


def _to_problem(error: Exception, *, is_read: bool) -> ProblemError:
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, DATABASE_UNAVAILABLE_ERRORS):
        return _database_unavailable(error, is_read=is_read)
    match error:
        case RequestValidationError() | InvalidChangeError() | IdempotencyKeyReusedError():
            return _client_error(error)
        case InvitationError() | OwnersInvitationError():
            return _invitation_problem(error)
        case HTTPException():
            return _framework_problem(HTTPStatus(error.status_code), error.headers)
    return ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "Internal error. Report it with the request_id.")


def _database_unavailable(error: Exception, *, is_read: bool) -> ProblemError:
    """If the connection is lost during the commit, nobody can say whether the change was made."""
    if is_read_only_error(error):
        return unavailable(READ_ONLY_DETAIL)
    if is_read:
        return unavailable("The database did not respond in time. Send the request again.")
    return unavailable(MAYBE_CHANGED_DETAIL)


def _client_error(error: RequestValidationError | InvalidChangeError | IdempotencyKeyReusedError) -> ProblemError:
    match error:
        case RequestValidationError():
            return _validation_problem(error)
        case IdempotencyKeyReusedError():
            return unprocessable("Idempotency-Key", "this key was used for another request; send a new key")
    return _change_problem(error)


def _invitation_problem(error: InvitationError | OwnersInvitationError) -> ProblemError:
    if isinstance(error, OwnersInvitationError):
        return forbidden(str(error))
    return ProblemError(*_INVITATION_PROBLEMS[error.problem], str(error))


def _validation_problem(error: RequestValidationError) -> ProblemError:
    """Names the fields and the reasons, never a value: it may be a secret in the wrong place."""
    errors = [FieldError(field=".".join(map(str, item["loc"])), detail=item["msg"]) for item in error.errors()]
    detail = "; ".join(f"{item.field}: {item.detail}" for item in errors[:3])
    return ProblemError(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid-request", detail, errors)


def _change_problem(error: InvalidChangeError) -> ProblemError:
    """An error that core raised: a conflict with existing data, or an invalid value."""
    for error_class, problem_kind in _CONFLICT_KINDS.items():
        if isinstance(error, error_class):
            errors = [FieldError(field=error.field, detail=str(error))]
            return ProblemError(HTTPStatus.CONFLICT, problem_kind, str(error), errors)
    return unprocessable(error.field, str(error))


def _framework_problem(status: HTTPStatus, headers: object) -> ProblemError:
    """An error that the framework raised itself: no such path, no such method."""
    if status is HTTPStatus.BAD_REQUEST:
        return unprocessable("body", "must be JSON in UTF-8")
    problem_headers = {str(name): str(value) for name, value in headers.items()} if isinstance(headers, dict) else {}
    detail = "There is no such path." if status is HTTPStatus.NOT_FOUND else status.phrase
    return ProblemError(status, status.phrase.lower().replace(" ", "-"), detail, headers=problem_headers)
