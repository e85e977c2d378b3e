"""What a run has left at both billers and in the rows, without ids and times: equal for two runs that did the same.

Everything that the sandbox holds is compared, ended subscriptions and each charge included, so a second effect shows
as one entry too many. An id becomes the name of what it names; one that names nothing stays, and so differs.
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

# When it happened, and numbers that count attempts rather than effects.
_TIMES = frozenset({"created", "updated", "current_period_start", "current_period_end", "at", "billing_cycle_anchor"})
# Addresses and numbers that hold an id.
_OWN_IDS = frozenset({"latest_invoice", "invoice_prefix", "url", "sequential_id", "slug"})
# Requests that make something: each may have its effect once.
_CREATES = frozenset({"POST /v1/customers", "POST /v1/subscriptions"})

Outcome = dict[str, Any]


def outcome(sandbox: SandboxClient, database: Database) -> Outcome:
    state = sandbox.state()
    names = _names(state)
    return {
        "stripe": {object_type: _normalized(rows, names) for object_type, rows in state["stripe"].items()},
        "lago": {object_type: _normalized(rows, names) for object_type, rows in state["lago"].items()},
        "charges": _normalized(state["charges"], names),
        "made": _made(sandbox),
        "rows": _rows(database, names),
    }


def difference(expected: Outcome, found: Outcome) -> list[str]:
    """The lines that differ; none: the same."""
    before, after = (json.dumps(each, indent=1, sort_keys=True, default=str).splitlines() for each in (expected, found))
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    return [line for line in lines if not line.startswith(("---", "+++", "@@"))]


def _names(state: JsonDocument) -> dict[str, str]:
    names = {}
    for provider in ("stripe", "lago"):
        for object_type, rows in state[provider].items():
            for row in rows:
                # Two of a kind are told apart by what they say: the same text twice is a second one.
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


def _made(sandbox: SandboxClient) -> dict[str, int]:
    """Creates that had an effect; a replay and a refusal had none."""
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
            "events": sorted(session.scalars(select(Event.type).where(Event.type != "organization.synced"))),
            "said in sync": _said_in_sync(session, organizations),
            "received": sorted(f"{row[0]} {row[1]}" for row in session.execute(_EVENT_STATUSES)),
        }


def _said_in_sync(session: Session, organizations: Sequence[Organization]) -> list[bool]:
    """Whether it was said of the newest version, and of none twice. How many there were on the way is chance."""
    synced_events = select(Event.org_id, Event.data).where(Event.type == "organization.synced").order_by(Event.seq)
    versions: dict[str, list[int]] = {}
    for org_id, data in session.execute(synced_events):
        versions.setdefault(org_id, []).append(data["version"])
    return [
        (said := versions.get(each.id, [0]))[-1] == each.version and len(said) == len(set(said))
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
