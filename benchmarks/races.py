"""Who wins where authority ends while a request is on its way: 1,000 times for each kind, against one running API.

    python -m benchmarks.races [--times 1000]

In each race a request and the loss of its authority start at the same moment, each in its own connection to Postgres
(the one that DATABASE_URL names, else a wheel's). The loss takes its lock first, then reads whether the change of the
request is there already. A change that is there only afterwards was made without authority, and exit code 1 follows.
The columns of who came first show that both orders happen.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Barrier
from typing import Final

import httpx
import structlog
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from api.context import ApiContext
from api.issuer_client import IssuerSettings
from api.oidc import Issuer
from api.rate_limit import LocalClientRateLimiter
from api.server import ApiServer
from core.access import api_keys, invitations
from core.access.invitations import Invitee
from core.access.limits import UserLimits
from core.catalog import plans as plan_catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.access import ApiKey
from core.db.models.organizations import Membership, Organization
from core.db.models.webhooks import WebhookEndpoint
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.webhooks.endpoints import MAX_ENDPOINTS_OF_ACCOUNT
from core.webhooks.signing import Signer
from tests.support import servers
from tests.support.api_client import SIGNING_SECRET, Api
from tests.support.oidc_provider import AUDIENCE, OidcProvider

# A request takes some milliseconds, so within this time either may come first.
MAX_HEAD_START_SECONDS: Final = 0.025
CHANGED_NAME: Final = "Changed"
UNLIMITED: Final = 1_000_000
NO_LIMITS: Final = UserLimits(organizations=UNLIMITED, invitations=UNLIMITED, invitations_to_recipient=UNLIMITED)

Send = Callable[[], httpx.Response]
Lose = Callable[[Session], None]
IsMade = Callable[[Session], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class RacingRequest:
    """``send``: the request. ``lose``: takes its authority, behind a lock. ``is_made``: whether its change is there."""

    send: Send
    lose: Lose
    is_made: IsMade


@dataclass(slots=True, kw_only=True)
class RaceCount:
    times: int = 0
    request_first: int = 0
    loss_first: int = 0
    won_without_authority: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Requests against the loss of their authority.")
    parser.add_argument("--times", type=int, default=1000, help="times for each kind")
    times = int(parser.parse_args().times)
    structlog.configure(processors=[], logger_factory=structlog.ReturnLoggerFactory())
    won = 0
    with running_api() as api:
        for name, race in RACES.items():
            began = time.monotonic()
            count = race(api, times)
            won += count.won_without_authority
            print(
                f"{name:32} {count.times:,} times: {count.request_first:,} with the request first, "
                f"{count.loss_first:,} with the loss first, {count.won_without_authority} won by the one without "
                f"authority; {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return 1 if won else 0


@contextmanager
def running_api() -> Iterator[Api]:
    """An API with a sign-in service, on a Postgres database of its own, without limits that a race could reach."""
    with ExitStack() as stack:
        server = stack.enter_context(servers.postgres())
        database = Database(stack.enter_context(servers.database(server)))
        stack.callback(database.close)
        database.upgrade()
        oidc_provider = stack.enter_context(OidcProvider())
        issuer = Issuer(IssuerSettings(issuer=oidc_provider.issuer, audience=AUDIENCE))
        catalog = plan_catalog.load()
        context = ApiContext(
            database=database,
            catalog=catalog,
            clock=utc_now,
            issuer=issuer,
            rate_limiter=LocalClientRateLimiter(UNLIMITED),
            signer=Signer(SIGNING_SECRET),
            user_limits=NO_LIMITS,
        )
        running = stack.enter_context(ApiServer(context, "127.0.0.1", 0, version="benchmark"))
        http = stack.enter_context(httpx.Client(base_url=running.url, trust_env=False, timeout=60))
        yield Api(running.url, database, catalog, oidc_provider, issuer, http, [])


def race_against_loss(make_race: Callable[[Api, int], RacingRequest]) -> Callable[[Api, int], RaceCount]:
    def run(api: Api, times: int) -> RaceCount:
        count = RaceCount()
        for number in range(times):
            _run_race(api, make_race(api, number), count)
        return count

    return run


def _run_race(api: Api, racing: RacingRequest, count: RaceCount) -> None:
    together = Barrier(2)

    def send() -> None:
        together.wait()
        racing.send()

    def lose() -> bool:
        together.wait()
        time.sleep(random.uniform(0, MAX_HEAD_START_SECONDS))  # noqa: S311 - no secret
        with api.database.write() as session:
            racing.lose(session)
            # Whoever commits while the lock is held did not take it.
            return racing.is_made(session)

    with ThreadPoolExecutor(2) as pool:
        sent, lost = pool.submit(send), pool.submit(lose)
        sent.result()
        was_first = lost.result()
    with api.database.read() as session:
        is_made = racing.is_made(session)
    count.times += 1
    count.request_first += was_first
    count.loss_first += not was_first
    count.won_without_authority += is_made and not was_first


def removed(api: Api, number: int) -> RacingRequest:
    """An owner is removed while he renames, changes the plan, deletes, or makes another owner."""
    org_id = api.organization("starter", owner="owner", other="owner", member="member")
    path, headers = f"/api/organizations/{org_id}", api.as_("owner")
    requests: list[tuple[str, str, dict[str, str]]] = [
        ("PATCH", path, {"name": f"{CHANGED_NAME} {number}"}),
        ("PATCH", f"{path}/plan", {"plan_tier": "enterprise"}),
        ("PUT", f"{path}/status", {"status": "deleted"}),
        ("PUT", f"{path}/users/member/role", {"role": "owner"}),
    ]
    method, where, body = requests[number % len(requests)]

    def lose(session: Session) -> None:
        commands.lock(session, org_id)
        membership = memberships.lock(session, org_id, "owner")
        if membership is not None and not _is_deleted(session, org_id):
            memberships.remove(ChangeContext(session, utc_now()), membership)

    return RacingRequest(
        send=lambda: api.send(method, where, headers, body), lose=lose, is_made=lambda it: _is_changed(it, org_id)
    )


def demoted(api: Api, number: int) -> RacingRequest:  # noqa: ARG001 - each race is the same
    """A billing admin becomes a member while he changes the plan."""
    org_id = api.organization("starter", owner="owner", bill="billing_admin", member="member")
    headers = api.as_("bill")

    def lose(session: Session) -> None:
        commands.lock(session, org_id)
        membership = memberships.lock(session, org_id, "bill")
        if membership is not None:
            memberships.change_role(ChangeContext(session, utc_now()), membership, "member")

    return RacingRequest(
        send=lambda: api.send("PATCH", f"/api/organizations/{org_id}/plan", headers, {"plan_tier": "enterprise"}),
        lose=lose,
        is_made=lambda session: _is_changed(session, org_id),
    )


def key_revoked(api: Api, number: int) -> RacingRequest:
    """An API key is revoked while its service renames."""
    org_id = api.organization("starter", member="member")
    headers = api.as_service()
    with api.database.read() as session:
        key_id = session.scalars(select(ApiKey.id).order_by(ApiKey.created_at.desc()).limit(1)).one()
    body = {"name": f"{CHANGED_NAME} {number}"}
    return RacingRequest(
        send=lambda: api.send("PATCH", f"/api/organizations/{org_id}", headers, body),
        lose=lambda session: _revoke(session, key_id),
        is_made=lambda session: _is_changed(session, org_id),
    )


def invitation_withdrawn(api: Api, number: int) -> RacingRequest:  # noqa: ARG001 - each race is the same
    """An invitation is revoked while its user accepts it."""
    org_id = api.organization("starter", owner="owner")
    with api.database.write() as session:
        organization = commands.lock(session, org_id)
        if organization is None:
            raise AssertionError(org_id)
        invitee, change = Invitee(user_id="guest"), ChangeContext(session, utc_now())
        invitation_id = invitations.invite(change, organization, invitee, "member", "owner", NO_LIMITS).id
    headers = api.as_("guest")

    def lose(session: Session) -> None:
        commands.lock(session, org_id)
        invitations.revoke(ChangeContext(session, utc_now()), org_id, invitation_id, "owner")

    return RacingRequest(
        send=lambda: api.post(f"/api/invitations/{invitation_id}/accept", {}, headers),
        lose=lose,
        is_made=lambda session: session.get(Membership, (org_id, "guest"), populate_existing=True) is not None,
    )


def race_last_owner(api: Api, times: int) -> RaceCount:
    """The last two owners leave, or remove each other, at the same moment. One must stay."""
    count = RaceCount()
    for number in range(times):
        org_id = api.organization("starter", ann="owner", bob="owner")
        if number % 2:
            sends = [_leave(api, org_id, user_id) for user_id in ("ann", "bob")]
        else:
            sends = [_remove(api, org_id, "ann", "bob"), _remove(api, org_id, "bob", "ann")]
        _send_together(sends)
        with api.database.read() as session:
            owners = list(
                session.scalars(
                    select(Membership.user_id).where(Membership.org_id == org_id, Membership.role == "owner")
                )
            )
        count.times += 1
        count.request_first += owners == ["ann"]
        count.loss_first += owners == ["bob"]
        count.won_without_authority += len(owners) != 1
    return count


def race_endpoint_bound(api: Api, times: int) -> RaceCount:
    """A service adds two endpoints at the same moment where one is left. It must not get both."""
    count, headers = RaceCount(), api.as_service(account="races")
    for number in range(MAX_ENDPOINTS_OF_ACCOUNT - 1):
        if not _add_endpoint(api, headers, number)().is_success:
            raise AssertionError(number)
    with api.database.read() as session:
        kept = list(session.scalars(select(WebhookEndpoint.id)))
    for _ in range(times):
        first, second = _send_together([_add_endpoint(api, headers, each) for each in (1, 2)])
        with api.database.write() as session:
            total = session.scalar(select(func.count()).select_from(WebhookEndpoint)) or 0
            session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.id.not_in(kept)))
        count.times += 1
        count.request_first += first.is_success
        count.loss_first += second.is_success
        count.won_without_authority += total != MAX_ENDPOINTS_OF_ACCOUNT
    return count


def _send_together(sends: list[Send]) -> list[httpx.Response]:
    together = Barrier(len(sends))

    def one(send: Send) -> httpx.Response:
        together.wait()
        return send()

    with ThreadPoolExecutor(len(sends)) as pool:
        return list(pool.map(one, sends))


def _leave(api: Api, org_id: str, user_id: str) -> Send:
    headers = api.as_(user_id)
    return lambda: api.post(f"/api/organizations/{org_id}/leave", {}, headers)


def _remove(api: Api, org_id: str, by: str, user_id: str) -> Send:
    headers = api.as_(by)
    return lambda: api.send("DELETE", f"/api/organizations/{org_id}/users/{user_id}", headers)


def _add_endpoint(api: Api, headers: dict[str, str], number: int) -> Send:
    return lambda: api.post("/api/webhooks", {"url": f"https://hooks.example.com/{number}"}, headers)


def _revoke(session: Session, key_id: str) -> None:
    api_keys.revoke(session, key_id, utc_now())
    session.flush()


def _is_deleted(session: Session, org_id: str) -> bool:
    return session.scalar(select(Organization.status).where(Organization.id == org_id)) == "deleted"


def _is_changed(session: Session, org_id: str) -> bool:
    """Whether the organization has the change of any request of these races."""
    columns = (Organization.name, Organization.plan_tier, Organization.status)
    name, plan_tier, status = session.execute(select(*columns).where(Organization.id == org_id)).one()
    is_owner = select(Membership.role).where(Membership.org_id == org_id, Membership.user_id == "member")
    return (
        name.startswith(CHANGED_NAME)
        or (plan_tier, status) != ("starter", "active")
        or session.scalar(is_owner) == "owner"
    )


RACES: Final[dict[str, Callable[[Api, int], RaceCount]]] = {
    "removed while writing": race_against_loss(removed),
    "demoted": race_against_loss(demoted),
    "key revoked": race_against_loss(key_revoked),
    "invitation withdrawn": race_against_loss(invitation_withdrawn),
    "last owner from two sides": race_last_owner,
    "endpoint bound": race_endpoint_bound,
}

if __name__ == "__main__":
    sys.exit(main())
