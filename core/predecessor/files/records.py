"""Records and findings read from the predecessor store's files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

OnBytes: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FilePosition:
    """A position in a file: lines count from 1, bytes from 0."""

    file: str
    line: int
    byte: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass(frozen=True, slots=True)
class OldOrganization:
    """``created_at`` is None if the file has no date. Two records are equal if their content is, at any position."""

    id: str
    name: str
    created_at: datetime | None
    plan_tier: str
    lago_customer_id: str | None
    stripe_customer_id: str | None
    status: str
    position: FilePosition = field(compare=False)


@dataclass(frozen=True, slots=True)
class OldMember:
    """``joined_at`` is None if the file has no date. Two records are equal if their content is, at any position."""

    org_id: str
    user_id: str
    role: str
    joined_at: datetime | None
    position: FilePosition = field(compare=False)


@dataclass(frozen=True, slots=True)
class FileFinding:
    """A loss: data that is gone from the file or unusable. A repair: data that was read differently than written."""

    kind: Literal["loss", "repair"]
    reason: str
    position: FilePosition
    subject: str | None = None


class UnreadableFileError(Exception):
    """The file cannot be read, or is the wrong one. The message names it and says what to do."""


class UnwritableFileError(Exception):
    """The file cannot be written. An earlier file at its path is unchanged."""
