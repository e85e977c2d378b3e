"""Invitations over HTTP, from the request to the mail to the membership; each refusal says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.headerregistry import Address

import httpx
import pytest

from core.access import invitations
from core.common.clock import utc_now
from core.emails.sender import EmailSender, SenderConfig
from providers.emails.smtp import SmtpConfig, SmtpTransport
from tests.support.api_client import Api
from tests.support.smtp_server import SmtpServer, smtp_server, text, token

PAGE = "https://app.test/join#{token}"


class Team:
    """One organization with Olga as owner and Bill as billing admin, and the mails that it sends."""

    def __init__(self, api: Api, server: SmtpServer) -> None:
        self.api, self.server = api, server
        self.org_id = api.organization(olga="owner", bill="billing_admin", mia="member")
        self.path = f"/api/organizations/{self.org_id}/invitations"
        address = SmtpConfig(host="127.0.0.1", port=server.port, tls="none")
        self.email_sender = EmailSender(
            database=api.database,
            catalog=api.catalog,
            clock=utc_now,
            config=SenderConfig(from_address=Address("Billing", addr_spec="billing@acme.test"), invitation_url=PAGE),
            transport=SmtpTransport(address),
            new_token=invitations.new_token,
        )

    def as_(self, user_id: str, email: str | None = None, *, verified: bool = True) -> dict[str, str]:
        signed = self.api.oidc_provider.token(user_id, name=user_id.title(), email=email, email_verified=verified)
        return {"Authorization": f"Bearer {signed}"}

    def invite(self, email: str = "bob@acme.test", role: str = "member", by: str = "olga") -> httpx.Response:
        return self.api.post(self.path, {"email": email, "role": role}, self.as_(by))

    def token(self, email: str = "bob@acme.test", role: str = "member", by: str = "olga") -> str:
        """That of the mail which this invitation is sent with."""
        assert self.invite(email, role, by).status_code == 201
        self.email_sender.run(10)
        return token(self.server.to(email)[-1])

    def accept(self, given: str, headers: dict[str, str] | None = None) -> httpx.Response:
        bob = self.as_("bob", "Bob@acme.test")
        return self.api.post("/api/invitations/accept", {"token": given}, bob if headers is None else headers)

    def roles(self) -> dict[str, str]:
        users = self.api.get(f"/api/organizations/{self.org_id}/users", self.api.as_service()).json()["users"]
        return {each["user_id"]: each["role"] for each in users}


@pytest.fixture
def team(api: Api) -> Iterator[Team]:
    with smtp_server() as server:
        yield Team(api, server)


def kind(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].rsplit(":", 1)[1]


def test_from_the_invitation_to_the_mail_to_the_membership(team: Team) -> None:
    made = team.invite(role="billing_admin")
    assert made.status_code == 201
    assert (made.json()["email"], made.json()["role"], made.json()["invited_by"]) == (
        "bob@acme.test",
        "billing_admin",
        "olga",
    )
    team.email_sender.run(10)
    [email] = team.server.accepted
    secret = token(email)
    assert email["Subject"] == "You are invited to join an organization"
    assert "as a billing admin" in " ".join(text(email).split())
    assert PAGE.replace("{token}", secret) in text(email)
    joined = team.accept(secret)
    assert (joined.status_code, joined.json()) == (
        200,
        {"status": "accepted", "sync": {"version": 1}, "org_id": team.org_id, "role": "billing_admin"},
    )
    assert team.roles()["bob"] == "billing_admin"
    assert team.api.get(f"/api/organizations/{team.org_id}", team.as_("bob")).is_success
    assert secret not in str(team.api.log)
    assert "acme.test" not in str(team.api.log)


def test_pending_ones_are_listed_without_a_token_and_taken_back(team: Team) -> None:
    secret = team.token()
    [listed] = team.api.get(team.path, team.as_("bill")).json()["invitations"]
    assert set(listed) == {"id", "email", "user_id", "role", "invited_by", "created_at", "expires_at", "emails_sent"}
    assert kind(team.api.send("DELETE", f"{team.path}/{listed['id']}", team.as_("bill"))) == (403, "forbidden")
    revoked = team.api.send("DELETE", f"{team.path}/{listed['id']}", team.as_("olga"))
    assert revoked.json() == {"status": "revoked", "invitation_id": listed["id"]}
    assert team.api.get(team.path, team.as_("bill")).json() == {"invitations": [], "count": 0}
    assert kind(team.api.send("DELETE", f"{team.path}/{listed['id']}", team.as_("bill"))) == (404, "not-found")
    assert kind(team.accept(secret)) == (409, "invitation-revoked")
    assert "bob" not in team.roles()


def test_an_owner_is_invited_by_owners_alone(team: Team) -> None:
    assert kind(team.invite(role="owner", by="bill")) == (403, "forbidden")
    assert kind(team.invite(by="mia")) == (403, "forbidden")
    assert team.accept(team.token(role="owner")).json()["role"] == "owner"


def test_an_inviter_who_is_no_owner_any_more_makes_no_owner(team: Team) -> None:
    secret = team.token(role="owner")
    for user_id, role in (("bill", "owner"), ("olga", "billing_admin")):
        path = f"/api/organizations/{team.org_id}/users/{user_id}/role"
        assert team.api.send("PUT", path, team.api.as_service(), {"role": role}).is_success
    refused = team.accept(secret)
    assert kind(refused) == (409, "invitation-void")
    assert refused.json()["detail"] == (
        "The member who invited you may no longer do so. Ask an owner to invite you again."
    )


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_whom_it_is_not_for_is_told_what_to_do(team: Team) -> None:
    secret = team.token()
    assert kind(team.accept(secret, team.as_("eve", "eve@acme.test"))) == (403, "invitation-not-yours")
    unverified = team.accept(secret, team.as_("bob", "bob@acme.test", verified=False))
    assert kind(unverified) == (403, "email-not-verified")
    assert "Verify it with the sign-in service" in unverified.json()["detail"]
    assert kind(team.accept(secret, team.as_("bob"))) == (403, "email-not-verified")
    assert kind(team.accept("x" * 43)) == (404, "not-found")
    assert team.accept(secret, {}).status_code == 401
    assert kind(team.accept(secret, team.api.as_service())) == (403, "forbidden")
    assert "bob" not in team.roles()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_member_is_neither_invited_nor_taken_in_twice(team: Team) -> None:
    secret = team.token()
    assert team.accept(secret).is_success
    assert kind(team.accept(secret)) == (409, "invitation-used")
    assert kind(team.invite("BOB@acme.test")) == (409, "already-member")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "email", ["bob", "bob@acme", "bob@acme.test\nBcc: eve@evil.test", "bob@äcme.test", "@acme.test"]
)
def test_what_is_no_address_is_refused_by_name(team: Team, email: str) -> None:
    refused = team.invite(email)
    assert refused.status_code == 422
    assert "email" in refused.json()["errors"][0]["field"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_mails_without_end_are_refused(team: Team) -> None:
    for _ in range(5):
        assert team.invite().status_code == 201
    assert kind(team.invite()) == (409, "too-many-invitations")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_repeat_under_its_key_sends_no_second_mail(team: Team) -> None:
    body = {"email": "bob@acme.test"}
    first, second = [team.api.post(team.path, body, team.as_("olga"), key="k1") for _ in range(2)]
    assert first.json() == second.json()
    team.email_sender.run(10)
    assert len(team.server.accepted) == 1
    secret = token(team.server.accepted[0])
    answers = [
        team.api.post("/api/invitations/accept", {"token": secret}, team.as_("bob", "bob@acme.test"), key="k2")
        for _ in range(2)
    ]
    assert [answer.status_code for answer in answers] == [200, 200]


def test_of_two_sessions_that_accept_at_once_one_joins_and_the_other_is_told(team: Team) -> None:
    secret = team.token()
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda _: team.accept(secret), range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    [refused] = [kind(answer) for answer in answers if not answer.is_success]
    assert refused == (409, "invitation-used")
    assert team.roles()["bob"] == "member"


def test_a_service_invites_and_is_named_as_nobody(team: Team) -> None:
    made = team.api.post(team.path, {"email": "bob@acme.test"}, team.api.as_service("organizations:write"))
    assert made.json()["invited_by"] is None
    team.email_sender.run(10)
    [email] = team.server.accepted
    assert email["Subject"] == "You are invited to join an organization"
    assert team.accept(token(email)).is_success


def test_a_token_that_says_unverified_uses_no_remembered_address(team: Team) -> None:
    secret = team.token()
    verified = team.as_("bob", "bob@acme.test")
    assert team.api.get("/api/invitations", verified).json()["count"] == 1
    team.api.post("/api/organizations", {"name": "Bob's own"}, verified)
    assert team.api.get("/api/invitations", team.as_("bob")).json()["count"] == 1
    token = team.api.oidc_provider.token("bob", email="bob@acme.test", email_verified=False)
    unverified = {"Authorization": f"Bearer {token}"}
    assert team.api.get("/api/invitations", unverified).json()["count"] == 0
    refused = team.api.post("/api/invitations/accept", {"token": secret}, unverified)
    assert kind(refused) == (403, "email-not-verified")
    assert "bob" not in team.roles()
