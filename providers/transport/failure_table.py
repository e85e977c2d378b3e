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
    ProviderError,
    RejectedError,
    ThrottledError,
    UnavailableError,
    UnsettledError,
)
from core.ports.spec import Provider

Action = Literal["bridge", "retry", "throttle", "reconcile", "park", "stop"]
Status = Annotated[str, Field(pattern=r"^[1-5](\d\d|xx)$")]

# A blip that outlives its bridge is a retry; ``ThrottledError`` is told the wait besides.
ERROR_OF: Final[dict[Action, type[ProviderError]]] = {
    "bridge": UnavailableError,
    "retry": UnavailableError,
    "throttle": ThrottledError,
    "reconcile": UnsettledError,
    "park": RejectedError,
    "stop": MisconfiguredError,
}


class Row(BaseModel):
    """``status`` takes 404 and 4xx alike; empty it fits each, as empty ``words`` do.

    ``only``: a throttle that is about one object, so that nobody but its organization waits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Action
    says: str
    only: Literal["object"] | None = None
    status: frozenset[Status] = frozenset()
    words: frozenset[str] = frozenset()

    @property
    def error(self) -> type[ProviderError]:
        return ObjectThrottledError if self.only == "object" else ERROR_OF[self.action]

    def fits(self, status: int | None, words: Iterable[str]) -> bool:
        return (not self.words or not self.words.isdisjoint(words)) and (
            not self.status or not self.status.isdisjoint({f"{status}", f"{(status or 0) // 100}xx"})
        )


TABLES: Final = TypeAdapter(dict[Provider, tuple[Row, ...]]).validate_python(
    tomllib.loads(Path(__file__).with_name("failures.toml").read_text(encoding="utf-8"))
)
UNLISTED: Final = Row(action="park", says="an unlisted failure, so nothing more is tried; look there, then retry")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed call. ``about`` opens the sentence and ``seen`` ends it: statuses, codes and ids only.

    ``words`` are the biller's codes and ours for what it has no code for; ``status`` is None without an answer.
    """

    provider: Provider
    about: str
    words: tuple[str, ...]
    seen: str
    status: int | None = None
    code: str | None = None
    request_id: str | None = None
    retry_after: float | None = None

    @property
    def row(self) -> Row:
        return next((row for row in TABLES[self.provider] if row.fits(self.status, self.words)), UNLISTED)

    @property
    def is_blip(self) -> bool:
        return self.row.action == "bridge"

    def error(self) -> ProviderError:
        row = self.row
        message = f"{self.about}: {row.says} ({self.seen})"
        kind = row.error
        if issubclass(kind, ThrottledError):
            return kind(self.provider, message, self.code, self.request_id, self.retry_after)
        return kind(self.provider, message, self.code, self.request_id)
