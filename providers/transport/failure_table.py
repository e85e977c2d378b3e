"""The failure table: what is done about each failure of a provider. The rules are in ``failures.toml`` in this folder.

The first rule that matches decides. A failure that no rule matches parks the link, so nothing is repeated blindly. The
messages are ours, because the providers' own texts repeat names and addresses. Of a response only the status, codes,
field names and ids are shown.
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
    NotYetAllowedError,
    ObjectThrottledError,
    OutcomeUnknownError,
    ProviderError,
    RejectedError,
    ThrottledError,
    UnavailableError,
)
from core.ports.spec import Provider

FailureAction = Literal["retry_inline", "retry_later", "await", "throttle", "verify_first", "park", "trip_breaker"]
StatusPattern = Annotated[str, Field(pattern=r"^[1-5](\d\d|xx)$")]

# A transient error that outlasts its inline retries is retried later. ``ThrottledError`` also has the wait.
ERROR_BY_ACTION: Final[dict[FailureAction, type[ProviderError]]] = {
    "retry_inline": UnavailableError,
    "retry_later": UnavailableError,
    "await": NotYetAllowedError,
    "throttle": ThrottledError,
    "verify_first": OutcomeUnknownError,
    "park": RejectedError,
    "trip_breaker": MisconfiguredError,
}


class FailureRule(BaseModel):
    """``status`` holds single statuses (404) and classes (4xx). An empty ``status`` or ``match`` matches everything.

    ``scope`` "object" is a throttle that concerns one object, so that only its organization waits.
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
    action="park",
    message=(
        "an unlisted failure, so it is not retried; check the provider's dashboard, then run `billing-sync retry ORG`"
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed call. ``context`` begins the message and ``details`` ends it: statuses, codes and ids only.

    ``codes`` are the provider's own, and ours where it has none. ``status`` is None without a response.
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
