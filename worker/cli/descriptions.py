"""Plain sentences for rows: an organization's plan, the sync status of a link, and what to do about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text
from sqlalchemy.orm import Session

from core.db.models.billing_links import PAYMENT_BRAKE
from core.db.models.organizations import Organization
from core.flow_control.circuit_breaker import OpenBreaker
from core.organizations import commands
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reconcile.link_status import LinkReport
from core.reporting import planned_changes, search
from core.reporting.overview import OrganizationReport
from core.reporting.search import OrganizationMatch, SearchResult
from worker.cli import output
from worker.cli.exit_codes import NoSuchOrganizationError, UsageError

OrgArgument = Annotated[str, typer.Argument(metavar="ORG", help="Id, the beginning of an id, or the exact name.")]
OptionalOrgArgument = Annotated[
    str | None, typer.Argument(metavar="ORG", help="Id, the beginning of an id, or the exact name.")
]
MAX_CANDIDATES = 5

_OK_STYLE = "green"
_PENDING_STYLE = "yellow"
_PROBLEM_STYLE = "bold red"


def program_path(program: str = "billing-sync") -> str:
    """How to call a program of this environment: by its name if PATH finds it, else by its path."""
    folder, script_folder = Path(sys.executable).parent, Path(sys.argv[0]).parent
    found = shutil.which(program)
    if found is not None and Path(found).parent.resolve() == folder.resolve():
        return program
    return str((script_folder if script_folder.resolve() == folder.resolve() else folder) / program)


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def plan_text(tier: str, pending: str | None, separator: str = " ") -> str:
    """The current plan, and the one scheduled for the end of the period."""
    return f"{tier}{separator}→ {pending}" if pending else tier


def customer_id(row: OrganizationReport, provider: Provider) -> str | None:
    link = row.links.get(provider)
    return link.customer_id if link else None


def sync_summary(links: Iterable[LinkReport]) -> Text:
    """One word for an organization: the sync status of the provider that is furthest behind."""
    statuses = {link.status for link in links}
    if statuses & {"parked", "on_hold"}:
        return Text("parked", style=_PROBLEM_STYLE)
    if "observed" in statuses:
        return Text("observed", style=_PENDING_STYLE)
    if "provider_down" in statuses:
        return Text("provider_down", style=_PROBLEM_STYLE)
    if statuses <= {"in_sync"}:
        return Text("yes", style=_OK_STYLE)
    return Text("retrying" if "retrying" in statuses else "soon", style=_PENDING_STYLE)


def link_status(link: LinkReport, now: datetime) -> Text:
    if link.status == "provider_down":
        return Text(f"waiting: {_breaker_cause(link)}", style=_PENDING_STYLE)
    match link.status:
        case "in_sync":
            return Text(
                f"in sync since {output.utc_time(link.synced_at)}" if link.synced_at else "in sync", style=_OK_STYLE
            )
        case "parked" | "on_hold":
            state = "on hold" if link.status == "on_hold" else "parked"
            return Text(f"{state} {output.relative_time(link.error_at, now)}", style=_PROBLEM_STYLE)
        case "observed":
            return Text(f"observed {output.relative_time(link.observed_at, now)}", style=_PENDING_STYLE)
        case "retrying":
            # 0 attempts after an operator's retry: the error shown is the one from before.
            failed = {0: "", 1: "failed once, "}.get(link.attempts, f"failed {link.attempts} times, ")
            return Text(f"{failed}retrying automatically", style=_PENDING_STYLE)
        case "syncing" | "waiting" | "queued":
            return Text("syncing now" if link.status == "syncing" else link.status, style=_PENDING_STYLE)


def _breaker_cause(link: LinkReport) -> str:
    provider_name = PROVIDER_NAMES[link.provider]
    match link.breaker_reason:
        case "misconfigured":
            return f"{provider_name} rejects our key or settings"
        case "wrong_account":
            return f"the API key belongs to another {provider_name} account"
        case "unavailable" | None:
            return f"{provider_name} is down"


def reason_text(link: LinkReport) -> str | None:
    """The error message, with the provider's error code and request id if there are any."""
    if link.status == "waiting":
        if link.provider == "stripe":
            return "waiting until Lago, which may have a customer of this organization that pays already, was read"
        return "waiting for the Stripe customer that Lago will charge"
    if link.error_message is None or link.status == "in_sync":
        return None
    identifiers = [
        part for part in (link.error_code, link.error_request_id and f"request {link.error_request_id}") if part
    ]
    return link.error_message + (f" [{', '.join(identifiers)}]" if identifiers else "")


