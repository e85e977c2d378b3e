"""What is done about each failure of a biller: ``failures.toml`` beside this file says it, and is followed here.

The first row that fits decides, and what no row knows parks: nothing is repeated blindly. The sentences are ours, as
the billers' own texts repeat names and addresses; of an answer only the status, codes, field names and ids are shown.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from core.ports.errors import (
    MisconfiguredError,
    ObjectThrottledError,
    OutcomeUnknownError,
    ProviderError,
    RejectedError,
    ThrottledError,
    UnavailableError,
)
from core.ports.spec import Provider

FailureAction = Literal["retry_inline", "retry_later", "throttle", "verify_first", "park", "trip_breaker"]
StatusPattern = Annotated[str, Field(pattern=r"^[1-5](\d\d|xx)$")]

# A blip that outlives its bridge is a retry; ``ThrottledError`` is told the wait besides.
ERROR_BY_ACTION: Final[dict[FailureAction, type[ProviderError]]] = {
    "retry_inline": UnavailableError,
    "retry_later": UnavailableError,
    "throttle": ThrottledError,
    "verify_first": OutcomeUnknownError,
    "park": RejectedError,
    "trip_breaker": MisconfiguredError,
}


class FailureRule(BaseModel):
    """``status`` takes 404 and 4xx alike; empty it fits each, as empty ``words`` do.

    ``only``: a throttle that is about one object, so that nobody but its organization waits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: FailureAction
    message: str
    scope: Literal["object"] | None = None
    status: frozenset[StatusPattern] = frozenset()
    match: frozenset[str] = frozenset()

    @property
    def error_class(self) -> type[ProviderError]:
        return ObjectThrottledError if self.scope == "object" else ERROR_BY_ACTION[self.action]

    def matches(self, status: int | None, codes: Iterable[str]) -> bool:
        return (not self.match or not self.match.isdisjoint(codes)) and (
            not self.status or not self.status.isdisjoint({f"{status}", f"{(status or 0) // 100}xx"})
        )


FAILURE_RULES: Final = TypeAdapter(dict[Provider, tuple[FailureRule, ...]]).validate_python(
    tomllib.loads(Path(__file__).with_name("failures.toml").read_text(encoding="utf-8"))
)
DEFAULT_RULE: Final = FailureRule(
    action="park", message="an unlisted failure, so nothing more is tried; look there, then retry"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed call. ``about`` opens the sentence and ``seen`` ends it: statuses, codes and ids only.

    ``words`` are the biller's codes and ours for what it has no code for; ``status`` is None without an answer.
    """

    provider: Provider
    context: str
    codes: tuple[str, ...]
    details: str
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    retry_after: float | None = None

    @property
    def rule(self) -> FailureRule:
        return next(
            (rule for rule in FAILURE_RULES[self.provider] if rule.matches(self.status, self.codes)), DEFAULT_RULE
        )

    @property
    def may_retry_inline(self) -> bool:
        return self.rule.action == "retry_inline"

    def to_error(self) -> ProviderError:
        rule = self.rule
        message = f"{self.context}: {rule.message} ({self.details})"
        error_class = rule.error_class
        if issubclass(error_class, ThrottledError):
            return error_class(self.provider, message, self.code, self.request_id, self.retry_after)
        return error_class(self.provider, message, self.code, self.request_id)
