"""The command that shows what happened to one organization, or what it was at a time in the past."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from core.common.json_types import Json
from core.db.database import Database
from core.events.event_types import BY_SYSTEM
from core.ports.spec import PROVIDER_NAMES, Provider
from core.reporting import history as organization_history
from core.reporting.history import HistoryEntry, PastLink, PastState
from worker.cli import descriptions, output, resources
from worker.cli.exit_codes import UsageError
from worker.cli.output import Column


def history(
    *,
    org: descriptions.OrgArgument,
    at: Annotated[
        str | None, typer.Option(help="Show plan, status and links as they were then, such as 2026-11-01T12:00Z.")
    ] = None,
    before: Annotated[str | None, typer.Option(help="Show only what happened before this time.")] = None,
    limit: output.LimitOption = 50,
    as_json: output.JsonOption = False,
) -> None:
    """Show every change of an organization, what was sent to which provider, and what came of it, newest first.

    Times are in UTC, also those that you give without a time zone. A request without a request id was sent and got no
    answer. Changes are kept for good; what was sent is kept for HISTORY_RETENTION_DAYS.

    JSON: {"org_id", "entries": [{"at", "subject", "kind", "provider", "by", "details"}]}; with --at {"org_id", "at",
    "plan_tier", "pending_plan_tier", "status", "links": {provider: {"provider", "as_of", "outcome", "state",
    "customer_id", "subscription_id", "plan_code", "next_plan_code"} or null}}.
    """
    moment, earlier_than = _time("--at", at), _time("--before", before)
    if moment is not None and earlier_than is not None:
        message = "choose one: --at shows one moment, --before shows older entries"
        raise UsageError(message)
    with resources.open_database() as database:
        if moment is not None:
            _show_past(database, org, moment, as_json=as_json)
            return
        with database.read() as session:
            org_id = descriptions.find_organization(session, org).id
            found = organization_history.entries(session, org_id, limit, earlier_than)
    if as_json:
        output.show_json({"org_id": org_id, "entries": [asdict(each) for each in found]})
        return
    if not found:
        output.show("Nothing is known before that time." if earlier_than else "Nothing is known of it.")
        return
    output.show(output.table(found, _COLUMNS))
    if len(found) >= limit:
        oldest = found[-1].at.isoformat().replace("+00:00", "Z")
        output.show("", f"Older: `billing-sync history {org_id} --before {oldest}`")


def _show_past(database: Database, org: str, moment: datetime, *, as_json: bool) -> None:
    with database.read() as session:
        org_id = descriptions.find_organization(session, org).id
        past = organization_history.state_at(session, org_id, moment)
    if past is None:
        message = f"{org_id} did not exist at {moment.isoformat()}; `billing-sync history {org_id}` shows since when"
        raise UsageError(message)
    if as_json:
        output.show_json({"org_id": org_id, **asdict(past)})
        return
    output.show(f"{org_id} at {_clock_time(past.at)} UTC", _plan_line(past), "")
    output.show(output.table(list(past.links.items()), _PAST_COLUMNS))


def _plan_line(past: PastState) -> str:
    return f"{descriptions.plan_text(past.plan_tier, past.pending_plan_tier)}, {past.status}"


def _time(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        message = f"{option} must be a time such as 2026-11-01T12:00Z, not {text}"
        raise UsageError(message) from None
    return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed.astimezone(UTC)


def _clock_time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"


def _what(entry: HistoryEntry) -> str:
    describe = _DESCRIPTIONS.get(entry.kind if entry.subject in {"change", "action"} else entry.subject)
    text = describe(entry.kind, entry.details) if describe is not None else entry.kind
    is_by_somebody = entry.subject in {"change", "action"} and entry.by is not None and entry.by != _BY_US
    return f"{text}, by {entry.by}" if is_by_somebody else text


def _plan_change(_kind: str, details: Mapping[str, Json]) -> str:
    when = "at period end" if details["at"] == "period_end" else "now"
    return f"plan {details['from']} → {details['to']}, {when}"


def _sync(kind: str, details: Mapping[str, Json]) -> str:
    requests, error = details.get("requests"), details.get("error")
    sent = [f"{each['operation']} {each['request_id'] or '(no answer)'}" for each in _documents(requests)]
    reason = f": {error['message']}" if isinstance(error, dict) else ""
    version = f" version {details['version']}" if kind == "synced" else ""
    return "\n".join([f"{kind.replace('_', ' ')}{version}{reason}", *sent])


def _documents(found: Json) -> list[dict[str, Json]]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _list(found: Json) -> str:
    return ", ".join(str(each) for each in found) if isinstance(found, list) else ""


_DESCRIPTIONS: Final[dict[str, Callable[[str, Mapping[str, Json]], str]]] = {
    "organization.created": lambda _, details: f"created on {details['plan_tier']}",
    "organization.renamed": lambda _, __: "renamed",
    "organization.plan_changed": _plan_change,
    "organization.status_changed": lambda _, details: f"status {details['from']} → {details['to']}",
    "organization.billing_details_changed": lambda _, details: f"changed: {_list(details['fields'])}",
    "organization.synced": lambda _, details: f"both providers have version {details['version']}",
    "resolved": lambda kind, details: f"{kind}: {details['decision']}",
    "organization.adopted": lambda _, details: f"adopted: {details['action']}",
    "organization.released": lambda _, __: "given back: nothing is written to it any more",
    "organization.management_changed": lambda _, details: f"mode: {details['management'] or 'as MANAGEMENT'}",
    "adopted": lambda kind, details: f"{kind}: customer {details['customer_id']}",
    "payer_given": lambda _, __: "Lago gets a payer from now on",
    "released": lambda _, details: f"given back: customer {details['customer_id']}",
    "payment_released": lambda _, details: f"the payment brake let it go: {details['reason']}",
    "payment_dropped": lambda _, details: f"dropped at the payment brake: {details['reason']}",
    "usage_plan_set": lambda _, details: f"moved to the plan {details['plan']} in Lago, which costs nothing",
    "price_move_started": lambda _, details: f"moved from {details['before']} to {details['after']}",
    "organization.price_change_scheduled": lambda _, details: f"price changes on {str(details['effective_at'])[:10]}",
    "customer_id_set": lambda _, details: f"customer id set: {details['customer_id']}",
    "sync": _sync,
    "message": lambda kind, details: f"message {details['type']} {kind}",
    "webhook": lambda kind, details: f"webhook {details['type']} {kind}",
    "email": lambda kind, details: f"email {details['kind']} {kind}",
    "delivery": lambda kind, details: f"{details['type']} to {details['endpoint_id']} {kind}",
    "drift": lambda _, details: f"drift found: {_list(details['kinds'])}",
}


def _provider_cell(entry: HistoryEntry) -> str:
    return PROVIDER_NAMES[entry.provider] if entry.provider is not None else ""


def _past(field: Callable[[PastLink], str | None]) -> Callable[[tuple[Provider, PastLink | None]], str]:
    return lambda row: (field(row[1]) if row[1] is not None else None) or output.EMPTY_CELL


_BY_US: Final = f"{BY_SYSTEM.actor} ({BY_SYSTEM.source})"
_COLUMNS: Final[list[Column[HistoryEntry]]] = [
    Column("UTC", lambda entry: _clock_time(entry.at)),
    Column("", _provider_cell),
    Column("what", _what, kind="fold"),
]
_PAST_COLUMNS: Final[list[Column[tuple[Provider, PastLink | None]]]] = [
    Column("", lambda row: PROVIDER_NAMES[row[0]]),
    Column("state", _past(lambda link: link.state)),
    Column("customer", _past(lambda link: link.customer_id), kind="id"),
    Column("subscription", _past(lambda link: link.subscription_id), kind="id"),
    Column(
        "plan",
        _past(lambda link: descriptions.plan_text(link.plan_code, link.next_plan_code) if link.plan_code else None),
    ),
    Column("as of", _past(lambda link: _clock_time(link.as_of))),
]
