"""Webhook endpoints of other services, their failed deliveries, and resending them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from core.common.clock import utc_now
from core.common.validation import InvalidChangeError
from core.webhooks import deliveries, endpoints
from core.webhooks.deliveries import FailedDelivery
from core.webhooks.endpoints import EndpointInfo, NewEndpoint
from core.webhooks.payloads import OPERATOR_EVENT_NAMES, PUBLIC_EVENT_NAMES
from core.webhooks.signing import Signer
from worker.cli import descriptions, output, resources, service_accounts
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.config.settings import Settings, SettingsError
from worker.wiring.runtime import open_signer

EndpointIdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id, or its beginning, as `webhooks list` shows it.")
]
EndpointIdOption = Annotated[str | None, typer.Option("--of", metavar="ID", help="Only those of this endpoint.")]


def add_endpoint(
    url: Annotated[str, typer.Argument(metavar="URL", help="https://…; http:// only for this machine.")],
    *,
    event: Annotated[
        list[str] | None,
        typer.Option(
            help=f"May be repeated; default: all but {', '.join(OPERATOR_EVENT_NAMES)}. "
            f"{', '.join(PUBLIC_EVENT_NAMES)}."
        ),
    ] = None,
    description: Annotated[str | None, typer.Option(help="A note on whose endpoint it is.")] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Add a webhook endpoint and print its signing secret, this one time.

    JSON: {"id", "url", "events", "description", "created_at", "disabled_at", "disabled_reason", "pending", "failed",
    "account_id", "secret"}
    """
    settings = settings_of.read()
    signer = _require_signer(settings)
    with resources.open_database(settings, may_create=True) as database, database.write() as session:
        new = NewEndpoint(url=url, events=event or (), description=description)
        try:
            report = endpoints.add(session, new, utc_now(), allow_private=settings.webhook_allow_private)
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
    _show_secret(report.id, signer.secret(report.id, report.secret_generation), _endpoint_json(report), as_json=as_json)


def list_endpoints(*, as_json: output.JsonOption = False) -> None:
    """List webhook endpoints with their pending and failed deliveries.

    JSON: {"webhooks": [{"id", "url", "events", "description", "created_at", "disabled_at", "disabled_reason",
    "pending", "failed", "account_id"}]}
    """
    with resources.open_database() as database, database.read() as session:
        found = endpoints.list_all(session)
    if as_json:
        output.show_json({"webhooks": [_endpoint_json(report) for report in found]})
        return
    if not found:
        output.show("No webhook endpoints. Add one with `billing-sync webhooks add URL`.")
        return
    output.show(output.table(found, _endpoint_columns()))


def assign_endpoint(
    endpoint_id: EndpointIdArgument,
    *,
    account: Annotated[str, typer.Option(help="The service account: its id or name, as `keys list` shows it.")],
) -> None:
    """Give a webhook endpoint to a service account, which then manages it over the API."""
    with resources.open_database() as database, database.write() as session:
        endpoint_id = _whole_id(session, endpoint_id)
        account_id = service_accounts.whole_id(session, account)
        try:
            assigned = endpoints.assign(session, endpoint_id, account_id)
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
    if not assigned:
        raise _unknown_endpoint(endpoint_id)
    output.show(f"Webhook endpoint {endpoint_id} belongs to the service account {account_id}.")


def remove_endpoint(endpoint_id: EndpointIdArgument) -> None:
    """Remove a webhook endpoint and its pending deliveries."""
    with resources.open_database() as database, database.write() as session:
        endpoint_id = _whole_id(session, endpoint_id)
        removed = endpoints.remove(session, endpoint_id)
    if not removed:
        raise _unknown_endpoint(endpoint_id)
    output.show(f"Webhook endpoint {endpoint_id} removed.")


