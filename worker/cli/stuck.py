"""What waits for a person: links that are parked, trying them again, and messages that were not taken."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from core import billers, due, mails, organizations, reports
from core.clock import utc_now
from core.database import Database
from core.events import Cause, Change
from core.gateways import Provider
from core.mails import GivenUp
from core.reports import Message, Stopped
from worker import settings as settings_of
from worker.cli import opening, tables, words
from worker.cli.errors import UsageError
from worker.cli.tables import Column

AT_ONCE = 200
BY_A_PERSON = Cause(actor="person", source="billing-sync retry")


class Verdict(StrEnum):
    accepted = "accepted"
    refused = "refused"
    waiting = "waiting"
    superseded = "superseded"
    ignored = "ignored"


def parked(*, limit: tables.Limit = 50, as_json: tables.AsJson = False) -> None:
    """List what waits for a person: the error, since when, and what to do; and mails that could not be sent.

    JSON: {"total", "parked": [{"org_id", "name", "link": …}], "stops": {provider: {"kind", "since", "message",
    "probe_at"}}, "mails": [{"id", "kind", "org_id", "recipient", "reason", "given_up_at"}]}; a link as in `status ORG`,
    stops are billers that no work is sent to, mails those of thirty days.
    """
    now = utc_now()
    with opening.store() as database, database.read() as session:
        found, total = reports.stopped(session, now, limit)
        stops = billers.stops(session)
        unsent = mails.given_up(session, now, limit)
    if as_json:
        rows = [
            {"org_id": row.org_id, "name": row.name, "link": words.link(row.link, row.org_id, now)} for row in found
        ]
        tables.show_json({"total": total, "parked": rows, "stops": stops, "mails": unsent})
        return
    for provider, stop in stops.items():
        tables.show(*words.about_stop(provider, stop, now), "")
    if unsent:
        tables.show("Mails that were given up:", tables.table(unsent, _mail_columns(now)), "")
    if not found:
        tables.show("Nothing is parked.")
        return
    for row in found:
        tables.show(*_lines(row, now), "")
    tables.show(tables.how_many(len(found), total))


def retry(
    *,
    org: words.MaybeOrg = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All that are parked, but for what an import left to decide.")
    ] = False,
    error: Annotated[str | None, typer.Option(metavar="CODE", help="All that met this error code or kind.")] = None,
    as_json: tables.AsJson = False,
) -> None:
    """Try organizations again now: everything about them is read or made once more. Repeating it does no harm.

    A biller that is stopped is tried at once as well, unless our key is another account's.

    JSON: {"organizations": count, "billers": [those that were stopped and are tried]}
    """
    if [org is not None, everything, error is not None].count(True) != 1:
        message = "say what to retry: an organization, or --all, or --error CODE"
        raise UsageError(message)
    settings = settings_of.read()
    with opening.store(settings) as database:
        count = _retry_one(database, org) if org is not None else _retry_stuck(database, error)
        tried = _probe(database)
        held = _held(database) if everything else 0
        if count == 0 and error is not None and not tried:
            _refuse_unmet(database, error)
    if as_json:
        tables.show_json({"organizations": count, "billers": tried})
        return
    for provider in tried:
        tables.show(f"{words.NAMES[provider]}, which was stopped, is tried again now.")
    if count == 0:
        tables.show("Nothing is parked." if held == 0 else "Nothing else is parked.")
    else:
        tables.show(f"{count} organization{'' if count == 1 else 's'} to be tried again.")
    if held:
        tables.show(
            f"{held} that an import left to you to decide: `billing-sync parked` says what, and "
            "`billing-sync retry ORG` takes one as it stands."
        )
    if (count or tried) and settings.is_embedded:
        tables.show(words.EMBEDDED)


def received(
    *,
    verdict: Annotated[list[Verdict] | None, typer.Option(help="May be given more than once.")] = None,
    limit: tables.Limit = 50,
    as_json: tables.AsJson = False,
) -> None:
    """List what other services and billers sent and was not taken, with the reason; --verdict shows the rest.

    JSON: {"total", "messages": [{"source", "id", "type", "subject", "verdict", "reason", "occurred_at",
    "received_at"}]}
    """
    wanted = [each.value for each in verdict or (Verdict.refused, Verdict.waiting)]
    with opening.store() as database, database.read() as session:
        found, total = reports.messages(session, wanted, limit)
    if as_json:
        tables.show_json({"total": total, "messages": found})
        return
    if not found:
        tables.show(f"No message is {' or '.join(wanted)}.")
        return
    tables.show(tables.table(found, _columns(utc_now())), tables.how_many(len(found), total))


def _retry_one(database: Database, word: str) -> int:
    with database.read() as session:
        found = words.meant(session, word)
    return _retry(database, [found.id])


def _retry_stuck(database: Database, error: str | None) -> int:
    """In small transactions, by rising id: ends even while new ones are parked, and may be broken off and repeated."""
    count, last = 0, ""
    while True:
        with database.read() as session:
            org_ids = reports.stuck(session, last, AT_ONCE, error)
        if not org_ids:
            return count
        count += _retry(database, org_ids)
        last = org_ids[-1]


def _retry(database: Database, org_ids: list[str]) -> int:
    count = 0
    with database.write() as session:
        for org_id in org_ids:
            organization = organizations.lock(session, org_id)
            if organization is not None:
                due.retry(Change(session, utc_now(), BY_A_PERSON), organization)
                count += 1
    return count


def _held(database: Database) -> int:
    with database.read() as session:
        return reports.count_held(session)


def _probe(database: Database) -> list[Provider]:
    now = utc_now()
    with database.write() as session:
        tried = billers.probe_now(session, now)
    for provider in tried:
        with database.write() as session:
            billers.forget_waits(session, provider, now)
    return tried


def _refuse_unmet(database: Database, error: str) -> None:
    with database.read() as session:
        met = reports.error_words(session)
    known = f"met so far: {', '.join(met)}" if met else "there is none at all"
    message = f"no organization has met the error {error!r}; {known}"
    raise UsageError(message)


def _lines(row: Stopped, now: datetime) -> list[RenderableType]:
    head = Text.assemble((row.name, "bold"), f"  {row.org_id}  at ", (words.NAMES[row.link.provider], "bold"))
    since = f"parked {tables.age(row.link.error_at, now)}: " if row.link.error_at else "parked: "
    lines: list[RenderableType] = [
        head,
        Padding(Text(since + (words.why(row.link) or "no reason was kept")), (0, 0, 0, 2), expand=False),
    ]
    return [*lines, Padding(Text(f"→ {words.advice(row.link, row.org_id)}"), (0, 0, 0, 2), expand=False)]


def _mail_columns(now: datetime) -> list[Column[GivenUp]]:
    return [
        Column("given up", lambda row: tables.age(row.given_up_at, now)),
        Column("mail", lambda row: row.kind),
        Column("organization", lambda row: row.org_id, kind="id"),
        Column("to", lambda row: row.recipient, kind="fold"),
        Column("why", lambda row: row.reason, kind="fold"),
    ]


def _columns(now: datetime) -> list[Column[Message]]:
    return [
        Column("received", lambda row: tables.age(row.received_at, now)),
        Column("verdict", lambda row: row.verdict),
        Column("source", lambda row: row.source, kind="fold"),
        Column("type", lambda row: row.type, kind="fold"),
        Column("about", lambda row: row.subject, kind="fold"),
        Column("reason", lambda row: row.reason, kind="fold"),
    ]
