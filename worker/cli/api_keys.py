"""Service accounts: keys that open the API for other systems, each with its scopes."""

from __future__ import annotations

from typing import Annotated

import typer

from core.access import api_keys
from core.access.api_keys import SCOPES, ApiKeyInfo
from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from worker.cli import output, resources
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column


def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which service it is for.")],
    *,
    scope: Annotated[list[str], typer.Option(help=f"May be given more than once: {', '.join(SCOPES)}.")],
    as_json: output.JsonOption = False,
) -> None:
    """Make a key and print it, this one time: only its hash is kept.

    JSON: {"id", "name", "scopes", "created_at", "revoked_at", "key"}
    """
    with resources.open_database() as database, database.write() as session:
        try:
            report, key = api_keys.create(session, name, scope, utc_now())
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
    if as_json:
        output.show_json({**_key_json(report), "key": key})
        return
    output.stderr_console().print(f"Key {report.id} of {report.name}. Keep what follows secret; it is not shown again.")
    typer.echo(key)


def list_keys(*, as_json: output.JsonOption = False) -> None:
    """List the keys, the revoked ones too; none of them can be shown again.

    JSON: {"keys": [{"id", "name", "scopes", "created_at", "revoked_at"}]}
    """
    with resources.open_database() as database, database.read() as session:
        found = api_keys.list_all(session)
    if as_json:
        output.show_json({"keys": [_key_json(report) for report in found]})
        return
    if not found:
        output.show("There are no keys: `billing-sync keys create` makes one.")
        return
    output.show(output.table(found, _key_columns()))


def revoke_key(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")]) -> None:
    """End a key: it opens nothing from now on."""
    with resources.open_database() as database, database.write() as session:
        found = api_keys.revoke(session, key_id, utc_now())
    if not found:
        message = f"there is no key {key_id!r}; `billing-sync keys list` shows all"
        raise UsageError(message)
    output.show(f"Key {key_id} opens nothing any more.")


def _key_json(report: ApiKeyInfo) -> dict[str, object]:
    return {
        "id": report.id,
        "name": report.name,
        "scopes": report.scopes,
        "created_at": report.created_at,
        "revoked_at": report.revoked_at,
    }


def _key_columns() -> list[Column[ApiKeyInfo]]:
    now = utc_now()
    return [
        Column("id", lambda row: row.id),
        Column("name", lambda row: row.name, kind="fold"),
        Column("scopes", lambda row: ", ".join(row.scopes), kind="fold"),
        Column("made", lambda row: output.relative_time(row.created_at, now)),
        Column("revoked", lambda row: output.relative_time(row.revoked_at, now) if row.revoked_at else None),
    ]
