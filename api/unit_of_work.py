"""Changes of a request: one transaction, in the caller's name, and once for each Idempotency-Key of a POST.

The caller's authority is checked in that transaction again, because it may have ended since the request came.

The response to a POST is stored with its change. The same key with the same request gets that response again, byte for
byte; with another request it is rejected. A request that failed changed nothing and may be sent again under its key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel

from api import problems
from api.auth.authorization import Principal, PrincipalDep, confirm, rule_of
from api.context import ContextDep
from core.access import idempotency, users
from core.access.idempotency import RequestKey, StoredResponse
from core.access.users import UserProfile
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.organizations import commands

REPLAYED_HEADER: Final = "Idempotent-Replayed"
WorkResult = TypeVar("WorkResult")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="Your key for this request. A repeat within 24 hours gets the first response.",
    ),
]


class UnitOfWork:
    """Makes the changes of one request."""

    def __init__(self, request: Request, context: ContextDep, principal: PrincipalDep) -> None:
        self._request, self._context, self._principal = request, context, principal

    @property
    def principal(self) -> Principal:
        """Within ``work``: the caller as the transaction sees it."""
        return self._principal

    def run(self, work: Callable[[ChangeContext], WorkResult]) -> WorkResult:
        """Commits everything that ``work`` does, or nothing. A user who calls is recorded with it.

        Raises ``ProblemError`` if the caller may not do it any more.
        """
        caller = self._principal.caller
        with self._context.database.write() as session:
            change = ChangeContext(session, self._context.clock(), self._principal.cause)
            if isinstance(caller, UserProfile):
                users.upsert(change, caller)
            self._principal = confirm(session, self._principal, rule_of(self._request), change.now)
            return work(change)

    def run_idempotent(
        self, idempotency_key: str | None, body: BaseModel, status: int, work: Callable[[ChangeContext], BaseModel]
    ) -> Response:
        """As ``run``, for a POST. The key stands for the method, the path, the organization and ``body``."""
        if idempotency_key is None:
            return _to_http_response(_to_stored_response(status, self.run(work)), replayed=False)
        request_key = RequestKey(
            caller=self._principal.name, idempotency_key=idempotency_key, fingerprint=self._request_fingerprint(body)
        )
        return self.run(lambda change: _run_once(change, request_key, status, work))

    def _request_fingerprint(self, body: BaseModel) -> str:
        request, organization = self._request, self._principal.organization
        parts = [request.method, request.url.path, body.model_dump_json()]
        if rule_of(request).path_subject == "current" and organization is not None:
            parts.append(organization.organization.id)  # the path does not name it
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


UnitOfWorkDep = Annotated[UnitOfWork, Depends(UnitOfWork)]


def lock_undeleted_organization(change: ChangeContext, org_id: str) -> Organization:
    """Lock the organization for this change. Raises ``ProblemError`` if it does not exist or is deleted."""
    organization = commands.lock(change.session, org_id)
    if organization is None:
        raise problems.organization_not_found()
    problems.refuse_deleted(organization)
    return organization


def lock_active_organization(change: ChangeContext, org_id: str) -> Organization:
    """As ``lock_undeleted_organization``, for what a suspended organization may not do."""
    organization = lock_undeleted_organization(change, org_id)
    problems.refuse_suspended(organization)
    return organization


def _run_once(
    change: ChangeContext, request_key: RequestKey, status: int, work: Callable[[ChangeContext], BaseModel]
) -> Response:
    if (stored := idempotency.find_or_reserve(change.session, request_key, change.now)) is not None:
        return _to_http_response(stored, replayed=True)
    new_response = _to_stored_response(status, work(change))
    idempotency.store(change.session, request_key, new_response)
    return _to_http_response(new_response, replayed=False)


def _to_stored_response(status: int, body: BaseModel) -> StoredResponse:
    return StoredResponse(status=status, body=body.model_dump_json())


def _to_http_response(stored: StoredResponse, *, replayed: bool) -> Response:
    return Response(
        stored.body, stored.status, {REPLAYED_HEADER: "true"} if replayed else None, media_type="application/json"
    )
