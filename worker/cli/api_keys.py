"""Service accounts: keys that open the API for other systems, each with its scopes."""

from __future__ import annotations

from typing import Annotated

import typer

from core.access import api_keys
from core.access.api_keys import SCOPES, KeyReport
from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from worker.cli import output, resources
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which service it is for.")],
    *,
    scope: Annotated[list[str], typer.Option(help=f"May be given more than once: {', '.join(SCOPES)}.")],
    as_json: output.AsJson = False,
) -> None:
    """Make a key and print it, this one time: only its hash is kept.

    JSON: {"id", "name", "scopes", "created_at", "revoked_at", "key"}
    """
    with resources.store() as database, database.write() as session:
        try:
            report, key = api_keys.create(session, name, scope, utc_now())
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
    if as_json:
        output.show_json({**_document(report), "key": key})
        return
    output.notes().print(f"Key {report.id} of {report.name}. Keep what follows secret; it is not shown again.")
    typer.echo(key)


def show(*, as_json: output.AsJson = False) -> None:
    """List the keys, the revoked ones too; none of them can be shown again.

    JSON: {"keys": [{"id", "name", "scopes", "created_at", "revoked_at"}]}
    """
    with resources.store() as database, database.read() as session:
        found = api_keys.every(session)
    if as_json:
        output.show_json({"keys": [_document(report) for report in found]})
        return
    if not found:
        output.show("There are no keys: `billing-sync keys create` makes one.")
        return
    output.show(output.table(found, _columns()))


def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")]) -> None:
    """End a key: it opens nothing from now on."""
    with resources.store() as database, database.write() as session:
        known = api_keys.revoke(session, key_id, utc_now())
    if not known:
        message = f"there is no key {key_id!r}; `billing-sync keys list` shows all"
        raise UsageError(message)
    output.show(f"Key {key_id} opens nothing any more.")


def _document(report: KeyReport) -> dict[str, object]:
    return {
        "id": report.id,
        "name": report.name,
        "scopes": report.scopes,
        "created_at": report.created_at,
        "revoked_at": report.revoked_at,
    }


def _columns() -> list[Column[KeyReport]]:
    now = utc_now()
    return [
        Column("id", lambda row: row.id),
        Column("name", lambda row: row.name, kind="fold"),
        Column("scopes", lambda row: ", ".join(row.scopes), kind="fold"),
        Column("made", lambda row: output.age(row.created_at, now)),
        Column("revoked", lambda row: output.age(row.revoked_at, now) if row.revoked_at else None),
    ]
