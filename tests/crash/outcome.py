"""Result of a run at both providers and in the rows, without ids and times: equal for two runs with the same effect.

Everything in the sandbox is compared, including ended subscriptions and each charge, so a second effect shows as one
entry too many. An id is replaced by the type of its object; an id without an object is not replaced, and so differs.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import Membership, Organization
from sandbox.client import SandboxClient
from sandbox.http import JsonDocument

# Times of the providers.
_TIMES = frozenset({"created", "updated", "current_period_start", "current_period_end", "at", "billing_cycle_anchor"})
# URLs and numbers that contain an id, and a count of invoices, whose drafts are finalized by the clock.
_OWN_IDS = frozenset({"latest_invoice", "invoice_prefix", "next_invoice_sequence", "url", "sequential_id", "slug"})
# Requests that create something: each may have its effect once.
_CREATES = frozenset({"POST /v1/customers", "POST /v1/subscriptions"})

Outcome = dict[str, Any]


def outcome(sandbox: SandboxClient, database: Database) -> Outcome:
    state = sandbox.state()
    names = _names(state)
    return {
        "stripe": {object_type: _normalized(rows, names) for object_type, rows in state["stripe"].items()},
        "lago": {object_type: _normalized(rows, names) for object_type, rows in state["lago"].items()},
        "charges": _normalized(state["charges"], names),
        "creates": _creates(sandbox),
        "rows": _rows(database, names),
    }


def difference(expected: Outcome, found: Outcome) -> list[str]:
    """The lines that differ; empty if both are the same."""
    before, after = (json.dumps(each, indent=1, sort_keys=True, default=str).splitlines() for each in (expected, found))
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def _names(state: JsonDocument) -> dict[str, str]:
    names = {}
    for provider in ("stripe", "lago"):
        for object_type, rows in state[provider].items():
            for row in rows:
                # Objects of one type differ by their other fields; a duplicate shows as the same text twice.
                names[str(row.get("lago_id") or row["id"])] = f"<{provider} {object_type}>"
    for subscription in state["stripe"]["subscriptions"]:
        for item in subscription["items"]["data"]:
            names[item["id"]] = "<stripe items>"
    return names


def _normalized(rows: list[JsonDocument], names: dict[str, str]) -> list[Any]:
    normalized = [_without_times(row, names) for row in rows]
    return sorted(normalized, key=lambda row: json.dumps(row, sort_keys=True))


def _without_times(value: Any, names: dict[str, str]) -> Any:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        return {
            key: _without_times(each, names)
            for key, each in value.items()
            if key not in _TIMES and key not in _OWN_IDS and not key.endswith(("_at", "_date"))
        }
    if isinstance(value, list):
        return [_without_times(each, names) for each in value]
    if isinstance(value, str):
        return names.get(value, value)
    return value


def _creates(sandbox: SandboxClient) -> dict[str, int]:
    """The creates that had an effect; a replay and a rejected one had none."""
    return dict(
        Counter(
            call.operation
            for call in sandbox.calls()
            if call.operation in _CREATES and not call.replayed and call.fault is None and call.status in {200, None}
        )
    )


def _rows(database: Database, names: dict[str, str]) -> Outcome:
    with database.read() as session:
        organizations = session.scalars(select(Organization).order_by(Organization.id)).all()
        links = session.scalars(select(BillingLink).order_by(BillingLink.org_id, BillingLink.provider)).all()
        return {
            "organizations": [
                [each.name, each.plan_tier, each.pending_plan_tier, each.status, each.billing_email]
                for each in organizations
            ],
            "links": [_link(each, names) for each in links],
            "members": session.scalar(select(func.count()).select_from(Membership)),
            "events": sorted(session.scalars(select(Event.type).where(Event.type.not_in(_OF_THE_ORDER)))),
            "synced events": _synced_events(session, organizations),
            "service events": sorted(f"{row[0]} {row[1]}" for row in session.execute(_EVENT_STATUSES)),
        }


# How often both providers had a change, and whether a link was parked until the other one was done, depend on the order
# of the links.
_OF_THE_ORDER = ("organization.synced", "link.parked")


def _synced_events(session: Session, organizations: Sequence[Organization]) -> list[bool]:
    """Whether the last one is of the newest version, and no version has two. How many there are in total may vary."""
    synced_events = select(Event.org_id, Event.data).where(Event.type == "organization.synced").order_by(Event.seq)
    versions: dict[str, list[int]] = {}
    for org_id, data in session.execute(synced_events):
        versions.setdefault(org_id, []).append(data["version"])
    return [
        (synced := versions.get(each.id, [0]))[-1] == each.version and len(synced) == len(set(synced))
        for each in organizations
    ]


_EVENT_STATUSES = select(ServiceEvent.id, ServiceEvent.status)


def _link(link: BillingLink, names: dict[str, str]) -> dict[str, object]:
    return {
        "provider": link.provider,
        "customer": names.get(link.customer_id or "", link.customer_id),
        "subscription": names.get(link.subscription_id or "", link.subscription_id),
        "payer": names.get(link.payer_id or "", link.payer_id),
        "state": link.state,
        "in sync": link.applied_version == link.desired_version,
        "plans": [link.applied_plan, link.applied_next_plan],
        "intent": link.intent is not None and link.state == "active",
        "leased": link.lease_until is not None and link.lease_until > datetime.now(link.lease_until.tzinfo),
        "error": link.error_code,
    }
