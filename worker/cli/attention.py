"""What waits for a person: links that are parked, trying them again, and messages that were not taken."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from core.common.clock import utc_now
from core.db.database import Database
from core.emails import queue
from core.emails.queue import GivenUp
from core.events.event_types import Cause, Change
from core.flow_control import circuit_breaker
from core.organizations import commands as organization_commands
from core.ports.spec import Provider
from core.reconcile import commands
from core.reporting import inbox_messages, overview
from core.reporting.inbox_messages import Message
from core.reporting.overview import Stopped
from worker.cli import descriptions, output, resources
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column
from worker.config import settings as settings_of

AT_ONCE = 200
BY_A_PERSON = Cause(actor="person", source="billing-sync retry")


class Verdict(StrEnum):
    accepted = "accepted"
    refused = "refused"
    waiting = "waiting"
    superseded = "superseded"
    ignored = "ignored"


def parked(*, limit: output.Limit = 50, as_json: output.AsJson = False) -> None:
    """List what waits for a person: the error, since when, and what to do; and mails that could not be sent.

    JSON: {"total", "parked": [{"org_id", "name", "link": …}], "stops": {provider: {"kind", "since", "message",
    "probe_at"}}, "mails": [{"id", "kind", "org_id", "recipient", "reason", "given_up_at"}]}; a link as in `status ORG`,
    stops are billers that no work is sent to, mails those of thirty days.
    """
    now = utc_now()
    with resources.store() as database, database.read() as session:
        found, total = overview.stopped(session, now, limit)
        stops = circuit_breaker.stops(session)
        unsent = queue.given_up(session, now, limit)
    if as_json:
        rows = [
            {"org_id": row.org_id, "name": row.name, "link": descriptions.link(row.link, row.org_id, now)}
            for row in found
        ]
        output.show_json({"total": total, "parked": rows, "stops": stops, "mails": unsent})
        return
    for provider, stop in stops.items():
        output.show(*descriptions.about_stop(provider, stop, now), "")
    if unsent:
        output.show("Mails that were given up:", output.table(unsent, _mail_columns(now)), "")
    if not found:
        output.show("Nothing is parked.")
        return
    for row in found:
        output.show(*_lines(row, now), "")
    output.show(output.how_many(len(found), total))


def retry(
    *,
    org: descriptions.MaybeOrg = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All that are parked, but for what an import left to decide.")
    ] = False,
    error: Annotated[str | None, typer.Option(metavar="CODE", help="All that met this error code or kind.")] = None,
    as_json: output.AsJson = False,
) -> None:
    """Try organizations again now: everything about them is read or made once more. Repeating it does no harm.

    A biller that is stopped is tried at once as well, unless our key is another account's.

    JSON: {"organizations": count, "billers": [those that were stopped and are tried]}
    """
    if [org is not None, everything, error is not None].count(True) != 1:
        message = "say what to retry: an organization, or --all, or --error CODE"
        raise UsageError(message)
    settings = settings_of.read()
    with resources.store(settings) as database:
        count = _retry_one(database, org) if org is not None else _retry_stuck(database, error)
        tried = _probe(database)
        held = _held(database) if everything else 0
        if count == 0 and error is not None and not tried:
            _refuse_unmet(database, error)
    if as_json:
        output.show_json({"organizations": count, "billers": tried})
        return
    for provider in tried:
        output.show(f"{descriptions.NAMES[provider]}, which was stopped, is tried again now.")
    if count == 0:
        output.show("Nothing is parked." if held == 0 else "Nothing else is parked.")
    else:
        output.show(f"{count} organization{'' if count == 1 else 's'} to be tried again.")
    if held:
        output.show(
            f"{held} that an import left to you to decide: `billing-sync parked` says what, and "
            "`billing-sync retry ORG` takes one as it stands."
        )
    if (count or tried) and settings.is_embedded:
        output.show(descriptions.EMBEDDED)


def received(
    *,
    verdict: Annotated[list[Verdict] | None, typer.Option(help="May be given more than once.")] = None,
    limit: output.Limit = 50,
    as_json: output.AsJson = False,
) -> None:
    """List what other services and billers sent and was not taken, with the reason; --verdict shows the rest.

    JSON: {"total", "messages": [{"source", "id", "type", "subject", "verdict", "reason", "occurred_at",
    "received_at"}]}
    """
    wanted = [each.value for each in verdict or (Verdict.refused, Verdict.waiting)]
    with resources.store() as database, database.read() as session:
        found, total = inbox_messages.messages(session, wanted, limit)
    if as_json:
        output.show_json({"total": total, "messages": found})
        return
    if not found:
        output.show(f"No message is {' or '.join(wanted)}.")
        return
    output.show(output.table(found, _columns(utc_now())), output.how_many(len(found), total))


def _retry_one(database: Database, word: str) -> int:
    with database.read() as session:
        found = descriptions.meant(session, word)
    return _retry(database, [found.id])


def _retry_stuck(database: Database, error: str | None) -> int:
    """In small transactions, by rising id: ends even while new ones are parked, and may be broken off and repeated."""
    count, last = 0, ""
    while True:
        with database.read() as session:
            org_ids = overview.stuck(session, last, AT_ONCE, error)
        if not org_ids:
            return count
        count += _retry(database, org_ids)
        last = org_ids[-1]


def _retry(database: Database, org_ids: list[str]) -> int:
    count = 0
    with database.write() as session:
        for org_id in org_ids:
            organization = organization_commands.lock(session, org_id)
            if organization is not None:
                commands.retry(Change(session, utc_now(), BY_A_PERSON), organization)
                count += 1
    return count


def _held(database: Database) -> int:
    with database.read() as session:
        return overview.count_held(session)


def _probe(database: Database) -> list[Provider]:
    now = utc_now()
    with database.write() as session:
        tried = circuit_breaker.probe_now(session, now)
    for provider in tried:
        with database.write() as session:
            circuit_breaker.forget_waits(session, provider, now)
    return tried


def _refuse_unmet(database: Database, error: str) -> None:
    with database.read() as session:
        met = overview.error_words(session)
    known = f"met so far: {', '.join(met)}" if met else "there is none at all"
    message = f"no organization has met the error {error!r}; {known}"
    raise UsageError(message)


def _lines(row: Stopped, now: datetime) -> list[RenderableType]:
    head = Text.assemble((row.name, "bold"), f"  {row.org_id}  at ", (descriptions.NAMES[row.link.provider], "bold"))
    since = f"parked {output.age(row.link.error_at, now)}: " if row.link.error_at else "parked: "
    lines: list[RenderableType] = [
        head,
        Padding(Text(since + (descriptions.why(row.link) or "no reason was kept")), (0, 0, 0, 2), expand=False),
    ]
    return [*lines, Padding(Text(f"→ {descriptions.advice(row.link, row.org_id)}"), (0, 0, 0, 2), expand=False)]


def _mail_columns(now: datetime) -> list[Column[GivenUp]]:
    return [
        Column("given up", lambda row: output.age(row.given_up_at, now)),
        Column("mail", lambda row: row.kind),
        Column("organization", lambda row: row.org_id, kind="id"),
        Column("to", lambda row: row.recipient, kind="fold"),
        Column("why", lambda row: row.reason, kind="fold"),
    ]


def _columns(now: datetime) -> list[Column[Message]]:
    return [
        Column("received", lambda row: output.age(row.received_at, now)),
        Column("verdict", lambda row: row.verdict),
        Column("source", lambda row: row.source, kind="fold"),
        Column("type", lambda row: row.type, kind="fold"),
        Column("about", lambda row: row.subject, kind="fold"),
        Column("reason", lambda row: row.reason, kind="fold"),
    ]
