"""Commands for what needs an operator: parked links, and retrying them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, NamedTuple

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from core.catalog.plans import Catalog
from core.common import runbook
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.organizations import Management, Organization
from core.emails import queue
from core.emails.queue import FailedEmail
from core.events.event_types import ChangeContext
from core.flow_control import circuit_breaker
from core.organizations import commands as organization_commands
from core.organizations import management
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reconcile import commands
from core.reporting import overview
from core.reporting.overview import ParkedLink
from worker.cli import cause, descriptions, leaving, output, resources, stored_change
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.wiring import catalog as catalog_wiring

RETRY_BATCH_SIZE = 200


class Retried(NamedTuple):
    """``ends_without_credit``: the subscriptions in Stripe that the retry may end without crediting paid time.

    ``observed``: of the organizations, for which nothing is written.
    """

    organizations: int
    ends_without_credit: int
    observed: int


def parked(*, limit: output.LimitOption = 50, as_json: output.JsonOption = False) -> None:
    """List parked links: the error, since when, and what to do; also emails that could not be sent.

    JSON: {"total", "parked": [{"org_id", "name", "link": …}], "open_breakers": {provider: {"reason", "open_since",
    "message", "probe_at"}}, "failed_emails": [{"id", "kind", "org_id", "recipient", "reason", "failed_at"}]}. A link
    is as in `status ORG`, open_breakers are the providers whose circuit breaker is open, and failed_emails are those
    of the last thirty days.
    """
    now = utc_now()
    with resources.open_database() as database, database.read() as session:
        found, total = overview.parked_links(session, now, limit)
        open_breakers = circuit_breaker.open_breakers(session)
        failed_emails = queue.list_failed(session, now, limit)
    if as_json:
        rows = [
            {"org_id": row.org_id, "name": row.name, "link": descriptions.link_json(row.link, row.org_id, now)}
            for row in found
        ]
        output.show_json(
            {"total": total, "parked": rows, "open_breakers": open_breakers, "failed_emails": failed_emails}
        )
        return
    for provider, breaker in open_breakers.items():
        output.show(*descriptions.open_breaker_lines(provider, breaker, now), "")
    if failed_emails:
        output.show("Emails that could not be sent:", output.table(failed_emails, _failed_email_columns(now)))
        output.show("→ after the cause is gone: `billing-sync emails retry ID`", "")
    if not found:
        output.show("Nothing is parked.")
        return
    for row in found:
        output.show(*_parked_lines(row, now), "")
    output.show(output.count_line(len(found), total))


def retry(
    *,
    org: descriptions.OptionalOrgArgument = None,
    all_parked: Annotated[bool, typer.Option("--all", help="All parked ones, without those on hold.")] = False,
    error: Annotated[str | None, typer.Option(metavar="CODE", help="All with this error code or kind.")] = None,
    as_json: output.JsonOption = False,
) -> None:
    """Retry organizations now; each is re-read and re-applied. Safe to repeat.

    A link stays on hold if somebody changed it at the provider: `billing-sync resolve` decides about that.

    A provider whose circuit breaker is open is probed at once, unless its key belongs to another account.

    JSON: {"organizations": count, "providers": [those whose circuit breaker was open and that are probed]}
    """
    if [org is not None, all_parked, error is not None].count(True) != 1:
        message = "choose what to retry: an organization, --all, or --error CODE"
        raise UsageError(message)
    settings = settings_of.read()
    catalog = catalog_wiring.load(settings)
    with resources.open_database(settings) as database:
        # First, because the retry is tried within moments, and nothing is sent while a circuit breaker is open.
        probed = _probe_providers(database)
        org_id = _find_id(database, org) if org is not None else None
        mode = settings.management
        retried = _retry(database, [org_id], catalog, mode) if org_id else _retry_parked(database, error, catalog, mode)
        count = retried.organizations
        on_hold, conflicts = _count_still_on_hold(database, org_id, error)
        if count == 0 and error is not None and not conflicts and not probed:
            _refuse_unknown_error(database, error)
    if as_json:
        output.show_json({"organizations": count, "providers": probed})
        return
    output.show(*_retry_lines(count, probed, on_hold, conflicts))
    if retried.ends_without_credit:
        output.show(leaving.no_credit_notice(retried.ends_without_credit))
    if retried.observed and org_id is None:
        output.show(stored_change.observed_notice(retried.observed, count))
    if count or probed:
        output.show(*stored_change.lines(settings, *([org_id] if org_id else ())))


def _retry_lines(count: int, probed: list[Provider], on_hold: int, conflicts: int) -> Iterator[str]:
    for provider in probed:
        yield f"{PROVIDER_NAMES[provider]}'s circuit breaker was open; it is probed now."
    if count:
        yield f"{descriptions.plural(count, 'organization')} will be retried."
    else:
        yield "Nothing else is parked." if on_hold or conflicts else "Nothing is parked."
    if on_hold:
        yield (
            f"{descriptions.plural(on_hold, 'organization')} on hold since an import: `billing-sync parked` shows why, "
            "and `billing-sync retry ORG` releases one as it is."
        )
    if conflicts:
        yield (
            f"On hold as before: {descriptions.plural(conflicts, 'link')}, because somebody changed the provider. "
            "`billing-sync parked` shows what was changed, and `billing-sync resolve ORG` decides."
        )


def _find_id(database: Database, query: str) -> str:
    with database.read() as session:
        return descriptions.find_organization(session, query).id


def _retry_parked(database: Database, error: str | None, catalog: Catalog, installation: Management) -> Retried:
    """In small transactions, by ascending id, so that it ends even while more links are parked and can be repeated."""
    total = Retried(0, 0, 0)
    last = ""
    while True:
        with database.read() as session:
            org_ids = overview.organization_ids_to_retry(session, last, RETRY_BATCH_SIZE, error)
        if not org_ids:
            return total
        retried = _retry(database, org_ids, catalog, installation)
        total = Retried(*(before + added for before, added in zip(total, retried, strict=True)))
        last = org_ids[-1]


def _retry(database: Database, org_ids: list[str], catalog: Catalog, installation: Management) -> Retried:
    locked: list[Organization] = []
    with database.write() as session:
        ends_without_credit = leaving.count_ends_without_credit(session, org_ids, catalog)
        for org_id in org_ids:
            organization = organization_commands.lock(session, org_id)
            if organization is not None:
                commands.retry(ChangeContext(session, utc_now(), cause.of_command("retry")), organization)
                locked.append(organization)
        observed = management.observed_ids(session, locked, installation)
    return Retried(len(locked), ends_without_credit, len(observed))


def _count_still_on_hold(database: Database, org_id: str | None, error: str | None) -> tuple[int, int]:
    """What this retry left on hold: organizations since an import, and links whose provider was changed."""
    with database.read() as session:
        retried_all = org_id is None and error is None
        on_hold = overview.count_on_hold_since_import(session) if retried_all else 0
        return on_hold, overview.count_conflicts(session, org_id=org_id, error=error)


def _probe_providers(database: Database) -> list[Provider]:
    now = utc_now()
    with database.write() as session:
        probed = circuit_breaker.probe_now(session, now)
    for provider in probed:
        with database.write() as session:
            circuit_breaker.clear_backoffs(session, provider, now)
    return probed


def _refuse_unknown_error(database: Database, error: str) -> None:
    with database.read() as session:
        known_errors = overview.error_codes(session)
    alternatives = f"current errors: {', '.join(known_errors)}" if known_errors else "there are no errors"
    message = f"no organization has the error {error!r}; {alternatives}"
    raise UsageError(message)


def _parked_lines(row: ParkedLink, now: datetime) -> list[RenderableType]:
    title = Text.assemble((row.name, "bold"), f"  {row.org_id}  at ", (PROVIDER_NAMES[row.link.provider], "bold"))
    state = "on hold" if row.link.status == "on_hold" else "parked"
    since = f"{state} {output.relative_time(row.link.error_at, now)}: " if row.link.error_at else f"{state}: "
    lines: list[RenderableType] = [
        title,
        Padding(Text(since + (descriptions.reason_text(row.link) or "no error recorded")), (0, 0, 0, 2), expand=False),
    ]
    lines.append(Padding(Text(f"→ {descriptions.advice(row.link, row.org_id)}"), (0, 0, 0, 2), expand=False))
    code = row.link.error_code or row.link.error_kind
    if code is not None:
        lines.append(Padding(Text(f"  {runbook.entry(code)}"), (0, 0, 0, 2), expand=False))
    return lines


def _failed_email_columns(now: datetime) -> list[Column[FailedEmail]]:
    return [
        Column("failed", lambda row: output.relative_time(row.failed_at, now)),
        Column("id", lambda row: row.id, kind="id"),
        Column("email", lambda row: row.kind),
        Column("organization", lambda row: row.org_id, kind="id"),
        Column("to", lambda row: row.recipient, kind="fold"),
        Column("reason", lambda row: row.reason, kind="fold"),
    ]