def arrangement_text(link: LinkReport) -> str | None:
    """What somebody arranged at the provider, when it was last read."""
    if link.arrangement is None:
        return None
    ends_at = link.arrangement.ends_at
    parts = [
        f"goes on until {output.utc_time(ends_at)}" if ends_at is not None else None,
        "paused" if link.arrangement.is_paused else None,
        "a schedule changes it later" if link.arrangement.has_schedule else None,
        "it or its upgrade waits for its first payment" if link.arrangement.waits_for_payment else None,
    ]
    arranged = ", ".join(part for part in parts if part is not None)
    return f"{arranged}; set in {PROVIDER_NAMES[link.provider]}, not by billing-sync"


def payment_text(link: LinkReport, org_id: str, now: datetime) -> str | None:
    """The payment problem, since when, and what the operator must do. It does not change the plan."""
    if link.payment_status is None:
        return None
    descriptions = {
        "failed": "an invoice could not be charged",
        "payer_rejected": "the payment provider rejects the customer",
        "dispute_lost": "a dispute was lost, so the bank took back what was paid",
        "overdue": "an invoice is past its due date, and nobody has paid it",
        "manual": "its subscription in Lago is paid manually, so Lago charges nobody automatically",
    }
    since = f", since {output.utc_time(link.payment_since)}" if link.payment_since else ""
    age = f" ({output.relative_time(link.payment_since, now)})" if link.payment_since else ""
    code = f" [{link.payment_code}]" if link.payment_code else ""
    steps = {
        "failed": "",
        "payer_rejected": f"; correct the customer in Stripe, then run `billing-sync retry {org_id}`",
        "dispute_lost": f"; void the invoice in Lago, or close it with `billing-sync resolve {org_id} --dispute`",
        "overdue": "; check in Lago that the customer has a payment method, or whether the payment is on its way",
        "manual": "; if that is not meant, set its payment method in Lago",
    }
    return f"{descriptions[link.payment_status]}{since}{age}{code}{steps[link.payment_status]}"


def credit_text(link: LinkReport) -> str | None:
    """The credit at the provider, when it was first seen, and who uses it."""
    if (amount := credit_amount(link)) is None:
        return None
    since = f" since {output.utc_time(link.credit_since)}" if link.credit_since else ""
    if not link.credit_is_left:
        return f"{amount} on the balance in {PROVIDER_NAMES[link.provider]}{since}; the next invoice uses it"
    return (
        f"{amount} left on the balance in {PROVIDER_NAMES[link.provider]}{since}, and no invoice will use it: refund "
        "or grant it, then take it off the balance; the next `billing-sync drift check` sees that"
    )


def credit_amount(link: LinkReport) -> str | None:
    if link.credit_amount is None:
        return None
    return amount_text(link.credit_amount, link.credit_currency or "")


def next_step(link: LinkReport, org_id: str, now: datetime, *, is_deleted: bool = False) -> str | None:
    """What happens next and when; for a parked link, what the operator must do. ``is_deleted``: its organization."""
    match link.status:
        case "in_sync":
            return None
        case "parked" | "on_hold":
            return advice(link, org_id)
        case "observed":
            return _step_while_observed(link, org_id, is_deleted=is_deleted)
        case "provider_down":
            return _step_while_breaker_is_open(link)
        case "syncing" | "waiting" | "retrying" | "queued":
            return _automatic_step(link, link.status, now)


