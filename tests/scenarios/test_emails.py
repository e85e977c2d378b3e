"""Mails from the whole system: registration, invitation and plan changes, read where they arrive."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import httpx
import pytest

from core.access.users import UserProfile, upsert
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.emails.queue import counts
from core.events.event_types import Cause, ChangeContext
from core.organizations.commands import NewOrganization, create
from core.organizations.memberships import add
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support import console
from tests.support.deployment import deployment
from tests.support.oidc_provider import AUDIENCE, OidcProvider
from tests.support.smtp_server import LOGIN, SmtpServer, knows_the_login, smtp_server, text, token
from tests.support.waiting import until

pytestmark = pytest.mark.processes

FROM = "Billing <billing@acme.test>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.fixture
def oidc_provider() -> Iterator[OidcProvider]:
    with OidcProvider() as running:
        yield running


class SignedInApp:
    """`billing-sync up`, as people who signed in use it."""

    def __init__(self, process: console.ConsoleProcess, oidc_provider: OidcProvider) -> None:
        self.process, self.oidc_provider = process, oidc_provider
        self.http = httpx.Client(base_url=self._address("API"), trust_env=False, timeout=60)
        self.sandbox = SandboxClient(self._address("sandbox"))

    def call(self, method: str, path: str, user_id: str, body: object = None) -> httpx.Response:
        email = f"{user_id}@acme.test"
        signed = self.oidc_provider.token(user_id, name=user_id.title(), email=email, email_verified=True)
        return self.http.request(method, path, json=body, headers={"Authorization": f"Bearer {signed}"})

    def post(self, path: str, user_id: str, body: object) -> httpx.Response:
        return self.call("POST", path, user_id, body)

    def _address(self, name: str) -> str:
        found = re.search(rf"^  {name} +(http://\S+)", self.process.output, re.MULTILINE)
        assert found is not None, self.process.output
        return found[1]


@contextmanager
def up(folder: Path, oidc_provider: OidcProvider, **settings: str) -> Iterator[SignedInApp]:
    named = {"OIDC_ISSUER": oidc_provider.issuer, "OIDC_AUDIENCE": AUDIENCE, "API_PORT": "0", **settings}
    with console.running(folder, "up", settings=named) as process:
        process.wait_for_output("status Acme")
        running = SignedInApp(process, oidc_provider)
        with running.http, running.sandbox:
            yield running
        assert process.stop() == 0
        assert "Traceback" not in process.output


def by_smtp(server: SmtpServer) -> dict[str, str]:
    return {
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(server.port),
        "SMTP_TLS": "none",
        "MAIL_FROM": FROM,
        "INVITATION_URL": "https://app.test/join#{token}",
    }


def test_from_registration_to_invitation_to_an_upgrade_that_both_billers_hold(
    folder: Path, oidc_provider: OidcProvider
) -> None:
    with smtp_server() as server, up(folder, oidc_provider, **by_smtp(server)) as running:
        org_id = running.post("/api/organizations", "alice", {"name": "Acme", "plan_tier": "starter"}).json()["org_id"]
        server.wait_for(1)
        assert (server.accepted[0]["Subject"], server.accepted[0]["To"]) == (
            "Your organization is set up",
            "alice@acme.test",
        )
        assert "\u201cAcme\u201d is ready" in text(server.accepted[0])

        path = f"/api/organizations/{org_id}"
        invited = running.post(f"{path}/invitations", "alice", {"email": "bob@acme.test", "role": "billing_admin"})
        assert invited.status_code == 201
        server.wait_for(2)
        accepted = running.post("/api/invitations/accept", "bob", {"token": token(server.accepted[1])})
        assert accepted.json()["role"] == "billing_admin"

        assert running.call("GET", f"{path}/sync?wait=30s", "alice").json()["in_sync"]
        running.sandbox.add_fault("lago", "*", "html_502", times=0)
        changed = running.call("PATCH", f"{path}/plan", "bob", {"plan_tier": "professional"}).json()["sync"]["version"]

        def are_in_sync() -> dict[str, bool]:
            shown = running.call("GET", f"{path}/sync?version={changed}", "bob").json()["providers"]
            return {provider: status["in_sync"] for provider, status in shown.items()}

        until(lambda: are_in_sync()["stripe"], "Stripe has the plan")
        assert not are_in_sync()["lago"]
        assert len(server.accepted) == 2
        running.sandbox.clear_faults()
        assert running.call("GET", f"{path}/sync?version={changed}&wait=30s", "bob").json()["in_sync"]
        server.wait_for(4)
        assert {str(email["To"]) for email in server.accepted[2:]} == {"alice@acme.test", "bob@acme.test"}
        assert {str(email["Subject"]) for email in server.accepted[2:]} == {"The plan has been upgraded"}


def test_without_a_mail_server_a_folder_has_what_one_clicks_along_with(
    folder: Path, oidc_provider: OidcProvider
) -> None:
    def written_emails() -> list[EmailMessage]:
        files = sorted((folder / "data" / "emails").glob("invitation.*.eml"))
        return [message_from_bytes(file.read_bytes(), EmailMessage, policy=default) for file in files]

    with up(folder, oidc_provider) as running:
        assert "data/emails   (one file each)" in running.process.output
        org_id = running.post("/api/organizations", "alice", {"name": "Acme"}).json()["org_id"]
        running.post(f"/api/organizations/{org_id}/invitations", "alice", {"email": "bob@acme.test"})
        running.process.until(lambda: len(written_emails()) == 1, "writes the invitation")
        accepted = running.post("/api/invitations/accept", "bob", {"token": token(written_emails()[0])})
        assert (accepted.status_code, accepted.json()["org_id"]) == (200, org_id)
        emails = folder / "data" / "emails"
        running.process.until(lambda: list(emails.glob("welcome.*.eml")) != [], "writes the welcome")


@pytest.fixture
def registered(postgres_url: str, plans: Catalog) -> Iterator[Database]:
    """An organization whose owner is to be welcomed."""
    database = Database(postgres_url)
    database.upgrade()
    with database.write() as session:
        change = ChangeContext(session, utc_now(), Cause(actor="zelda"))
        upsert(change, UserProfile(user_id="zelda", name="Zelda", email="zelda@confidential.test"))
        made = create(change, NewOrganization(name="Zebra Confidential", plan_tier="starter"), plans)
        add(change, made, "zelda", "owner")
    yield database
    database.close()


def waiting(database: Database) -> int:
    with database.read() as session:
        return counts(session, utc_now()).waiting


def test_deployed_mails_wait_for_a_mail_server_and_tell_nobody_what_is_in_them(
    registered: Database, postgres_url: str, redis_url: str, sandbox_server: Sandbox, tmp_path: Path
) -> None:
    with deployment(postgres_url, redis_url, sandbox_server.url, tmp_path) as deployed:
        for process in ("relay", "beat", "worker"):
            deployed.start(process)
        until(lambda: waiting(registered) == 1, "the mail is written")
        shown = deployed.run("status").stdout
        assert "mails to send: 1, the oldest since" in shown
        assert "SMTP_HOST is not set" in shown
        assert json.loads(deployed.run("status", "--json").stdout)["emails"]["waiting"] == 1

        with smtp_server(authenticator=knows_the_login, auth_require_tls=False) as server:
            deployed.environment |= {**by_smtp(server), "SMTP_USER": LOGIN[0], "SMTP_PASSWORD": LOGIN[1]}
            deployed.start("worker")
            server.wait_for(1)
            until(lambda: waiting(registered) == 0, "the mail is sent")
        assert server.accepted[0]["Subject"] == "Your organization is set up"
