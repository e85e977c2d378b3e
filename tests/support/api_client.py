"""Client of the API for tests, and a browser that signs in."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

from api.oidc import Issuer
from core.access import api_keys, invitations, service_accounts, users
from core.access.api_keys import SCOPES, Scope
from core.access.invitations import Invitee
from core.access.limits import UserLimits
from core.access.users import UserProfile
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.organizations import MembershipRole
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.organizations.commands import NewOrganization
from core.webhooks import endpoints
from core.webhooks.endpoints import NewEndpoint
from tests.support.oidc_provider import OidcProvider

SIGNING_SECRET = "a signing secret of the tests, long enough"
OWN_ORIGIN = "http://testserver.test"


@dataclass
class Api:
    """The running API. ``as_`` returns the headers of a user who signed in, and ``log`` has the server's log lines."""

    url: str
    database: Database
    catalog: Catalog
    oidc_provider: OidcProvider
    issuer: Issuer
    http: httpx.Client
    log: list[MutableMapping[str, Any]]
    made: int = field(default=0)
    accounts: dict[str, str] = field(default_factory=dict)

    def as_(self, user_id: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.oidc_provider.token(user_id)}"}

    def as_service(self, *scopes: Scope, account: str = "a service") -> dict[str, str]:
        """With a new key of the service account of this name."""
        account_id = self.account_id(account)
        with self.database.write() as session:
            _, key = api_keys.create(session, "a key", scopes or SCOPES, utc_now(), account_id=account_id)
        return {"Authorization": f"Bearer {key}"}

    def account_id(self, account: str = "a service") -> str:
        """The service account of this name, which is created first if necessary."""
        if account not in self.accounts:
            with self.database.write() as session:
                self.accounts[account] = service_accounts.create(session, account, utc_now()).id
        return self.accounts[account]

    def organization(self, plan_tier: str = "professional", **roles: MembershipRole) -> str:
        """Create an organization with these members, without the API."""
        self.made += 1
        with self.database.write() as session:
            change = ChangeContext(session, utc_now())
            new = NewOrganization(name=f"Organization {self.made}", plan_tier=plan_tier)
            organization = commands.create(change, new, self.catalog)
            for user_id, role in roles.items():
                memberships.add(change, organization, user_id, role)
            return organization.id

    def webhook(self) -> str:
        """Create a webhook endpoint of "a service" without the API; all earlier ones are removed."""
        account_id = self.account_id()
        with self.database.write() as session:
            for earlier in endpoints.list_all(session):
                endpoints.remove(session, earlier.id)
            new = NewEndpoint(url="https://hooks.example.com", account_id=account_id)
            return endpoints.add(session, new, utc_now(), allow_private=False).id

    def invitation(self, org_id: str, user_id: str, invited_by: str | None = None) -> tuple[str, str]:
        """Invite a user whose address is known, without the API and its limits; returns the invitation's id and token.

        ``invited_by`` None: by a service.
        """
        email = f"{user_id.replace(' ', '.')}@acme.test"
        limits = UserLimits(invitations=1_000_000, invitations_to_recipient=1_000_000)
        with self.database.write() as session:
            change = ChangeContext(session, utc_now())
            organization = commands.lock(session, org_id)
            assert organization is not None
            users.upsert(change, UserProfile(user_id=user_id, email=email))
            made = invitations.invite(change, organization, Invitee(email=email), "member", invited_by, limits)
            return made.id, invitations.new_token(session, made.id)[1]

    def get(self, path: str, headers: dict[str, str] | None = None, **params: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        return self.http.get(path, headers=headers, params=params)

    def post(self, path: str, body: object, headers: dict[str, str], key: str | None = None) -> httpx.Response:
        named = {"Idempotency-Key": key} if key else {}
        return self.http.post(path, json=body, headers=headers | named)

    def send(self, method: str, path: str, headers: dict[str, str], body: object = None) -> httpx.Response:
        return self.http.request(method, path, headers=headers, json=body)


def begin(browser: httpx.Client) -> dict[str, str]:
    """Go to the OIDC provider's page and back; returns the parameters of our callback, which is not called yet."""
    sent = browser.get("/auth/login")
    assert sent.status_code == 303
    back = httpx.get(sent.headers["location"], trust_env=False)
    assert back.headers["location"].startswith(f"{OWN_ORIGIN}/auth/callback?")
    return {name: values[0] for name, values in parse_qs(urlsplit(back.headers["location"]).query).items()}


def browser(api: Api) -> httpx.Client:
    return httpx.Client(base_url=api.url, trust_env=False, timeout=60)