def next_step_of(report: OrganizationReport, link: LinkReport, now: datetime) -> str | None:
    """The same for a link of ``report``, which is observed as a whole until all of it is adopted."""
    if link.status == "observed" and report.is_to_be_adopted:
        return f"{planned_changes.not_adopted(report.id)}; nothing is written before"
    return next_step(link, report.id, now, is_deleted=report.status == "deleted")


def _step_while_observed(link: LinkReport, org_id: str, *, is_deleted: bool) -> str:
    problem = link.observation.problem if link.observation is not None else None
    if problem is not None and problem.is_about_theirs:
        name = PROVIDER_NAMES[link.provider]
        return f"end its subscriptions in {name}; a deleted organization cannot be adopted, so nothing is written"
    if link.is_theirs and is_deleted:
        return "nothing to do; the organization is deleted, and its customer, which is not ours, has no subscription"
    if link.is_theirs:
        return f"{planned_changes.not_adopted(org_id)}; nothing is written before"
    return f"nothing is written; `billing-sync management manage {org_id}` takes these steps"


def would_do(link: LinkReport, report: OrganizationReport) -> list[str]:
    """What a reconcile would do, a sentence each, as last read while it was observed; empty for any other link."""
    if link.observation is None:
        return []
    return planned_changes.sentences(link.provider, link.observation, is_adopted=not report.is_to_be_adopted)


def _automatic_step(
    link: LinkReport, status: Literal["syncing", "waiting", "retrying", "queued"], now: datetime
) -> str:
    at = output.relative_time(link.next_at, now)
    match status:
        case "syncing":
            return f"nothing to do; if the worker dies, another takes over {at}"
        case "waiting":
            if link.provider == "stripe":
                return f"continues as soon as Lago was read, and not before; asks again {at}"
            return f"continues as soon as the Stripe customer exists, or {at} without it"
        case "retrying":
            wait = f"next try {at}" if link.next_at and link.next_at > now else "next try now"
            return f"correct the setting; {wait}" if link.error_kind == "misconfigured" else wait
        case "queued":
            return f"waits for a worker; the sync request is sent again {at}"


def _step_while_breaker_is_open(link: LinkReport) -> str:
    provider_name = PROVIDER_NAMES[link.provider]
    match link.breaker_reason:
        case "misconfigured":
            return (
                "correct the setting and restart the workers, then it resumes automatically; `billing-sync status` "
                f"shows what {provider_name} rejects"
            )
        case "wrong_account":
            return (
                "set the right key and restart every worker, then it resumes automatically; `billing-sync status` "
                "shows both accounts"
            )
        case "unavailable" | None:
            return f"resumes automatically once {provider_name} responds; `billing-sync status` shows why it is down"


def advice(link: LinkReport, org_id: str) -> str:
    """What the operator must do about a parked link. Its error message says what is wrong."""
    retry_command = f"`billing-sync retry {org_id}`"
    nothing_before = f"nothing is sent to {PROVIDER_NAMES[link.provider]} before"
    if link.is_conflict:
        return f"do what the message says; {nothing_before}"
    if link.error_kind == PAYMENT_BRAKE:
        return f"`billing-sync brake list` shows all that is on hold; {nothing_before}"
    if link.error_code == "unknown_plan":
        return (
            f"change the organization to a plan of the catalog (`billing-sync set {org_id} --plan …`), which retries "
            f"both links; or add the plan to plans.toml, restart the workers and the API, and run {retry_command}"
        )
    if link.error_kind == "ambiguous":
        return f"do what the message says; delete no customer in Stripe; then run {retry_command}"
    if link.status == "on_hold":
        return (
            f"{nothing_before}: if the message asks for a customer id, set it with `billing-sync set-customer-id "
            f"{org_id} --{link.provider} …`; otherwise {retry_command} accepts the imported data as it is"
        )
    return (
        f"do what the message says, then run {retry_command}; a new name, plan, billing email or currency also "
        "retries both links"
    )


def open_breaker_lines(provider: Provider, breaker: OpenBreaker, now: datetime) -> list[str]:
    """Since when the breaker is open and why, what happens next, and what the operator must do."""
    since = f"{output.utc_time(breaker.open_since)} ({output.relative_time(breaker.open_since, now)})"
    return [
        f"{PROVIDER_NAMES[provider]}'s circuit breaker has been open since {since}: {breaker.message}",
        f"→ {_breaker_advice(provider, breaker, now)}",
    ]


