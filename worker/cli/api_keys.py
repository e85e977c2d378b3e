"""API keys of service accounts, each with its scopes. An account may have several, so that one can replace another."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final

import typer

from core.access import api_keys
from core.access.api_keys import SCOPES, ApiKeyInfo
from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from worker.cli import descriptions, output, resources, service_accounts
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column

MAX_KEY_DAYS: Final = 3650


def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The service that uses the key.")],
    *,
    scope: Annotated[list[str], typer.Option(help=f"May be repeated: {', '.join(SCOPES)}.")],
    account: Annotated[
        str | None,
        typer.Option(help="Service account that gets another key: its id or name; default: a new one, named NAME."),
    ] = None,
    expires_in: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_KEY_DAYS, metavar="DAYS", help="Days until the key expires; default: never."),
    ] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Create an API key and print it, this one time; only its hash is stored.

    JSON: {"id", "name", "scopes", "created_at", "revoked_at", "expires_at", "account_id", "account_name", "key"}
    """
    now = utc_now()
    with resources.open_database(may_create=True) as database, database.write() as session:
        account_id = None if account is None else service_accounts.whole_id(session, account)
        expires_at = None if expires_in is None else now + timedelta(days=expires_in)
        try:
            report, key = api_keys.create(session, name, scope, now, account_id=account_id, expires_at=expires_at)
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
    if as_json:
        output.show_json({**_key_json(report), "key": key})
        return
    output.stderr_console().print(
        f"Key {report.id} of the service account {report.account_name} ({report.account_id}). Keep the following "
        "secret; it is not shown again."
    )
    typer.echo(key)


def list_keys(*, as_json: output.JsonOption = False) -> None:
    """List the API keys, including revoked ones; a key cannot be shown again.

    JSON: {"keys": [{"id", "name", "scopes", "created_at", "revoked_at", "expires_at", "account_id", "account_name"}]}
    """
    with resources.open_database() as database, database.read() as session:
        found = api_keys.list_all(session)
    if as_json:
        output.show_json({"keys": [_key_json(report) for report in found]})
        return
    if not found:
        output.show("There are no keys. Create one with `billing-sync keys create`.")
        return
    output.show(output.table(found, _key_columns()))


def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="Id, or its beginning, as `keys list` shows it.")],
) -> None:
    """Revoke an API key; it is rejected from now on."""
    with resources.open_database() as database, database.write() as session:
        ids = [each.id for each in api_keys.list_all(session)]
        key_id = descriptions.whole_id(key_id, ids, "key", "keys list")
        api_keys.revoke(session, key_id, utc_now())
    output.show(f"Key {key_id} has been revoked.")


def _key_json(report: ApiKeyInfo) -> dict[str, object]:
    return {
        "id": report.id,
        "name": report.name,
        "scopes": report.scopes,
        "created_at": report.created_at,
        "revoked_at": report.revoked_at,
        "expires_at": report.expires_at,
        "account_id": report.account_id,
        "account_name": report.account_name,
    }


def _key_columns() -> list[Column[ApiKeyInfo]]:
    now = utc_now()
    return [
        Column("id", lambda row: row.id, kind="id"),
        Column("name", lambda row: row.name, kind="fold"),
        Column("account", lambda row: row.account_name, kind="fold"),
        Column("account id", lambda row: row.account_id, kind="id"),
        Column("scopes", lambda row: ", ".join(row.scopes), kind="fold"),
        Column("created", lambda row: output.relative_time(row.created_at, now)),
        Column("expires", lambda row: output.utc_time(row.expires_at) if row.expires_at else None),
        Column("revoked", lambda row: output.relative_time(row.revoked_at, now) if row.revoked_at else None),
    ]
