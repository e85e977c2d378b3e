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

from core.flow_control.circuit_breaker import Stop
from core.ports.spec import Provider
from core.reconcile.link_status import LinkReport
from core.reporting import search
from core.reporting.overview import OrganizationReport
from core.reporting.search import Lookup, Named
from worker.cli import output
from worker.cli.exit_codes import UsageError

Org = Annotated[str, typer.Argument(metavar="ORG", help="Id, the beginning of an id, or the exact name.")]
MaybeOrg = Annotated[str | None, typer.Argument(metavar="ORG", help="Id, the beginning of an id, or the exact name.")]
EMBEDDED = (
    "No broker is named, so only the rows were written: a running `billing-sync up` takes them up within a minute."
)

NAMES: dict[Provider, str] = {"stripe": "Stripe", "lago": "Lago"}
_FINE = "green"
_SOON = "yellow"
_STOPPED = "bold red"


def typed(program: str = "billing-sync") -> str:
    """A program of this environment as a person types it here: by its name where PATH leads to it, else by its path."""
    folder, called = Path(sys.executable).parent, Path(sys.argv[0]).parent
    found = shutil.which(program)
    if found is not None and Path(found).parent.resolve() == folder.resolve():
        return program
    return str((called if called.resolve() == folder.resolve() else folder) / program)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plan(tier: str, pending: str | None, between: str = " ") -> str:
    """The present plan, and the one that waits for the end of the period."""
    return f"{tier}{between}→ {pending}" if pending else tier


def id_at(row: OrganizationReport, provider: Provider) -> str | None:
    link = row.links.get(provider)
    return link.customer_id if link else None


def standing(links: Iterable[LinkReport]) -> Text:
    """One word for an organization: the one about the biller that is furthest from it."""
    found = {link.standing for link in links}
    if found & {"parked", "held"}:
        return Text("parked", style=_STOPPED)
    if "stopped" in found:
        return Text("stopped", style=_STOPPED)
    if found <= {"in_sync"}:
        return Text("yes", style=_FINE)
    return Text("retrying" if "retrying" in found else "soon", style=_SOON)


def state(link: LinkReport, now: datetime) -> Text:
    match link.standing:
        case "in_sync":
            return Text(
                f"in sync since {output.clock_time(link.synced_at)}" if link.synced_at else "in sync", style=_FINE
            )
        case "parked" | "held":
            return Text(f"parked {output.age(link.error_at, now)}", style=_STOPPED)
        case "working":
            return Text("a worker is at it", style=_SOON)
        case "waiting" | "stopped":
            stopped = link.standing == "stopped"
            return Text(f"waits: {NAMES[link.provider]} is stopped" if stopped else "waits", style=_SOON)
        case "retrying":
            # None since a person retried it: the error told is the one from before.
            failed = {0: "", 1: "failed once, "}.get(link.attempts, f"failed {link.attempts} times, ")
            return Text(f"{failed}tried again by itself", style=_SOON)
        case "queued":
            return Text("has work to do", style=_SOON)


def why(link: LinkReport) -> str | None:
    """The row's own reason, with the biller's code and request id where it named them."""
    if link.error_message is None or link.standing == "in_sync":
        return None
    named = [part for part in (link.error_code, link.error_request_id and f"request {link.error_request_id}") if part]
    return link.error_message + (f" [{', '.join(named)}]" if named else "")


def payment(link: LinkReport, now: datetime) -> str | None:
    """What is wrong with paying, and since when. The plan stays as it is."""
    if link.payment is None:
        return None
    said = {"failed": "an invoice could not be charged", "refused": "the payment provider does not take the customer"}
    since = f", since {output.clock_time(link.payment_since)}" if link.payment_since else ""
    age = f" ({output.age(link.payment_since, now)})" if link.payment_since else ""
    return f"{said[link.payment]}{since}{age}" + (f" [{link.payment_code}]" if link.payment_code else "")


def next_step(link: LinkReport, org_id: str, now: datetime) -> str | None:
    """What happens next and when; for a parked link, what a person does."""
    at = output.age(link.next_at, now)
    match link.standing:
        case "in_sync":
            return None
        case "parked" | "held":
            return advice(link, org_id)
        case "working":
            return f"nothing to do; should the worker die, another takes over {at}"
        case "waiting" | "stopped":
            there = f"taken up by itself once {NAMES[link.provider]} answers; `billing-sync status` says why not now"
            first = f"goes ahead as soon as Stripe's customer is there, without it {at}"
            return there if link.standing == "stopped" else first
        case "retrying":
            wait = f"next try {at}" if link.next_at and link.next_at > now else "next try now"
            return f"correct the setting, then wait: {wait}" if link.error_kind == "misconfigured" else wait
        case "queued":
            return f"taken up once a worker runs; its message is sent again {at}"


def advice(link: LinkReport, org_id: str) -> str:
    """What a person does about a parked link. The message says what is wrong; this says how it goes on."""
    again = f"`billing-sync retry {org_id}`"
    if link.error_code == "unknown_plan":
        return f"give it a plan of the catalog and it goes on by itself; or add the plan to plans.toml, then {again}"
    if link.error_kind == "ambiguous":
        return f"look at {NAMES[link.provider]} which of them is right and remove the others, then {again}"
    if link.standing == "held":
        return f"decide it, then {again}; nothing is sent before"
    return f"put that right, then {again}; a change of the organization has it tried again, too"


def about_stop(provider: Provider, stop: Stop, now: datetime) -> list[str]:
    """Since when and why; what happens next and what a person does."""
    since = f"{output.clock_time(stop.since)} ({output.age(stop.since, now)})"
    return [f"{NAMES[provider]} is stopped since {since}: {stop.message}", f"→ {_way_out(provider, stop, now)}"]


def _way_out(provider: Provider, stop: Stop, now: datetime) -> str:
    soon = stop.probe_at is None or stop.probe_at <= now
    probe = "next try now" if soon else f"next try {output.age(stop.probe_at, now)}"
    match stop.kind:
        case "unavailable":
            return f"{probe}; what waits is taken up by itself once {NAMES[provider]} answers"
        case "misconfigured":
            return (
                f"{probe}; correct the setting and restart the workers, or where it is right already, "
                "`billing-sync retry --all`"
            )
        case "wrong_account":
            return "set the right key and restart every worker; nothing is sent there before"


def meant(session: Session, word: str) -> Named:
    """The organization that somebody typed. Raises ``UsageError`` with those that come close."""
    lookup = search.find(session, word)
    if lookup.found is None:
        raise UsageError(_unknown(word, lookup))
    return lookup.found


def _unknown(word: str, lookup: Lookup) -> str:
    if lookup.ambiguous:
        return f"{word!r} may mean {_listed(lookup)}: give the whole id"
    if lookup.close:
        return f"no organization is called {word!r}; did you mean {_listed(lookup)}?"
    return f"no organization is called {word!r}; `billing-sync orgs --search` finds a part of a name"


def link(report: LinkReport, org_id: str, now: datetime) -> dict[str, object]:
    """A link in JSON: the row's fields, and ``next_step`` as a sentence or null."""
    return {**asdict(report), "next_step": next_step(report, org_id, now)}


def organization(report: OrganizationReport, now: datetime | None = None) -> dict[str, object]:
    document = {**asdict(report), "in_sync": report.in_sync}
    if now is not None:
        document["links"] = {each.provider: link(each, report.id, now) for each in report.links.values()}
    return document


def _listed(lookup: Lookup) -> str:
    return ", ".join(f"{each.name} ({each.id})" for each in lookup.close)
