"""How organizations stand, from rows alone: no biller is asked, and the broker only whether it is there."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from kombu.exceptions import KombuError
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy.orm import Session

from core.common.clock import utc_now
from core.emails import queue
from core.reconcile.link_status import LinkReport
from core.reporting import overview
from core.reporting.overview import OrganizationReport, Overview, Trouble
from worker.cli import descriptions, output, resources
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.config.settings import Settings
from worker.processes.relay import BROKER_IS_AWAY
from worker.wiring.celery_app import build

PROBE_SECONDS = 2


def status(*, org: descriptions.MaybeOrg = None, as_json: output.AsJson = False) -> None:
    """Show what is in sync, behind and parked; of one organization also why, and what happens next.

    JSON: {"in_sync", "organizations", "billers": {"stripe": {"in_sync", "behind", "parked", "behind_since",
    "account_id", "livemode", "stop": {"kind", "since", "message", "probe_at"} or null}, "lago": …},
    "troubles": [{"provider", "state", "kind", "code", "links", "since", "message"}], "unpublished",
    "unpublished_since", "received": {verdict: count},
    "comparison": {"finished_at", "drifted", "kinds": {kind: count}} or null, "broker": {"address", "answers"},
    "mails": {"waiting", "waiting_since", "reason", "given_up"}}.

    With ORG: an organization as in `orgs`; its links: {"provider", "standing", "customer_id", "subscription_id",
    "plan_code", "next_plan_code", "synced_at", "next_at", "attempts", "error_kind", "error_code", "error_message",
    "error_request_id", "error_at", "payment", "payment_since", "payment_code", "next_step"}. Standings: in_sync,
    working, waiting, stopped, retrying, queued, parked, held. Payments: null, failed, refused.
    """
    settings = settings_of.read()
    with resources.store(settings) as database, database.read() as session:
        if org is not None:
            _show_one(session, org, as_json=as_json)
            return
        found, posted = overview.overview(session), queue.counts(session, utc_now())
    _show_all(found, posted, settings, as_json=as_json)


def _show_one(session: Session, word: str, *, as_json: bool) -> None:
    now = utc_now()
    report = overview.organization(session, descriptions.meant(session, word).id, now)
    if report is None:
        return
    if as_json:
        output.show_json(descriptions.organization(report, now))
        return
    plan = descriptions.plan(report.plan_tier, report.pending_plan_tier)
    members = descriptions.count(report.members, "member")
    output.show(
        Text.assemble((report.name, "bold"), "  ", report.id),
        f"{plan}, {report.status}, {members}, last changed {output.age(report.updated_at, now)}",
    )
    for link in report.links.values():
        output.show("", *_link(link, report, now))


def _link(link: LinkReport, report: OrganizationReport, now: datetime) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, min_width=12)
    grid.add_column(overflow="fold")
    for label, line in (
        ("customer", link.customer_id),
        ("subscription", link.subscription_id),
        ("plan", descriptions.plan(link.plan_code, link.next_plan_code) if link.plan_code else None),
        ("why", descriptions.why(link)),
        ("next", descriptions.next_step(link, report.id, now)),
        ("payment", descriptions.payment(link, now)),
    ):
        if line:
            grid.add_row(label, Text(line))
    head = Text.assemble((f"{descriptions.NAMES[link.provider]:<7}", "bold"), descriptions.state(link, now))
    return [head, Padding(grid, (0, 0, 0, 2), expand=False)]


def _show_all(found: Overview, posted: queue.Counts, settings: Settings, *, as_json: bool) -> None:
    address, answers = _probe(settings)
    if as_json:
        broker = {"address": address, "answers": answers}
        output.show_json({"in_sync": found.in_sync, **asdict(found), "broker": broker, "mails": asdict(posted)})
        return
    now = utc_now()
    counts = list(found.billers.items())
    output.show(
        descriptions.count(found.organizations, "organization"),
        "",
        output.table(
            counts,
            [
                Column("", lambda row: descriptions.NAMES[row[0]]),
                Column("in sync", lambda row: str(row[1].in_sync), justify="right"),
                Column("behind", lambda row: str(row[1].behind), justify="right"),
                Column("parked", lambda row: str(row[1].parked), justify="right"),
                Column("longest behind", lambda row: output.age(row[1].behind_since, now)),
            ],
        ),
    )
    for provider, each in counts:
        if each.stop is not None:
            output.show("", *descriptions.about_stop(provider, each.stop, now))
    if found.troubles:
        output.show("", output.table(found.troubles, _trouble_columns(now)))
    output.show("", *_lines(found, settings, answers, now), *_mails(posted, settings, now))


def _lines(found: Overview, settings: Settings, answers: bool | None, now: datetime) -> list[str]:  # noqa: FBT001 - three answers
    since = f", the oldest {output.age(found.unpublished_since, now)}" if found.unpublished else ""
    lines = [f"events to publish: {found.unpublished}{since}"]
    if answers is None:
        lines.append("broker: none named; a running `billing-sync up` does the work")
    else:
        lines.append(f"broker: {'answers' if answers else 'does not answer; the rows wait, nothing is lost'}")
    untaken = [
        f"{found.received[verdict]} {verdict}" for verdict in ("refused", "waiting") if found.received.get(verdict)
    ]
    if untaken:
        lines.append(
            f"messages of other services and billers: {', '.join(untaken)}; `billing-sync received` lists them"
        )
    if (last := found.comparison) is not None:
        drifted = f"{descriptions.count(last.drifted, 'organization')} drifted" if last.drifted else "nothing drifted"
        lines.append(f"last comparison with the billers, {output.age(last.finished_at, now)}: {drifted}")
    if any(each.parked for each in found.billers.values()):
        lines.append("`billing-sync parked` says what to do about those that are parked")
    if settings.uses_sandbox and not settings.is_embedded:
        lines.append("no biller is named: workers need STRIPE_SECRET_KEY, STRIPE_API_BASE, LAGO_API_KEY, LAGO_API_URL")
    return lines


def _mails(posted: queue.Counts, settings: Settings, now: datetime) -> list[str]:
    lines = []
    if posted.waiting:
        nowhere = settings.smtp_host is None and not settings.is_embedded
        why = "SMTP_HOST is not set" if nowhere else posted.reason
        oldest = f"the oldest since {output.age(posted.waiting_since, now)}"
        lines.append(f"mails to send: {posted.waiting}, {oldest}{f'; {why}' if why else ''}")
    if posted.given_up:
        lines.append(f"mails given up: {posted.given_up}; `billing-sync parked` lists them")
    return lines


def _trouble_columns(now: datetime) -> list[Column[Trouble]]:
    return [
        Column("links", lambda row: str(row.links), justify="right"),
        Column("biller", lambda row: row.provider),
        Column("state", lambda row: "retrying" if row.state == "open" else "parked"),
        Column("error", lambda row: row.code or row.kind, kind="fold"),
        Column("since", lambda row: output.age(row.since, now)),
        Column("for example", lambda row: row.message, kind="fold"),
    ]


def _probe(settings: Settings) -> tuple[str | None, bool | None]:
    """The broker's address without its password, and whether it answers; one try, a few seconds at most."""
    if settings.is_embedded:
        return None, None
    with build(settings).connection_for_write() as connection:
        address = connection.as_uri()
        try:
            connection.ensure_connection(max_retries=1, timeout=PROBE_SECONDS)
        except (*BROKER_IS_AWAY, KombuError):
            return address, False
        return address, True
