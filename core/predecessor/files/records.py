"""What is read from the old store's files, and what is found out about them on the way."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeAlias

OnBytes: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class FilePosition:
    """Where something stands: lines count from 1, bytes from 0."""

    file: str
    line: int
    byte: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass(frozen=True, slots=True)
class OldOrganization:
    """``created_at`` is None where the file holds no date. Equality looks at the content, not at the place."""

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
    """``joined_at`` is None where the file holds no date. Equality looks at the content, not at the place."""

    org_id: str
    user_id: str
    role: str
    joined_at: datetime | None
    position: FilePosition = field(compare=False)


@dataclass(frozen=True, slots=True)
class FileFinding:
    """A loss is what the file does not hold any more, or holds beyond use; a repair is what was read differently."""

    kind: Literal["loss", "repair"]
    reason: str
    position: FilePosition
    subject: str | None = None


class UnreadableFileError(Exception):
    """The file cannot be read as what it was given for; the message names it and the way out."""


class UnwritableFileError(Exception):
    """The file cannot be written; what stood there before stands there still."""
