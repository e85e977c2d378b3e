"""The API as a server on loopback, on each database, with a sign-in service of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from api.context import ApiContext
from api.oidc import Issuer, IssuerSettings
from api.provider_queries import ProviderQueries
from api.rate_limit import ClientRateLimiter, LocalClientRateLimiter
from api.server import ApiServer
from core.access import api_keys, invitations, users
from core.access.api_keys import SCOPES, Scope
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
from core.webhooks.signing import Signer
from tests.api.provider import AUDIENCE, CLIENT_ID, CLIENT_SECRET, Provider

SIGNING_SECRET = "a signing secret of the tests, long enough"
OWN_ORIGIN = "http://testserver.test"


@dataclass
class Api:
    """The server as its callers see it; ``as_`` gives the headers of somebody who signed in, ``log`` its lines."""

    url: str
    database: Database
    catalog: Catalog
    provider: Provider
    issuer: Issuer
    http: httpx.Client
    log: list[MutableMapping[str, Any]]
    made: int = field(default=0)

    def as_(self, user_id: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.provider.token(user_id)}"}

    def as_service(self, *scopes: Scope) -> dict[str, str]:
        with self.database.write() as session:
            _, key = api_keys.create(session, "a service", scopes or SCOPES, utc_now())
        return {"Authorization": f"Bearer {key}"}

    def organization(self, plan_tier: str = "professional", **roles: MembershipRole) -> str:
        """An organization with these members, made beside the API."""
        self.made += 1
        with self.database.write() as session:
            change = ChangeContext(session, utc_now())
            new = NewOrganization(name=f"Organization {self.made}", plan_tier=plan_tier)
            organization = commands.create(change, new, self.catalog)
            for user_id, role in roles.items():
                memberships.add(change, organization, user_id, role)
            return organization.id

    def webhook(self) -> str:
        """A webhook endpoint, made beside the API; the one that was made before makes room for it."""
        with self.database.write() as session:
            for earlier in endpoints.list_all(session):
                endpoints.remove(session, earlier.id)
            new = NewEndpoint(url="https://hooks.example.com")
            return endpoints.add(session, new, utc_now(), allow_private=False).id

    def invitation(self, org_id: str, user_id: str) -> tuple[str, str]:
        """Id and token of one for somebody whose address is known, made beside the API."""
        email = f"{user_id.replace(' ', '.')}@acme.test"
        with self.database.write() as session:
            change = ChangeContext(session, utc_now())
            organization = commands.lock(session, org_id)
            assert organization is not None
            users.upsert(change, UserProfile(user_id=user_id, email=email))
            made = invitations.invite(change, organization, email, "member", None)
            return made.id, invitations.new_token(session, made.id)[1]

    def get(self, path: str, headers: dict[str, str] | None = None, **params: Any) -> httpx.Response:  # noqa: ANN401 - httpx's own
        return self.http.get(path, headers=headers, params=params)

    def post(self, path: str, body: object, headers: dict[str, str], key: str | None = None) -> httpx.Response:
        named = {"Idempotency-Key": key} if key else {}
        return self.http.post(path, json=body, headers=headers | named)

    def send(self, method: str, path: str, headers: dict[str, str], body: object = None) -> httpx.Response:
        return self.http.request(method, path, headers=headers, json=body)


@pytest.fixture(scope="session")
def provider_server() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture
def provider(provider_server: Provider) -> Provider:
    """As new: its first key, nobody away, Alice at its page."""
    provider_server.away = False
    provider_server.nonce_is = None
    provider_server.signs_in = {"sub": "alice", "name": "Alice"}
    provider_server.asked.clear()
    return provider_server


@pytest.fixture
def issuer(provider: Provider) -> Iterator[Issuer]:
    settings = IssuerSettings(
        issuer=provider.issuer,
        audience=AUDIENCE,
        client_id=CLIENT_ID,
        client_secret=SecretStr(CLIENT_SECRET),
        public_url=OWN_ORIGIN,
    )
    opened = Issuer(settings)
    yield opened
    opened.close()


@pytest.fixture
def asking() -> ProviderQueries | None:
    """No biller is named, but where a test's own fixture names them."""
    return None


@pytest.fixture
def paces() -> ClientRateLimiter:
    """As fast as a test can, but where its own fixture says otherwise."""
    return LocalClientRateLimiter(1_000_000)


@pytest.fixture
def origins() -> list[str]:
    return []


@pytest.fixture
def api(  # noqa: PLR0913, PLR0917 - what a test may take over
    database: Database,
    plans: Catalog,
    provider: Provider,
    issuer: Issuer,
    asking: ProviderQueries | None,
    paces: ClientRateLimiter,
    origins: list[str],
) -> Iterator[Api]:
    runtime = ApiContext(
        database=database,
        catalog=plans,
        clock=utc_now,
        issuer=issuer,
        provider_queries=asking,
        rate_limiter=paces,
        signer=Signer(SIGNING_SECRET),
        allow_private_webhooks=True,
    )
    with (
        capture_logs() as log,
        ApiServer(runtime, "127.0.0.1", 0, version="test", allowed_origins=origins) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=40) as http,
    ):
        yield Api(server.url, database, plans, provider, issuer, http, log)
