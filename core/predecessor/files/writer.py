"""Writes the predecessor store's files byte for byte in its format. A crash leaves the earlier file intact."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from core.predecessor.files.records import OldMember, OldOrganization, UnwritableFileError

_WRITE_BUFFER_BYTES = 1024 * 1024


def write_organizations(path: Path, organizations: Iterable[OldOrganization]) -> None:
    """Replaces the file by one as the predecessor would have written it, byte for byte; on an error it stays as it was.

    Raises ``UnwritableFileError``, and what the iterable raises.
    """
    with _atomic_replace(path) as write:
        separator = "{\n"
        for organization in organizations:
            write(f"{separator}  {_to_json(organization.id)}: {{\n{_format_organization(organization)}\n  }}")
            separator = ",\n"
        write("{}" if separator == "{\n" else "\n}")


def write_members(path: Path, member_lists: Iterable[tuple[str, Iterable[OldMember]]]) -> None:
    """Like ``write_organizations``, from pairs of an organization's id and its members; writes empty lists, too."""
    with _atomic_replace(path) as write:
        separator = "{\n"
        for org_id, members in member_lists:
            write(f"{separator}  {_to_json(org_id)}: [")
            member_separator = "\n"
            for member in members:
                write(f"{member_separator}    {{\n{_format_member(member)}\n    }}")
                member_separator = ",\n"
            write("]" if member_separator == "\n" else "\n  ]")
            separator = ",\n"
        write("{}" if separator == "{\n" else "\n}")


@contextmanager
def _atomic_replace(path: Path) -> Iterator[Callable[[str], None]]:
    """Writes a temporary file and renames it at the end, so that a crash leaves the earlier file intact."""
    target = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise UnwritableFileError(_write_error_message(path, error)) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n", buffering=_WRITE_BUFFER_BYTES) as file:

            def write(text: str) -> None:
                try:
                    file.write(text)
                except OSError as error:
                    raise UnwritableFileError(_write_error_message(path, error)) from error

            yield write
            try:
                file.flush()
                os.fsync(descriptor)
                if target.exists():
                    temporary.chmod(target.stat().st_mode & 0o777)
                temporary.replace(target)
                _sync_directory(target.parent)
            except OSError as error:
                raise UnwritableFileError(_write_error_message(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error_message(path: Path, error: OSError) -> str:
    return f"{path} cannot be written ({error.strerror or error}): choose another folder or free some space."


_to_json = json.JSONEncoder().encode


def _format_fields(indent: str, pairs: Iterable[tuple[str, str | None]]) -> str:
    """The inside of an object as ``json.dump(..., indent=2)`` formats it. ``json`` itself is slow when it indents."""
    return ",\n".join(f'{indent}"{name}": {_to_json(value)}' for name, value in pairs)


def _format_organization(organization: OldOrganization) -> str:
    return _format_fields(
        " " * 4,
        (
            ("id", organization.id),
            ("name", organization.name),
            ("created_at", _format_timestamp(organization.created_at)),
            ("plan_tier", organization.plan_tier),
            ("lago_customer_id", organization.lago_customer_id),
            ("stripe_customer_id", organization.stripe_customer_id),
            ("status", organization.status),
        ),
    )


def _format_member(member: OldMember) -> str:
    return _format_fields(
        " " * 6,
        (
            ("org_id", member.org_id),
            ("user_id", member.user_id),
            ("role", member.role),
            ("joined_at", _format_timestamp(member.joined_at)),
        ),
    )


def _format_timestamp(timestamp: datetime | None) -> str | None:
    return None if timestamp is None else str(timestamp.astimezone(UTC).replace(tzinfo=None))
