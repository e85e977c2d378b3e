"""Findings of a drift check, their JSON form, and the id of a report, which is a hash of its findings.

`billing-sync drift repair` repairs a finding only if an ordinary sync attempt corrects it, and only if nobody then pays
less, or pays somebody else. All other findings have an advice for an operator, which is never to delete a customer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from pydantic import TypeAdapter

from core.ports.spec import Provider

FindingKind = Literal[
    "missing",
    "deleted",
    "renamed",
    "email",
    "currency",
    "wrong_plan",
    "back_link",
    "duplicate",
    "unknown_customer",
    "broken_link",
    "double_charging",
    "foreign_subscription",
    "arrangement",
    "wrong_account",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OurWrite:
    """Who last changed the organization in our database."""

    actor: str
    source: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TheirWrite:
    """Who last wrote the object at the provider, as far as it says. ``evidence``: the provider's record of it."""

    by: Literal["us", "not us", "unknown"]
    at: datetime | None = None
    evidence: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One field that differs. ``object_id``: the customer or subscription at the provider, if there is one.

    ``is_on_hold``: the link waits for the decision of an operator already, and is not repaired.
    """

    kind: FindingKind
    provider: Provider
    object_id: str | None
    field: str
    ours: str | None
    theirs: str | None
    repairable: bool
    advice: str
    is_on_hold: bool = False
    our_write: OurWrite | None = None
    their_write: TheirWrite | None = None

    @property
    def is_about_subscription(self) -> bool:
        return self.field in {"subscription", "plan", "next_plan", "arrangement"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairStep:
    """What the repair writes again at one provider, and every request of it."""

    provider: Provider
    customer: bool
    subscription: bool
    calls: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftItem:
    """The findings of one organization. ``row_versions``: the versions and ids of its rows, when it was inspected.

    ``inspected_customer_ids``: the customers that were read at each provider. An organization that we do not know has
    neither name nor row versions. ``org_id`` None: the findings are about the provider itself.
    """

    org_id: str | None
    name: str | None = None
    row_versions: str = ""
    inspected_customer_ids: Mapping[Provider, tuple[str, ...]]
    findings: tuple[Finding, ...]
    repairs: tuple[RepairStep, ...] = ()

    def is_same_as(self, other: DriftItem | None) -> bool:
        """Whether both have the same findings; who wrote last is not compared."""
        return other is not None and _without_writers(self) == _without_writers(other)


_DRIFT_ITEM_ADAPTER = TypeAdapter(DriftItem)


def to_json(drift: DriftItem) -> dict[str, Any]:
    document: dict[str, Any] = _DRIFT_ITEM_ADAPTER.dump_python(drift, mode="json")
    return document


def from_json(document: Mapping[str, Any]) -> DriftItem:
    return _DRIFT_ITEM_ADAPTER.validate_python(document)


def report_id(drifts: Iterable[DriftItem]) -> str:
    """A hash of the findings: the same findings always have the same id."""
    digest = hashlib.sha256()
    for drift in drifts:
        digest.update(json.dumps(to_json(drift), sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _without_writers(drift: DriftItem) -> DriftItem:
    return replace(drift, findings=tuple(replace(each, our_write=None, their_write=None) for each in drift.findings))
