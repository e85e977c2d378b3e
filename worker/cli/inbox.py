"""Incoming messages: service events and provider webhooks that were not applied, and applying them again."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from sqlalchemy import or_, select

from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.inbox import event_sources, provider_webhooks, service_events
from core.inbox.event_sources import SourceInfo
from core.reporting import inbox_messages
from core.reporting.inbox_messages import InboxMessage
from worker.cli import cause, output, resources, service_accounts, stored_change
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.wiring import catalog as catalog_wiring


class InboxStatus(StrEnum):
    applied = "applied"
    rejected = "rejected"
    waiting = "waiting"
    superseded = "superseded"
    ignored = "ignored"


def list_inbox(
    *,
    status: Annotated[
        list[InboxStatus] | None, typer.Option(help="May be repeated; default: rejected and waiting.")
    ] = None,
    limit: output.LimitOption = 50,
    as_json: output.JsonOption = False,
) -> None:
    """List incoming messages that were rejected or wait, with the reason; --status shows the others.

    JSON: {"total", "messages": [{"source", "id", "sent_id", "type", "subject", "status", "reason", "occurred_at",
    "received_at", "is_provider_webhook"}]}
    """
    statuses = [each.value for each in status or (InboxStatus.rejected, InboxStatus.waiting)]
    with resources.open_database() as database, database.read() as session:
        found, total = inbox_messages.list_messages(session, statuses, limit)
    if as_json:
        output.show_json({"total": total, "messages": found})
        return
    if not found:
        output.show(f"There is no message with status {' or '.join(statuses)}.")
        return
    output.show(output.table(found, _message_columns(utc_now())), output.count_line(len(found), total))


def replay_message(
    message_id: Annotated[str, typer.Argument(metavar="ID", help="Id of the message, as `inbox list` shows it.")],
    *,
    source: Annotated[str | None, typer.Option(help="Its source, if several messages have this id.")] = None,
) -> None:
    """Apply a rejected message again after its cause is gone, or process a provider webhook again. Safe to repeat.

    What a later message has changed stays: the replayed one is then superseded.
    """
    settings = settings_of.read()
    catalog = catalog_wiring.load(settings)
    with resources.open_database(settings) as database:
        message = _find_message(database, message_id, source)
        if message.is_provider_webhook:
            output.show(_process_again(database, message))
        else:
            output.show(_apply_again(database, catalog, message))
        org_ids = _organizations_of(database, message)
    output.show(*stored_change.lines(settings, *org_ids))


def list_sources(*, as_json: output.JsonOption = False) -> None:
    """List the sources of service events with the service account that each belongs to.

    A source belongs to the first account that sends from it over HTTP, until `inbox bind` gives it to another.

    JSON: {"sources": [{"source", "account_id", "account_name", "bound_at"}]}
    """
    with resources.open_database() as database, database.read() as session:
        found = event_sources.list_all(session)
    if as_json:
        output.show_json({"sources": found})
        return
    if not found:
        output.show("No source belongs to a service account yet.")
        return
    output.show(output.table(found, _source_columns(utc_now())))


def bind_source(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The source, as its events name it.")],
    *,
    account: Annotated[str, typer.Option(help="The service account: its id or name, as `keys list` shows it.")],
) -> None:
    """Give a source of service events to a service account; no other may send from it over HTTP."""
    if service_events.storable_text(source) is None:
        message = f"a source has 1 to {service_events.MAX_EVENT_KEY_LENGTH} characters"
        raise UsageError(message)
    with resources.open_database() as database, database.write() as session:
        account_id = service_accounts.whole_id(session, account)
        event_sources.bind(session, source, account_id, utc_now())
    output.show(f"The source {source} belongs to the service account {account_id}.")


def _find_message(database: Database, message_id: str, source: str | None) -> InboxMessage:
    with database.read() as session:
        found = inbox_messages.find_messages(session, message_id, source)
    if len(found) == 1:
        return found[0]
    if found:
        sources = ", ".join(sorted(each.source for each in found))
        message = f"several messages have the id {message_id!r}: add --source with one of {sources}"
    else:
        message = f"there is no message {message_id!r}; `billing-sync inbox list` shows those that were not applied"
    raise UsageError(message)


def _organizations_of(database: Database, message: InboxMessage) -> list[str]:
    """Those that the message is about, as far as is known: a webhook may name only a customer, or something else."""
    subject = message.subject
    if subject is None:
        return []
    with database.read() as session:
        is_its = or_(BillingLink.org_id == subject, BillingLink.customer_id == subject)
        return sorted(session.scalars(select(BillingLink.org_id).where(is_its).distinct()))


def _apply_again(database: Database, catalog: Catalog, message: InboxMessage) -> str:
    """What was decided, as a sentence. Raises ``CommandFailedError`` if it is rejected again."""
    handled = service_events.replay(
        database, catalog, utc_now, message.source, message.id, cause.of_command("inbox replay")
    )
    if handled is None:
        error = f"the message {message.id!r} is not stored any more"
        raise UsageError(error)
    if handled.repeated:
        return f"Nothing to do: the message is {handled.status}."
    if handled.status == "rejected":
        error = f"the message is rejected again: {handled.reason}"
        raise CommandFailedError(error)
    reason = f": {handled.reason}" if handled.reason else ""
    return f"The message is {handled.status}{reason}."


def _process_again(database: Database, message: InboxMessage) -> str:
    """Raises ``CommandFailedError`` if it cannot be processed."""
    with database.write() as session:
        result = provider_webhooks.replay(session, message.source, message.id, utc_now())
    if result is None:
        error = f"the webhook {message.id!r} is not stored any more"
        raise UsageError(error)
    if result.reason is not None:
        error = f"the webhook is not processed again: {result.reason}"
        raise CommandFailedError(error)
    return "The webhook will be processed again: its link gets a remote check."


def _id_text(message: InboxMessage) -> str:
    return message.id if message.sent_id is None else f"{message.id} (sent as {message.sent_id})"


def _source_columns(now: datetime) -> list[Column[SourceInfo]]:
    return [
        Column("source", lambda row: row.source, kind="fold"),
        Column("account", lambda row: row.account_name, kind="fold"),
        Column("account id", lambda row: row.account_id, kind="id"),
        Column("since", lambda row: output.relative_time(row.bound_at, now)),
    ]


def _message_columns(now: datetime) -> list[Column[InboxMessage]]:
    return [
        Column("received", lambda row: output.relative_time(row.received_at, now)),
        Column("status", lambda row: row.status),
        Column("source", lambda row: row.source, kind="fold"),
        Column("id", _id_text, kind="fold"),
        Column("type", lambda row: row.type, kind="fold"),
        Column("about", lambda row: row.subject, kind="id"),
        Column("reason", lambda row: row.reason, kind="fold"),
    ]