def rotate_secret(endpoint_id: EndpointIdArgument, *, as_json: output.JsonOption = False) -> None:
    """Create a new secret and print it, this one time; the previous one also signs for a day.

    JSON: {"id", "secret"}
    """
    settings = settings_of.read()
    signer = _require_signer(settings)
    with resources.open_database(settings) as database, database.write() as session:
        endpoint_id = _whole_id(session, endpoint_id)
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
            help="Resend all events since this time, UTC unless it has an offset; default: only failed deliveries.",
        ),
    ] = None,
    event: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only the failed delivery of this event; `webhooks failed` lists it."),
    ] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Resend events under their original ids; a disabled endpoint is enabled again.

    JSON: {"count": number of deliveries that will be resent}
    """
    if since is not None and event is not None:
        message = "choose one: --since for all events since then, or --event for one failed delivery"
        raise UsageError(message)
    with resources.open_database() as database, database.write() as session:
        endpoint_id = _whole_id(session, endpoint_id)
        try:
            count = deliveries.replay(
                session, endpoint_id, utc_now(), since=None if since is None else _as_utc(since), event_id=event
            )
        except InvalidChangeError as error:
            raise UsageError(str(error)) from None
    if count is None:
        raise _unknown_endpoint(endpoint_id)
    if as_json:
        output.show_json({"count": count})
        return
    output.show(f"{descriptions.plural(count, 'event')} will be resent.")


def failed_deliveries(
    *, endpoint_id: EndpointIdOption = None, limit: output.LimitOption = 50, as_json: output.JsonOption = False
) -> None:
    """List failed deliveries, latest first, with the response and the organization.

    JSON: {"total", "failed": [{"endpoint_id", "url", "event_id", "type", "org_id", "attempts", "status", "error",
    "at"}]}
    """
    with resources.open_database() as database, database.read() as session:
        endpoint_id = None if endpoint_id is None else _whole_id(session, endpoint_id)
        found, total = deliveries.list_failed(session, limit, endpoint_id)
    if as_json:
        output.show_json({"total": total, "failed": found})
        return
    if not found:
        output.show("No failed deliveries.")
        return
    output.show(
        output.table(found, _delivery_columns(utc_now())),
        output.count_line(len(found), total),
        f"When the endpoint accepts again: `{descriptions.program_path()} webhooks replay ID`, for one of them with "
        "`--event`.",
    )


def _require_signer(settings: Settings) -> Signer:
    signer = open_signer(settings)
    if signer is None:
        message = (
            "WEBHOOK_SIGNING_SECRET is not set, so nothing can be signed: set it for every process; "
            "create one with `openssl rand -base64 32`"
        )
        raise SettingsError(message)
    return signer


def _show_secret(endpoint_id: str, secret: str, document: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        output.show_json({**document, "secret": secret})
        return
    output.stderr_console().print(f"Webhook endpoint {endpoint_id}. Keep the following secret; it is not shown again.")
    typer.echo(secret)


def _whole_id(session: Session, given: str) -> str:
    ids = [each.id for each in endpoints.list_all(session)]
    return descriptions.whole_id(given, ids, "webhook endpoint", "webhooks list")


def _unknown_endpoint(endpoint_id: str) -> UsageError:
    return UsageError(f"there is no webhook endpoint {endpoint_id!r}; `billing-sync webhooks list` shows all")


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
        "account_id": report.account_id,
    }


def _endpoint_columns() -> list[Column[EndpointInfo]]:
    return [
        Column("id", lambda row: row.id, kind="id"),
        Column("url", lambda row: row.url, kind="fold"),
        Column("events", lambda row: ", ".join(row.events) or "all", kind="fold"),
        Column("description", lambda row: row.description, kind="fold"),
        Column("account", lambda row: row.account_id, kind="id"),
        Column("pending", lambda row: str(row.pending)),
        Column("failed", lambda row: str(row.failed)),
        Column("disabled", lambda row: row.disabled_reason, kind="fold"),
    ]


def _delivery_columns(now: datetime) -> list[Column[FailedDelivery]]:
    return [
        Column("failed", lambda row: output.relative_time(row.last_attempt_at, now)),
        Column("endpoint", lambda row: row.endpoint_id, kind="id"),
        Column("event", lambda row: row.event_id, kind="fold"),
        Column("type", lambda row: row.type, kind="fold"),
        Column("organization", lambda row: row.org_id, kind="id"),
        Column("attempts", lambda row: str(row.attempts)),
        Column("response", lambda row: str(row.status) if row.status is not None else row.error),
    ]