def _breaker_advice(provider: Provider, breaker: OpenBreaker, now: datetime) -> str:
    is_due = breaker.probe_at is None or breaker.probe_at <= now
    probe = "next probe now" if is_due else f"next probe {output.relative_time(breaker.probe_at, now)}"
    match breaker.reason:
        case "unavailable":
            return f"{probe}; waiting links resume automatically once {PROVIDER_NAMES[provider]} responds"
        case "misconfigured":
            return (
                f"{probe}; correct the setting and restart the workers; if it is already correct, wait for the probe, "
                "or run `billing-sync retry ORG` for one organization whose retry is safe: this also probes "
                f"{PROVIDER_NAMES[provider]} now"
            )
        case "wrong_account":
            return "set the right key and restart every worker; nothing is sent to the provider before"


def refused_webhooks_lines(provider: Provider, since: datetime, now: datetime) -> list[str]:
    """Since when the API refuses the provider's webhooks, and what the operator must do."""
    name = PROVIDER_NAMES[provider]
    when = f"{output.utc_time(since)} ({output.relative_time(since, now)})"
    advice = (
        f"set {provider.upper()}_WEBHOOK_SECRET to the secret of the endpoint in {name} and restart the API; this line "
        "ends with the next webhook that is accepted"
    )
    return [
        f"{name}'s webhooks have been refused since {when}: their signature is not valid for our settings",
        f"→ {advice}",
    ]


def find_organization(session: Session, query: str) -> OrganizationMatch:
    """The organization that the operator typed. Raises ``UsageError`` with similar ones if there is no match."""
    result = search.find_organization(session, query)
    if result.match is None:
        raise NoSuchOrganizationError(_not_found_message(query, result))
    return result.match


def lock_organization(session: Session, query: str) -> Organization:
    """The same, locked for a change. Raises ``UsageError`` also if it vanished meanwhile."""
    found = find_organization(session, query)
    organization = commands.lock(session, found.id)
    if organization is None:
        message = f"there is no organization {found.id} any more; nothing was stored"
        raise UsageError(message)
    return organization


def _not_found_message(query: str, result: SearchResult) -> str:
    if result.is_ambiguous:
        return f"{query!r} is ambiguous: {_candidates(result)}; give the whole id"
    if result.suggestions:
        return f"there is no organization {query!r}; did you mean {_candidates(result)}?"
    return f"there is no organization {query!r}; search by part of a name with `billing-sync orgs --search`"


def link_json(report: LinkReport, org_id: str, now: datetime, *, is_deleted: bool = False) -> dict[str, object]:
    """A link as JSON: the fields of the report, and ``next_step`` as a sentence or null."""
    return {**asdict(report), "next_step": next_step(report, org_id, now, is_deleted=is_deleted)}


def organization_json(report: OrganizationReport, now: datetime | None = None) -> dict[str, object]:
    document = {**asdict(report), "in_sync": report.in_sync}
    if now is not None:
        document["links"] = {
            each.provider: {**asdict(each), "next_step": next_step_of(report, each, now)}
            for each in report.links.values()
        }
    return document


def whole_id(given: str, ids: Collection[str], noun: str, list_command: str) -> str:
    """The id that was typed, whole or its unambiguous beginning, as a table shows it. Raises ``UsageError``."""
    beginning = given.removesuffix("…")
    found = [given] if given in ids else [each for each in ids if beginning and each.startswith(beginning)]
    if len(found) == 1:
        return found[0]
    if found:
        message = f"{given!r} is ambiguous: {', '.join(sorted(found)[:MAX_CANDIDATES])}; give the whole id"
    else:
        message = f"there is no {noun} {given!r}; `billing-sync {list_command}` shows all"
    raise UsageError(message)


def _candidates(result: SearchResult) -> str:
    return ", ".join(f"{each.name} ({each.id})" for each in result.suggestions)
