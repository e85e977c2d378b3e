"""How a request changes something: one transaction, in the caller's name, and a POST under an Idempotency-Key once.

The answer of a POST is stored with its change. The same key with the same request is given that answer again, byte for
byte; with another one it is refused. What failed changed nothing and may be asked again under its key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Annotated, Final, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel

from api import problems
from api.auth.authorization import TheAdmission, rule_of
from api.context import TheRuntime
from core.access import idempotency, users
from core.access.idempotency import Answer, Question
from core.access.users import Profile
from core.db.models.organizations import Organization
from core.events.event_types import Change
from core.organizations import commands

REPLAYED: Final = "Idempotent-Replayed"
Result = TypeVar("Result")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="Yours, for this one request: a repeat within a day is answered as the first was.",
    ),
]


class Writer:
    """Makes the changes of one request."""

    def __init__(self, request: Request, runtime: TheRuntime, admission: TheAdmission) -> None:
        self._request, self._runtime, self._admission = request, runtime, admission

    def change(self, work: Callable[[Change], Result]) -> Result:
        """Everything that ``work`` does, or nothing. A person who changes something is known by it."""
        caller = self._admission.caller
        with self._runtime.database.write() as session:
            change = Change(session, self._runtime.clock(), self._admission.cause)
            if isinstance(caller, Profile):
                users.remember(change, caller)
            return work(change)

    def once(self, key: str | None, asked: BaseModel, status: int, work: Callable[[Change], BaseModel]) -> Response:
        """The same for a POST. ``asked`` is its body; method, path, organization and it are what the key stands for."""
        if key is None:
            return _response(_answer(status, self.change(work)), replayed=False)
        question = Question(caller=self._admission.name, key=key, fingerprint=self._fingerprint(asked))
        return self.change(lambda change: _once(change, question, status, work))

    def _fingerprint(self, asked: BaseModel) -> str:
        request, seat = self._request, self._admission.organization
        parts = [request.method, request.url.path, asked.model_dump_json()]
        if rule_of(request).about == "current" and seat is not None:
            parts.append(seat.organization.id)  # which the path does not name
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


TheWriter = Annotated[Writer, Depends(Writer)]


def open_organization(change: Change, org_id: str) -> Organization:
    """The organization, locked for this change. Raises ``ProblemError`` for one that is gone or deleted."""
    organization = commands.lock(change.session, org_id)
    if organization is None:
        raise problems.no_organization()
    problems.refuse_deleted(organization)
    return organization


def _once(change: Change, question: Question, status: int, work: Callable[[Change], BaseModel]) -> Response:
    if (earlier := idempotency.earlier(change.session, question, change.now)) is not None:
        return _response(earlier, replayed=True)
    answer = _answer(status, work(change))
    idempotency.keep(change.session, question, answer)
    return _response(answer, replayed=False)


def _answer(status: int, body: BaseModel) -> Answer:
    return Answer(status=status, body=body.model_dump_json())


def _response(answer: Answer, *, replayed: bool) -> Response:
    return Response(answer.body, answer.status, {REPLAYED: "true"} if replayed else None, media_type="application/json")
