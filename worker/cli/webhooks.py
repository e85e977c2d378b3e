"""Webhooks out: which services are told what happens, what they did not take, and telling them again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.webhooks import deliveries, endpoints
from core.webhooks.deliveries import FailedDelivery
from core.webhooks.endpoints import EndpointInfo, NewEndpoint
from core.webhooks.payloads import PUBLIC_EVENT_NAMES
from core.webhooks.signing import Signer
from worker.cli import descriptions, output, resources
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.config.settings import Settings, SettingsError
from worker.wiring.runtime import open_signer

EndpointIdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `webhooks list` shows it.")]
EndpointIdOption = Annotated[str | None, typer.Option("--of", metavar="ID", help="Only those of this endpoint.")]


def add_endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="https://…; http:// on this machine alone.")],
    *,
    event: Annotated[
        list[str] | None,
        typer.Option(help=f"May be given more than once; without it all. {', '.join(PUBLIC_EVENT_NAMES)}."),
    ] = None,
    description: Annotated[str | None, typer.Option(help="For people: whose it is.")] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Tell another service what happens; prints the secret that it verifies with, this one time.

    JSON: {"id", "url", "events", "description", "created_at", "disabled_at", "disabled_reason", "pending", "failed",
    "secret"}
    """
    settings = settings_of.read()
    signer = _require_signer(settings)
    with resources.open_database(settings) as database, database.write() as session:
        new = NewEndpoint(url=url, events=event or (), description=description)
        try:
            report = endpoints.add(session, new, utc_now(), allow_private=settings.webhook_allow_private)
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
    _show_secret(report.id, signer.secret(report.id, report.secret_generation), _endpoint_json(report), as_json=as_json)


def list_endpoints(*, as_json: output.JsonOption = False) -> None:
    """List who is told, of what, and how much of it waits or was given up.

    JSON: {"webhooks": [{"id", "url", "events", "description", "created_at", "disabled_at", "disabled_reason",
    "pending", "failed"}]}
    """
    with resources.open_database() as database, database.read() as session:
        found = endpoints.list_all(session)
    if as_json:
        output.show_json({"webhooks": [_endpoint_json(report) for report in found]})
        return
    if not found:
        output.show("Nobody is told by webhook: `billing-sync webhooks add URL` changes that.")
        return
    output.show(output.table(found, _endpoint_columns()))


def remove_endpoint(endpoint_id: EndpointIdArgument) -> None:
    """End a webhook: nothing is sent there any more, and what was to be sent is forgotten."""
    with resources.open_database() as database, database.write() as session:
        removed = endpoints.remove(session, endpoint_id)
    if not removed:
        raise _unknown_endpoint(endpoint_id)
    output.show(f"{endpoint_id} is told nothing any more.")


def rotate_secret(endpoint_id: EndpointIdArgument, *, as_json: output.JsonOption = False) -> None:
    """Make a new secret and print it, this one time; for a day the one before signs as well.

    JSON: {"id", "secret"}
    """
    settings = settings_of.read()
    signer = _require_signer(settings)
    with resources.open_database(settings) as database, database.write() as session:
        generation = endpoints.rotate_secret(session, endpoint_id, utc_now())
    if generation is None:
        raise _unknown_endpoint(endpoint_id)
    _show_secret(endpoint_id, signer.secret(endpoint_id, generation), {"id": endpoint_id}, as_json=as_json)


def replay_deliveries(
    endpoint_id: EndpointIdArgument,
    *,
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"],
            help="All that happened from then on, UTC where it says nothing else; without it only what failed.",
        ),
    ] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Send again, each event under the id that it had before; a webhook that was disabled is told again.

    JSON: {"count": how many are due now}
    """
    with resources.open_database() as database, database.write() as session:
        try:
            count = deliveries.replay(session, endpoint_id, utc_now(), None if since is None else _as_utc(since))
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
    if count is None:
        raise _unknown_endpoint(endpoint_id)
    if as_json:
        output.show_json({"count": count})
        return
    output.show(f"{descriptions.plural(count, 'event')} to be sent again.")


def failed_deliveries(
    *, endpoint_id: EndpointIdOption = None, limit: output.LimitOption = 50, as_json: output.JsonOption = False
) -> None:
    """List what was given up, the latest first: what was answered, and for which organization.

    JSON: {"total", "failed": [{"endpoint_id", "url", "event_id", "type", "org_id", "attempts", "status", "error",
    "at"}]}
    """
    with resources.open_database() as database, database.read() as session:
        found, total = deliveries.list_failed(session, limit, endpoint_id)
    if as_json:
        output.show_json({"total": total, "failed": found})
        return
    if not found:
        output.show("Nothing was given up.")
        return
    output.show(
        output.table(found, _delivery_columns(utc_now())),
        output.count_line(len(found), total),
        f"Once they can take it: `{descriptions.program_path()} webhooks replay ID`.",
    )


def _require_signer(settings: Settings) -> Signer:
    signer = open_signer(settings)
    if signer is None:
        message = (
            "WEBHOOK_SIGNING_SECRET is not set, so nothing can be signed: set it for every process, "
            "`openssl rand -base64 32` makes one"
        )
        raise SettingsError(message)
    return signer


def _show_secret(endpoint_id: str, secret: str, document: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        output.show_json({**document, "secret": secret})
        return
    output.stderr_console().print(f"Webhook {endpoint_id}. Keep what follows secret; it is not shown again.")
    typer.echo(secret)


def _unknown_endpoint(endpoint_id: str) -> UsageError:
    return UsageError(f"there is no webhook {endpoint_id!r}; `billing-sync webhooks list` shows all")


def _as_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _endpoint_json(report: EndpointInfo) -> dict[str, object]:
    return {
        "id": report.id,
        "url": report.url,
        "events": report.events,
        "description": report.description,
        "created_at": report.created_at,
        "disabled_at": report.disabled_at,
        "disabled_reason": report.disabled_reason,
        "pending": report.pending,
        "failed": report.failed,
    }


def _endpoint_columns() -> list[Column[EndpointInfo]]:
    return [
        Column("id", lambda row: row.id),
        Column("url", lambda row: row.url, kind="fold"),
        Column("events", lambda row: ", ".join(row.events) or "all", kind="fold"),
        Column("for", lambda row: row.description, kind="fold"),
        Column("waits", lambda row: str(row.pending)),
        Column("given up", lambda row: str(row.failed)),
        Column("disabled", lambda row: row.disabled_reason, kind="fold"),
    ]


def _delivery_columns(now: datetime) -> list[Column[FailedDelivery]]:
    return [
        Column("given up", lambda row: output.relative_time(row.last_attempt_at, now)),
        Column("webhook", lambda row: row.endpoint_id),
        Column("type", lambda row: row.type, kind="fold"),
        Column("about", lambda row: row.org_id, kind="fold"),
        Column("tries", lambda row: str(row.attempts)),
        Column("answer", lambda row: str(row.status) if row.status is not None else row.error),
    ]
