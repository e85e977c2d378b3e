"""The sync status of organizations, read from the database. No provider is called; the broker is only probed."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy.orm import Session

from core.catalog.plans import CatalogError
from core.common.clock import utc_now
from core.db.database import is_read_only
from core.emails import queue
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reconcile import charging_moves
from core.reconcile.link_status import LinkReport
from core.reconcile.payment_goals import ON_HOLD_CODES
from core.reporting import heartbeats, overview
from core.reporting.overview import FailureGroup, OrganizationReport, Overview
from worker.cli import deployment, descriptions, output, resources
from worker.cli.deployment import SetUpSummary
from worker.cli.output import Column
from worker.config import settings as settings_of
from worker.config.settings import Settings, SettingsError
from worker.wiring import catalog as catalog_wiring

if TYPE_CHECKING:
    from worker.wiring.broker_probe import BrokerState  # it loads the broker's client


def status(*, org: descriptions.OptionalOrgArgument = None, as_json: output.JsonOption = False) -> None:
    """Show what is in sync, behind and parked; for one organization also the reason and the next step.

    JSON: {"version", "database": {"kind", "place", "is_read_only"}, "addresses": {provider: host}, "charges":
    {provider: [tier]} or null, "processes": [{"kind", "host", "version", "started_at", "last_heartbeat_at"}] of the
    last minute, "in_sync", "organizations", "providers": {"stripe": {"in_sync", "behind", "parked", "observed",
    "behind_since", "payment_problems": {payment: count}, "credit_left", "account_id", "livemode", "open_breaker":
    {"reason", "open_since", "message", "probe_at"} or null, "webhooks_refused_since"}, "lago": …},
    "failures": [{"provider", "state", "kind", "code", "links", "since", "message"}], "unpublished",
    "unpublished_since", "inbox": {status: count}, "changes_on_hold": {code: links that the payment brake holds},
    "charged_by_other": {provider that is to charge: organizations that the other one charges},
    "last_drift_report": {"finished_at", "drifted", "kinds": {kind: count}} or null, "broker": {"address", "reachable",
    "refusal": why it accepts no message, or null, "queue_problems": [why no worker can use it]},
    "emails": {"waiting", "waiting_since", "reason", "failed"}}.

    With ORG: an organization as in `orgs`; its links: {"provider", "status", "breaker_reason", "customer_id",
    "subscription_id", "plan_code", "next_plan_code", "arrangement": {"ends_at", "is_paused", "has_schedule",
    "waits_for_payment"} or null,
    "synced_at", "next_at", "attempts", "error_kind", "error_code",
    "error_message", "error_request_id", "error_at", "is_conflict", "payment_status", "payment_since", "payment_code",
    "credit_amount", "credit_currency", "credit_since", "credit_is_left", "observation": as in `management report`, or
    null, "observed_at", "is_theirs", "next_step"}. Amounts are in minor units.
    Statuses: in_sync, syncing, waiting, provider_down, retrying, queued, parked, on_hold, observed. Payments: null,
    failed, payer_rejected, dispute_lost, overdue, manual.
    """
    settings, now = settings_of.read(), utc_now()
    with resources.open_database(settings) as database, database.read() as session:
        if org is not None:
            _show_organization(session, org, as_json=as_json)
            return
        found, emails = overview.summarize(session), queue.counts(session, now)
        described = deployment.describe(
            settings, database, heartbeats.running(session, now), is_read_only=is_read_only(session)
        )
        found = replace(found, charged_by_other=_moves(session, settings))
    _show_overview(described, found, emails, settings, as_json=as_json)


def _moves(session: Session, settings: Settings) -> dict[Provider, int]:
    """Empty also where the catalog cannot be read, which the head of the status says."""
    try:
        return charging_moves.counts_to_move(session, catalog_wiring.load(settings))
    except (CatalogError, SettingsError):
        return {}


def _show_organization(session: Session, query: str, *, as_json: bool) -> None:
    now = utc_now()
    report = overview.organization_report(session, descriptions.find_organization(session, query).id, now)
    if report is None:
        return
    if as_json:
        output.show_json(descriptions.organization_json(report, now))
        return
    plan = descriptions.plan_text(report.plan_tier, report.pending_plan_tier)
    members = descriptions.plural(report.members, "member")
    output.show(
        Text.assemble((report.name, "bold"), "  ", report.id),
        f"{plan}, {report.status}, {members}, last changed {output.relative_time(report.updated_at, now)}",
    )
    for link in report.links.values():
        output.show("", *_link_lines(link, report, now))


def _link_lines(link: LinkReport, report: OrganizationReport, now: datetime) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, min_width=12)
    grid.add_column(overflow="fold")
    for label, line in (
        ("customer", link.customer_id),
        ("subscription", link.subscription_id),
        ("plan", descriptions.plan_text(link.plan_code, link.next_plan_code) if link.plan_code else None),
        ("arranged", descriptions.arrangement_text(link)),
        ("reason", descriptions.reason_text(link)),
        *(("would", sentence) for sentence in descriptions.would_do(link, report)),
        ("next", descriptions.next_step_of(report, link, now)),
        ("payment", descriptions.payment_text(link, report.id, now)),
        ("credit", descriptions.credit_text(link)),
    ):
        if line:
            grid.add_row(label, Text(line))
    head = Text.assemble((f"{PROVIDER_NAMES[link.provider]:<7}", "bold"), descriptions.link_status(link, now))
    return [head, Padding(grid, (0, 0, 0, 2), expand=False)]


def _show_overview(
    described: SetUpSummary, overview: Overview, emails: queue.QueueCounts, settings: Settings, *, as_json: bool
) -> None:
    broker_state = _probe_broker(settings)
    if as_json:
        broker = {
            "address": broker_state.address if broker_state else None,
            "reachable": broker_state.responds if broker_state else None,
            "refusal": broker_state.refusal if broker_state else None,
            "queue_problems": [each.text for each in broker_state.queue_problems] if broker_state else [],
        }
        document = {**asdict(described), "in_sync": overview.in_sync, **asdict(overview)}
        output.show_json({**document, "broker": broker, "emails": asdict(emails)})
        return
    now = utc_now()
    counts = list(overview.providers.items())
    output.show(
        deployment.head(described, overview, settings, now),
        "",
        descriptions.plural(overview.organizations, "organization"),
        "",
        output.table(
            counts,
            [
                Column("", lambda row: PROVIDER_NAMES[row[0]]),
                Column("in sync", lambda row: str(row[1].in_sync), justify="right"),
                Column("behind", lambda row: str(row[1].behind), justify="right"),
                Column("parked", lambda row: str(row[1].parked), justify="right"),
                Column("observed", lambda row: str(row[1].observed), justify="right"),
                Column("longest behind", lambda row: output.relative_time(row[1].behind_since, now)),
            ],
        ),
    )
    for provider, provider_counts in counts:
        if provider_counts.open_breaker is not None:
            output.show("", *descriptions.open_breaker_lines(provider, provider_counts.open_breaker, now))
        if provider_counts.webhooks_refused_since is not None:
            output.show("", *descriptions.refused_webhooks_lines(provider, provider_counts.webhooks_refused_since, now))
    if overview.failures:
        output.show("", output.table(overview.failures, _error_columns(now)))
    output.show("", *_overview_lines(overview, settings, broker_state, now), *_email_lines(emails, settings, now))


def _overview_lines(
    overview: Overview, settings: Settings, broker_state: BrokerState | None, now: datetime
) -> list[str]:
    since = f", the oldest {output.relative_time(overview.unpublished_since, now)}" if overview.unpublished else ""
    lines = [
        *_brake_lines(overview),
        *(charging_moves.sentence(to, count) for to, count in overview.charged_by_other.items()),
        f"events to publish: {overview.unpublished}{since}",
        f"broker: {_broker_text(broker_state)}",
    ]
    not_applied = [
        f"{overview.inbox[inbox_status]} {inbox_status}"
        for inbox_status in ("rejected", "waiting")
        if overview.inbox.get(inbox_status)
    ]
    if not_applied:
        lines.append(f"incoming messages: {', '.join(not_applied)}; `billing-sync inbox list` lists them")
    if (last_report := overview.last_drift_report) is not None:
        drifted = (
            f"{descriptions.plural(last_report.drifted, 'organization')} with drift"
            if last_report.drifted
            else "no drift"
        )
        lines.append(f"last drift check, {output.relative_time(last_report.finished_at, now)}: {drifted}")
    lines += _payment_lines(overview)
    lines += _credit_lines(overview)
    if any(each.observed for each in overview.providers.values()):
        lines.append("`billing-sync management report` shows what would be written to observed links")
    if any(each.parked for each in overview.providers.values()):
        lines.append("`billing-sync parked` shows what to do about parked links")
    if settings.uses_sandbox and not settings.is_embedded:
        lines.append(
            "no provider is configured: workers need STRIPE_SECRET_KEY, STRIPE_API_BASE, LAGO_API_KEY, LAGO_API_URL"
        )
    return lines


def _brake_lines(overview: Overview) -> list[str]:
    """First of all: while an end is on hold, somebody who has left goes on paying."""
    total, ends = sum(overview.changes_on_hold.values()), overview.changes_on_hold.get(ON_HOLD_CODES["end"], 0)
    who_left = "; somebody who has left goes on paying" if ends else ""
    counts = [
        *([descriptions.plural(ends, "end") + " of subscriptions"] if ends else []),
        *([descriptions.plural(total - ends, "other change" if ends else "change")] if total > ends else []),
    ]
    if not counts:
        return []
    return [f"payment brake: {' and '.join(counts)} on hold{who_left}; `billing-sync brake list` shows all"]


def _broker_text(state: BrokerState | None) -> str:
    if state is None:
        return "none configured; work is done only while `billing-sync up` runs"
    if state.tls_problem is not None:
        return f"TLS fails: {state.tls_problem}; work stays in the database, nothing is lost"
    if not state.responds:
        return "does not respond; work stays in the database, nothing is lost"
    if state.refusal is not None:
        return (
            f"accepts no message, because {state.refusal}; work stays in the database, nothing is lost; "
            "`billing-sync doctor` says what to do"
        )
    if state.queue_problems:
        return (
            f"responds, but no worker can use it: {state.queue_problems[0].text}; work stays in the database; "
            "`billing-sync doctor` says what to do"
        )
    return "responds"


def _payment_lines(overview: Overview) -> list[str]:
    """The problems by provider; with which organizations they are is for `orgs`."""
    lines = [
        f"payment problems at {PROVIDER_NAMES[provider]}: "
        + ", ".join(f"{number} {status}" for status, number in sorted(counts.payment_problems.items()))
        for provider, counts in overview.providers.items()
        if counts.payment_problems
    ]
    return [*lines, "`billing-sync orgs --unpaid` lists their organizations"] if lines else []


def _credit_lines(overview: Overview) -> list[str]:
    return [
        f"credit left at {PROVIDER_NAMES[provider]}: {descriptions.plural(counts.credit_left, 'customer')}; "
        "`billing-sync orgs --credit` lists them"
        for provider, counts in overview.providers.items()
        if counts.credit_left
    ]


def _email_lines(emails: queue.QueueCounts, settings: Settings, now: datetime) -> list[str]:
    lines = []
    if emails.waiting:
        no_server = settings.smtp_host is None and not settings.is_embedded
        reason = "SMTP_HOST is not set" if no_server else emails.reason
        oldest = f"the oldest since {output.relative_time(emails.waiting_since, now)}"
        lines.append(f"emails to send: {emails.waiting}, {oldest}{f'; {reason}' if reason else ''}")
    if emails.failed:
        lines.append(f"failed emails: {emails.failed}; `billing-sync parked` lists them")
    return lines


def _error_columns(now: datetime) -> list[Column[FailureGroup]]:
    return [
        Column("links", lambda row: str(row.links), justify="right"),
        Column("provider", lambda row: row.provider),
        Column("state", lambda row: "retrying" if row.state == "active" else "parked"),
        Column("error", lambda row: row.code or row.kind, kind="fold"),
        Column("since", lambda row: output.relative_time(row.since, now)),
        Column("example", lambda row: row.message, kind="fold"),
    ]


def _probe_broker(settings: Settings) -> BrokerState | None:
    """``None``: no broker is configured."""
    if settings.is_embedded:
        return None
    from worker.wiring import broker_probe

    return broker_probe.probe(settings)
