"""What one reconcile of an observed link would do: the steps, or what keeps it from going on. As the link stores it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.ports import planned
from core.ports.errors import ConflictError, ErrorKind, ProviderError
from core.ports.planned import PlannedStep
from core.ports.spec import CUSTOMER_NOT_OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedProblem:
    """Why the link would be parked or on hold, in the words of the refusal."""

    kind: ErrorKind
    code: str | None
    message: str

    @property
    def is_conflict(self) -> bool:
        return self.kind == ConflictError.kind

    @property
    def is_about_theirs(self) -> bool:
        """The organization was deleted, so what is theirs can be neither ended by us nor adopted."""
        return self.code == CUSTOMER_NOT_OURS


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """``version``: of the organization that it is about. ``is_paid``: somebody pays for what this provider sells it.

    Where Stripe charges, Lago has a subscription without a payer, and its amounts change nothing that is paid.
    """

    version: int
    is_paid: bool = True
    steps: tuple[PlannedStep, ...] = ()
    problem: ObservedProblem | None = None


def problem_of(error: ProviderError) -> ObservedProblem:
    return ObservedProblem(kind=error.kind, code=error.code, message=error.message)


def to_json(observation: Observation) -> dict[str, Any]:
    problem = observation.problem
    return {
        "version": observation.version,
        "is_paid": observation.is_paid,
        "steps": [planned.to_json(step) for step in observation.steps],
        "problem": None
        if problem is None
        else {"kind": problem.kind, "code": problem.code, "message": problem.message},
    }


def from_json(stored: Mapping[str, Any] | None) -> Observation | None:
    if stored is None:
        return None
    problem = stored["problem"]
    return Observation(
        version=stored["version"],
        is_paid=stored["is_paid"],
        steps=tuple(planned.from_json(step) for step in stored["steps"]),
        problem=None if problem is None else ObservedProblem(**problem),
    )
