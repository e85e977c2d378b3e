"""The old store's files as it would have written them, byte for byte; a crash leaves what was there."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from core.predecessor.files.records import OldMember, OldOrganization, UnwritableFileError

_BUFFER = 1024 * 1024


def write_organizations(path: Path, organizations: Iterable[OldOrganization]) -> None:
    """Replace the file by one that the old store would have written, byte for byte, or leave it as it was.

    Raises UnwritableFileError; what the iterable raises passes through.
    """
    with _replacing(path) as write:
        mark = "{\n"
        for organization in organizations:
            write(f"{mark}  {_json(organization.id)}: {{\n{_organization_fields(organization)}\n  }}")
            mark = ",\n"
        write("{}" if mark == "{\n" else "\n}")


def write_members(path: Path, lists: Iterable[tuple[str, Iterable[OldMember]]]) -> None:
    """As ``write_organizations``, from pairs of an organization's id and its members; an empty list is kept."""
    with _replacing(path) as write:
        mark = "{\n"
        for org_id, members in lists:
            write(f"{mark}  {_json(org_id)}: [")
            inner = "\n"
            for member in members:
                write(f"{inner}    {{\n{_member_fields(member)}\n    }}")
                inner = ",\n"
            write("]" if inner == "\n" else "\n  ]")
            mark = ",\n"
        write("{}" if mark == "{\n" else "\n}")


@contextmanager
def _replacing(path: Path) -> Iterator[Callable[[str], None]]:
    """Writes beside the file and renames at the very end, so that a crash leaves what was there."""
    target = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise UnwritableFileError(_cannot_write(path, error)) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n", buffering=_BUFFER) as file:

            def write(text: str) -> None:
                try:
                    file.write(text)
                except OSError as error:
                    raise UnwritableFileError(_cannot_write(path, error)) from error

            yield write
            try:
                file.flush()
                os.fsync(descriptor)
                if target.exists():
                    temporary.chmod(target.stat().st_mode & 0o777)
                temporary.replace(target)
                _sync_directory(target.parent)
            except OSError as error:
                raise UnwritableFileError(_cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> str:
    return f"{path} cannot be written ({error.strerror or error}): choose another folder or make room."


_json = json.JSONEncoder().encode


def _fields(indent: str, pairs: Iterable[tuple[str, str | None]]) -> str:
    """The inside of an object as ``json.dump(..., indent=2)`` lays it out; json itself is slow when it indents."""
    return ",\n".join(f'{indent}"{name}": {_json(value)}' for name, value in pairs)


def _organization_fields(organization: OldOrganization) -> str:
    return _fields(
        " " * 4,
        (
            ("id", organization.id),
            ("name", organization.name),
            ("created_at", _written(organization.created_at)),
            ("plan_tier", organization.plan_tier),
            ("lago_customer_id", organization.lago_customer_id),
            ("stripe_customer_id", organization.stripe_customer_id),
            ("status", organization.status),
        ),
    )


def _member_fields(member: OldMember) -> str:
    return _fields(
        " " * 6,
        (
            ("org_id", member.org_id),
            ("user_id", member.user_id),
            ("role", member.role),
            ("joined_at", _written(member.joined_at)),
        ),
    )


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else str(moment.astimezone(UTC).replace(tzinfo=None))
