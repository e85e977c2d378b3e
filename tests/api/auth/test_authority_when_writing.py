"""Whoever loses a membership, a role or a key while a request is on its way changes nothing with it any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from core.access import api_keys
from core.common.clock import utc_now
from core.db.database import acquire_advisory_locks
from core.db.models.access import ApiKey
from core.db.models.events import Event
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import MembershipRole
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from tests.support.api_client import Api

# A request gets that far within this time on any machine that is not overloaded. If it does not, it is refused earlier.
ON_ITS_WAY_SECONDS = 0.5

Loss = Callable[[Session, str], None]


def removed(session: Session, org_id: str) -> None:
    membership = memberships.lock(session, org_id, "u1")
    assert membership is not None
    memberships.remove(ChangeContext(session, utc_now()), membership)


def made(role: MembershipRole) -> Loss:
    def change(session: Session, org_id: str) -> None:
        membership = memberships.lock(session, org_id, "u1")
        assert membership is not None
        memberships.change_role(ChangeContext(session, utc_now()), membership, role)

    return change


def revoked(session: Session, org_id: str) -> None:  # noqa: ARG001 - a key belongs to no organization
    for key_id in session.scalars(select(ApiKey.id)).all():
        api_keys.revoke(session, key_id, utc_now())


def expired(session: Session, org_id: str) -> None:  # noqa: ARG001 - a key belongs to no organization
    for key_id in session.scalars(select(ApiKey.id)).all():
        acquire_advisory_locks(session, f"api_key:{key_id}")  # as a revocation does; time needs no lock
    session.execute(update(ApiKey).values(expires_at=utc_now()))


@dataclass(frozen=True, kw_only=True)
class LateRequest:
    """``{}`` in the path is the organization. ``role``: of the user who calls; None: a service calls."""

    method: str
    path: str
    body: dict[str, str]
    role: MembershipRole | None
    loss: Loss
    status: int


LATE_REQUESTS = {
    "a removed owner makes another owner": LateRequest(
        method="POST",
        path="/api/organizations/{}/users",
        body={"user_id": "u3", "role": "owner"},
        role="owner",
        loss=removed,
        status=404,
    ),
    "a removed owner gives himself a role": LateRequest(
        method="PUT",
        path="/api/v1/org/{}/members/u1/role",
        body={"role": "owner"},
        role="owner",
        loss=removed,
        status=404,
    ),
    "a removed owner deletes the organization": LateRequest(
        method="PUT",
        path="/api/organizations/{}/status",
        body={"status": "deleted"},
        role="owner",
        loss=removed,
        status=404,
    ),
    "a demoted billing admin changes the plan": LateRequest(
        method="PATCH",
        path="/api/organizations/{}/plan",
        body={"plan_tier": "enterprise"},
        role="billing_admin",
        loss=made("member"),
        status=403,
    ),
    "a demoted owner invites an owner": LateRequest(
        method="POST",
        path="/api/organizations/{}/invitations",
        body={"email": "new@acme.test", "role": "owner"},
        role="owner",
        loss=made("billing_admin"),
        status=403,
    ),
    "a revoked key renames": LateRequest(
        method="PATCH",
        path="/api/organizations/{}",
        body={"name": "Globex"},
        role=None,
        loss=revoked,
        status=401,
    ),
    "an expired key renames": LateRequest(
        method="PATCH",
        path="/api/organizations/{}",
        body={"name": "Globex"},
        role=None,
        loss=expired,
        status=401,
    ),
    "a revoked key sends an event": LateRequest(
        method="POST",
        path="/api/events",
        body={"specversion": "1.0", "id": "1", "source": "/late", "type": "organization.created", "subject": "late"},
        role=None,
        loss=revoked,
        status=401,
    ),
    "a revoked key adds an endpoint": LateRequest(
        method="POST",
        path="/api/webhooks",
        body={"url": "https://hooks.example.com/late"},
        role=None,
        loss=revoked,
        status=401,
    ),
}


@pytest.mark.parametrize("late", LATE_REQUESTS.values(), ids=LATE_REQUESTS)
def test_a_request_without_authority_by_now_changes_nothing(api: Api, late: LateRequest) -> None:
    others: dict[str, MembershipRole] = {"u2": "owner"}
    org_id = api.organization(**others, **({"u1": late.role} if late.role else {}))
    caller = api.as_("u1") if late.role else api.as_service()
    assert api.get(f"/api/organizations/{org_id}", caller).status_code == 200

    def send() -> httpx.Response:
        return api.send(late.method, late.path.format(org_id), caller, late.body)

    with ThreadPoolExecutor(1) as pool:
        with api.database.write() as session:
            commands.lock(session, org_id)
            late.loss(session, org_id)
            known = number_of_events(session)
            sent = pool.submit(send)
            time.sleep(ON_ITS_WAY_SECONDS)
        answer = sent.result()
    assert answer.status_code == late.status, answer.text
    with api.database.read() as session:
        assert number_of_events(session) == known
        assert session.scalar(select(func.count()).select_from(ServiceEvent)) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("role", "status"), [("owner", 404), (None, 401)], ids=["removed", "revoked"])
def test_a_request_that_waits_ends_with_the_authority(api: Api, role: MembershipRole | None, status: int) -> None:
    others: dict[str, MembershipRole] = {"u2": "owner"}
    org_id = api.organization(**others, **({"u1": role} if role else {}))
    caller = api.as_("u1") if role else api.as_service()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.get, f"/api/organizations/{org_id}/sync", caller, wait="30s")
        time.sleep(ON_ITS_WAY_SECONDS)
        with api.database.write() as session:
            (removed if role else revoked)(session, org_id)
        since = time.monotonic()
        assert waiting.result().status_code == status
    assert time.monotonic() - since < 20


def number_of_events(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Event)) or 0
