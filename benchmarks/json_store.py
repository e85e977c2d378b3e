"""Baseline store: two JSON files, read completely and written completely for every change, as the predecessor did.

It has one writer at a time and replaces each file by a new one, so it lacks the faults by which the predecessor lost
data.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, Field


class JsonOrganization(BaseModel):
    id: str
    name: str = Field(min_length=1, max_length=200)
    created_at: datetime
    plan_tier: str
    lago_customer_id: str | None = None
    stripe_customer_id: str | None = None
    status: str = "active"


class JsonMember(BaseModel):
    org_id: str
    user_id: str
    role: str
    joined_at: datetime


Organizations = dict[str, JsonOrganization]
Members = dict[str, list[JsonMember]]


class JsonStore:
    def __init__(self, folder: Path) -> None:
        self._organizations = folder / "organizations.json"
        self._members = folder / "org_users.json"

    def fill(self, organizations: int, seats: int) -> None:
        now = datetime.now(UTC)
        created = {
            f"org_{number}": _organization(f"org_{number}", f"Organization {number}", now)
            for number in range(organizations)
        }
        user_ids = {
            org_id: [f"user_{(number * 7 + seat * 13) % organizations}_{seat % 3}" for seat in range(seats)]
            for number, org_id in enumerate(created)
        }
        members = {org_id: [_member(org_id, user_id, now) for user_id in users] for org_id, users in user_ids.items()}
        self._write_organizations(created)
        self._write_members(members)

    def create_organization(self, name: str) -> str:
        organizations = self._read_organizations()
        if any(each.name.casefold() == name.casefold() for each in organizations.values()):
            message = "already exists"
            raise ValueError(message)
        org_id = f"org_{uuid4()}"
        organizations[org_id] = _organization(org_id, name, datetime.now(UTC))
        self._write_organizations(organizations)
        return org_id

    def add_user_to_org(self, org_id: str, user_id: str) -> None:
        if org_id not in self._read_organizations():
            return
        members = self._read_members()
        members.setdefault(org_id, []).append(_member(org_id, user_id, datetime.now(UTC)))
        self._write_members(members)

    def get_user_orgs(self, user_id: str) -> list[JsonOrganization]:
        organizations, members = self._read_organizations(), self._read_members()
        mine = [org for org, seats in members.items() if any(seat.user_id == user_id for seat in seats)]
        return [organizations[org] for org in mine]

    def update_org_plan(self, org_id: str, plan_tier: str) -> None:
        organizations = self._read_organizations()
        organizations[org_id].plan_tier = plan_tier
        self._write_organizations(organizations)

    def _read_organizations(self) -> Organizations:
        rows = json.loads(self._organizations.read_text(encoding="utf-8"))
        return {org_id: JsonOrganization(**row) for org_id, row in rows.items()}

    def _read_members(self) -> Members:
        rows = json.loads(self._members.read_text(encoding="utf-8"))
        return {org_id: [JsonMember(**row) for row in members] for org_id, members in rows.items()}

    def _write_organizations(self, organizations: Organizations) -> None:
        _replace(self._organizations, {org_id: each.model_dump() for org_id, each in organizations.items()})

    def _write_members(self, members: Members) -> None:
        _replace(self._members, {org_id: [each.model_dump() for each in seats] for org_id, seats in members.items()})


def _organization(org_id: str, name: str, now: datetime) -> JsonOrganization:
    return JsonOrganization(id=org_id, name=name, created_at=now, plan_tier="starter")


def _member(org_id: str, user_id: str, now: datetime) -> JsonMember:
    return JsonMember(org_id=org_id, user_id=user_id, role="member", joined_at=now)


def _replace(file: Path, content: dict[str, Any]) -> None:
    new = file.with_suffix(".new")
    new.write_text(json.dumps(content, indent=2, default=str), encoding="utf-8")
    new.replace(file)
