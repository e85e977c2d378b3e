"""What rows mean in a person's words: a plan and the next one, where a link stands, what to do about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text
from sqlalchemy.orm import Session

from core.flow_control.circuit_breaker import OpenBreaker
from core.ports.spec import Provider
from core.reconcile.link_status import LinkReport
from core.reporting import search
from core.reporting.overview import OrganizationReport
from core.reporting.search import OrganizationMatch, SearchResult
from worker.cli import output
from worker.cli.exit_codes import UsageError

OrgArgument = Annotated[str, typer.Argument(metavar="ORG", help="Id, the beginning of an id, or the exact name.")]
OptionalOrgArgument = Annotated[
    str | None, typer.Argument(metavar="ORG", help="Id, the beginning of an id, or the exact name.")
]
EMBEDDED_NOTICE = (
    "No broker is named, so only the rows were written: a running `billing-sync up` takes them up within a minute."
)

PROVIDER_LABELS: dict[Provider, str] = {"stripe": "Stripe", "lago": "Lago"}
_OK_STYLE = "green"
_PENDING_STYLE = "yellow"
_PROBLEM_STYLE = "bold red"


def program_path(program: str = "billing-sync") -> str:
    """A program of this environment as a person types it here: by its name where PATH leads to it, else by its path."""
    folder, script_folder = Path(sys.executable).parent, Path(sys.argv[0]).parent
    found = shutil.which(program)
    if found is not None and Path(found).parent.resolve() == folder.resolve():
        return program
    return str((script_folder if script_folder.resolve() == folder.resolve() else folder) / program)


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plan_text(tier: str, pending: str | None, separator: str = " ") -> str:
    """The present plan, and the one that waits for the end of the period."""
    return f"{tier}{separator}→ {pending}" if pending else tier


def customer_id(row: OrganizationReport, provider: Provider) -> str | None:
    link = row.links.get(provider)
    return link.customer_id if link else None


def sync_summary(links: Iterable[LinkReport]) -> Text:
    """One word for an organization: the one about the biller that is furthest from it."""
    statuses = {link.status for link in links}
    if statuses & {"parked", "on_hold"}:
        return Text("parked", style=_PROBLEM_STYLE)
    if "provider_down" in statuses:
        return Text("provider_down", style=_PROBLEM_STYLE)
    if statuses <= {"in_sync"}:
        return Text("yes", style=_OK_STYLE)
    return Text("retrying" if "retrying" in statuses else "soon", style=_PENDING_STYLE)


def link_status(link: LinkReport, now: datetime) -> Text:
    match link.status:
        case "in_sync":
            return Text(
                f"in sync since {output.utc_time(link.synced_at)}" if link.synced_at else "in sync", style=_OK_STYLE
            )
        case "parked" | "on_hold":
            return Text(f"parked {output.relative_time(link.error_at, now)}", style=_PROBLEM_STYLE)
        case "syncing":
            return Text("a worker is at it", style=_PENDING_STYLE)
        case "waiting" | "provider_down":
            provider_down = link.status == "provider_down"
            return Text(
                f"waits: {PROVIDER_LABELS[link.provider]} is stopped" if provider_down else "waits",
                style=_PENDING_STYLE,
            )
        case "retrying":
            # None since a person retried it: the error told is the one from before.
            failed = {0: "", 1: "failed once, "}.get(link.attempts, f"failed {link.attempts} times, ")
            return Text(f"{failed}tried again by itself", style=_PENDING_STYLE)
        case "queued":
            return Text("has work to do", style=_PENDING_STYLE)


def reason_text(link: LinkReport) -> str | None:
    """The row's own reason, with the biller's code and request id where it named them."""
    if link.error_message is None or link.status == "in_sync":
        return None
    identifiers = [
        part for part in (link.error_code, link.error_request_id and f"request {link.error_request_id}") if part
    ]
    return link.error_message + (f" [{', '.join(identifiers)}]" if identifiers else "")


def payment_text(link: LinkReport, now: datetime) -> str | None:
    """What is wrong with paying, and since when. The plan stays as it is."""
    if link.payment_status is None:
        return None
    descriptions = {
        "failed": "an invoice could not be charged",
        "payer_rejected": "the payment provider does not take the customer",
    }
    since = f", since {output.utc_time(link.payment_since)}" if link.payment_since else ""
    age = f" ({output.relative_time(link.payment_since, now)})" if link.payment_since else ""
    return f"{descriptions[link.payment_status]}{since}{age}" + (f" [{link.payment_code}]" if link.payment_code else "")


def next_step(link: LinkReport, org_id: str, now: datetime) -> str | None:
    """What happens next and when; for a parked link, what a person does."""
    at = output.relative_time(link.next_at, now)
    match link.status:
        case "in_sync":
            return None
        case "parked" | "on_hold":
            return advice(link, org_id)
        case "syncing":
            return f"nothing to do; should the worker die, another takes over {at}"
        case "waiting" | "provider_down":
            once_provider_answers = (
                f"taken up by itself once {PROVIDER_LABELS[link.provider]} answers; `billing-sync status` says "
                "why not now"
            )
            once_payer_exists = f"goes ahead as soon as Stripe's customer is there, without it {at}"
            return once_provider_answers if link.status == "provider_down" else once_payer_exists
        case "retrying":
            wait = f"next try {at}" if link.next_at and link.next_at > now else "next try now"
            return f"correct the setting, then wait: {wait}" if link.error_kind == "misconfigured" else wait
        case "queued":
            return f"taken up once a worker runs; its message is sent again {at}"


def advice(link: LinkReport, org_id: str) -> str:
    """What a person does about a parked link. The message says what is wrong; this says how it goes on."""
    retry_command = f"`billing-sync retry {org_id}`"
    if link.error_code == "unknown_plan":
        return (
            "give it a plan of the catalog and it goes on by itself; or add the plan to plans.toml, then "
            f"{retry_command}"
        )
    if link.error_kind == "ambiguous":
        return (
            f"look at {PROVIDER_LABELS[link.provider]} which of them is right and remove the others, then "
            f"{retry_command}"
        )
    if link.status == "on_hold":
        return f"decide it, then {retry_command}; nothing is sent before"
    return f"put that right, then {retry_command}; a change of the organization has it tried again, too"


def open_breaker_lines(provider: Provider, breaker: OpenBreaker, now: datetime) -> list[str]:
    """Since when and why; what happens next and what a person does."""
    since = f"{output.utc_time(breaker.open_since)} ({output.relative_time(breaker.open_since, now)})"
    return [
        f"{PROVIDER_LABELS[provider]} is stopped since {since}: {breaker.message}",
        f"→ {_breaker_advice(provider, breaker, now)}",
    ]


def _breaker_advice(provider: Provider, breaker: OpenBreaker, now: datetime) -> str:
    is_due = breaker.probe_at is None or breaker.probe_at <= now
    probe = "next try now" if is_due else f"next try {output.relative_time(breaker.probe_at, now)}"
    match breaker.reason:
        case "unavailable":
            return f"{probe}; what waits is taken up by itself once {PROVIDER_LABELS[provider]} answers"
        case "misconfigured":
            return (
                f"{probe}; correct the setting and restart the workers, or where it is right already, "
                "`billing-sync retry --all`"
            )
        case "wrong_account":
            return "set the right key and restart every worker; nothing is sent there before"


def find_organization(session: Session, query: str) -> OrganizationMatch:
    """The organization that somebody typed. Raises ``UsageError`` with those that come close."""
    result = search.find_organization(session, query)
    if result.match is None:
        raise UsageError(_not_found_message(query, result))
    return result.match


def _not_found_message(query: str, result: SearchResult) -> str:
    if result.is_ambiguous:
        return f"{query!r} may mean {_candidates(result)}: give the whole id"
    if result.suggestions:
        return f"no organization is called {query!r}; did you mean {_candidates(result)}?"
    return f"no organization is called {query!r}; `billing-sync orgs --search` finds a part of a name"


def link_json(report: LinkReport, org_id: str, now: datetime) -> dict[str, object]:
    """A link in JSON: the row's fields, and ``next_step`` as a sentence or null."""
    return {**asdict(report), "next_step": next_step(report, org_id, now)}


def organization_json(report: OrganizationReport, now: datetime | None = None) -> dict[str, object]:
    document = {**asdict(report), "in_sync": report.in_sync}
    if now is not None:
        document["links"] = {each.provider: link_json(each, report.id, now) for each in report.links.values()}
    return document


def _candidates(result: SearchResult) -> str:
    return ", ".join(f"{each.name} ({each.id})" for each in result.suggestions)
