"""Registration: an organization, its owner, work for both billers, and one welcome mail, also when two race."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sqlalchemy import select

from core.common.clock import utc_now
from core.db.models.billing_links import BillingLink
from core.db.models.email import Email
from core.emails import queue
from core.events import outbox
from tests.support.api_client import Api, begin, browser

ALICE = {"sub": "alice", "name": "Alice", "email": "alice@acme.test", "email_verified": True}


def relayed(api: Api) -> list[tuple[str, str]]:
    """The mails that are written when the relay has taken the events."""
    with api.database.write() as session:
        token, events = outbox.lease_batch(session, 500, utc_now())
    with api.database.write() as session:
        marked = outbox.mark_published(session, token, utc_now())
        queue.enqueue_for_events(session, [each for each in events if each.seq in marked], api.catalog, utc_now())
    with api.database.read() as session:
        return [(row.kind, row.recipient) for row in session.scalars(select(Email))]


def due_links(api: Api, org_id: str) -> int:
    with api.database.read() as session:
        links = session.scalars(select(BillingLink).where(BillingLink.org_id == org_id))
        return sum(link.applied_version < link.desired_version for link in links)


def test_a_first_sign_in_registers_and_welcomes(api: Api) -> None:
    api.oidc_provider.signs_in = ALICE
    with browser(api) as each:
        first = each.get("/auth/callback", params=begin(each)).json()
    with browser(api) as each:
        each.get("/auth/callback", params=begin(each))
    assert first["organizations"][0]["role"] == "owner"
    assert due_links(api, first["created"]) == 2
    assert relayed(api) == [("welcome", "alice@acme.test")]


def test_two_first_sign_ins_at_once_are_welcomed_once(api: Api) -> None:
    api.oidc_provider.signs_in = ALICE
    with browser(api) as one, browser(api) as other:
        ready = [(each, begin(each)) for each in (one, other)]

        def call(pair: tuple[httpx.Client, dict[str, str]]) -> bool:
            return pair[0].get("/auth/callback", params=pair[1]).is_success

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(call, ready)) == [True, True]
    assert relayed(api) == [("welcome", "alice@acme.test")]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_whoever_makes_an_organization_by_token_is_welcomed_at_its_address(api: Api) -> None:
    token = api.oidc_provider.token("alice", name="Alice", email="alice@acme.test", email_verified=True)
    made = api.post("/api/organizations", {"name": "Acme"}, {"Authorization": f"Bearer {token}"})
    assert due_links(api, made.json()["org_id"]) == 2
    assert relayed(api) == [("welcome", "alice@acme.test")]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_owner_whom_a_service_names_is_welcomed_at_the_billing_address(api: Api) -> None:
    body = {"name": "Acme", "owner_user_id": "carol", "billing_email": "billing@acme.test"}
    api.post("/api/organizations", body, api.as_service())
    api.post("/api/organizations", {"name": "Nobody's"}, api.as_service())
    assert relayed(api) == [("welcome", "billing@acme.test")]
