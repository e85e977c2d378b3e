"""Mails leave their rows for a real SMTP server: once each, again where nobody knows, never where it is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from email.headerregistry import Address

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session
from structlog.testing import capture_logs

from core.access import invitations
from core.access.invitations import Invitee
from core.access.limits import UserLimits
from core.catalog.plans import Catalog
from core.db import job_locks
from core.db.database import Database
from core.db.models.access import Invitation, InvitationToken
from core.db.models.email import Email
from core.db.models.jobs import JobLock
from core.emails import queue
from core.emails.sender import MAX_EMAIL_ATTEMPTS, EmailSender, SenderConfig
from core.events.event_types import ChangeContext
from core.organizations import commands
from core.organizations.commands import NewOrganization
from providers.emails.smtp import SmtpConfig, SmtpTransport
from tasks import emails as task
from tasks.routing import SEND_EMAILS
from tests.support.clocks import SetClock
from tests.support.smtp_server import SmtpServer, free_port, page, smtp_server, token
from tests.support.smtp_server import text as text_of
from tests.support.strange_error import StrangeError

SENDER = SenderConfig(
    from_address=Address("Billing", addr_spec="billing@acme.test"), invitation_url="https://app.test/join#{token}"
)
SECONDS = 15.0


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with smtp_server() as running:
        yield running


@pytest.fixture
def email_sender(database: Database, plans: Catalog, clock: SetClock, server: SmtpServer) -> EmailSender:
    return to_port(
        EmailSender(
            database=database,
            catalog=plans,
            clock=clock,
            config=SENDER,
            transport=nowhere(),
            new_token=invitations.new_token,
        ),
        server.port,
    )


def nowhere() -> SmtpTransport:
    return SmtpTransport(SmtpConfig(host="127.0.0.1", port=1, tls="none"))


def to_port(email_sender: EmailSender, port: int) -> EmailSender:
    server = SmtpTransport(SmtpConfig(host="127.0.0.1", port=port, tls="none"), connect_seconds=10.0, send_seconds=10.0)
    return replace(email_sender, transport=server)


def invite(email_sender: EmailSender, *addresses: str, name: str = "Acme") -> str:
    with email_sender.database.write() as session:
        change = ChangeContext(session, email_sender.clock())
        organization = commands.create(change, NewOrganization(name=name, plan_tier="starter"), email_sender.catalog)
        for address in addresses:
            invitations.invite(change, organization, Invitee(email=address), "member", None, UserLimits())
        return organization.id


def rows(email_sender: EmailSender) -> list[Email]:
    with email_sender.database.read() as session:
        return list(session.scalars(select(Email).order_by(Email.recipient)))


def test_a_mail_is_sent_once_however_often_somebody_rings(email_sender: EmailSender, server: SmtpServer) -> None:
    invite(email_sender, "bob@acme.test")
    for _ in range(3):
        task.run(email_sender)
    [email] = server.accepted
    assert email["Subject"] == "You are invited to join an organization"
    assert [row.state for row in rows(email_sender)] == ["sent"]


def test_many_workers_at_once_send_each_mail_once(email_sender: EmailSender, server: SmtpServer) -> None:
    addresses = [f"u{number}@acme.test" for number in range(12)]
    invite(email_sender, *addresses)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: email_sender.run(SECONDS), range(4)))
    assert sorted(str(email["To"]) for email in server.accepted) == sorted(addresses)


def test_the_token_is_in_the_mail_alone(email_sender: EmailSender, server: SmtpServer) -> None:
    invite(email_sender, "bob@acme.test")
    with capture_logs() as log:
        email_sender.run(SECONDS)
    [email] = server.accepted
    secret = token(email)
    assert f"https://app.test/join#{secret}" in text_of(email)
    assert f'href="https://app.test/join#{secret}"' in page(email)
    with email_sender.database.read() as session:
        [kept] = session.scalars(select(InvitationToken.token_hash))
        assert kept == hashlib.sha256(secret.encode()).hexdigest()
        tables = session.scalars(text(_TABLES[email_sender.database.is_sqlite])).all()
        stored = [str(row) for table in tables for row in session.execute(text(f'SELECT * FROM "{table}"'))]  # noqa: S608 - our own tables
    assert stored
    assert not [row for row in [*stored, str(log)] if secret in row]
    assert "bob" not in str(log)


def test_without_a_page_the_mail_holds_the_code_itself(email_sender: EmailSender, server: SmtpServer) -> None:
    invite(email_sender, "bob@acme.test")
    replace(email_sender, config=SenderConfig(from_address=SENDER.from_address)).run(SECONDS)
    [email] = server.accepted
    words = " ".join(text_of(email).split())
    assert "You need the application in which \u201cAcme\u201d has its account." in words
    assert f"To accept, sign in to that application with this address and enter this code: {token(email)}" in words
    assert token(email) in page(email)
    assert "href" not in page(email)


def test_what_is_refused_for_good_is_given_up_with_the_servers_codes(
    email_sender: EmailSender, server: SmtpServer, clock: SetClock
) -> None:
    server.rcpt.append("550 5.1.1 <bob@acme.test> is nobody here")
    invite(email_sender, "bob@acme.test", "carol@acme.test")
    email_sender.run(SECONDS)
    bob, carol = rows(email_sender)
    assert (bob.state, bob.error) == ("failed", "the SMTP server rejects the recipient (550 5.1.1)")
    assert (carol.state, carol.error) == ("sent", None)
    clock.advance(days=1)
    email_sender.run(SECONDS)
    assert len(server.accepted) == 1
    with email_sender.database.read() as session:
        [shown] = queue.list_failed(session, email_sender.clock(), 10)
        assert (shown.recipient, queue.counts(session, email_sender.clock()).failed) == ("bob@acme.test", 1)


def test_later_means_later_and_then_it_is_taken(email_sender: EmailSender, server: SmtpServer, clock: SetClock) -> None:
    server.data.extend(["451 4.3.0 later", "451 4.3.0 later"])
    invite(email_sender, "bob@acme.test")
    email_sender.run(SECONDS)
    [row] = rows(email_sender)
    assert (row.state, row.attempts, row.next_attempt_at - clock()) == ("pending", 1, timedelta(minutes=1))
    email_sender.run(SECONDS)
    assert len(server.received) == 1
    clock.advance(minutes=1)
    email_sender.run(SECONDS)
    clock.advance(minutes=2)
    email_sender.run(SECONDS)
    assert ([row.state for row in rows(email_sender)], len(server.accepted)) == (["sent"], 1)
    first, second, third = server.received
    assert first["Message-ID"] == second["Message-ID"] == third["Message-ID"]
    assert len({token(email) for email in server.received}) == 3


def test_later_for_ever_means_no(email_sender: EmailSender, server: SmtpServer, clock: SetClock) -> None:
    server.rcpt.extend(["450 4.2.1 busy"] * 20)
    invite(email_sender, "bob@acme.test")
    for _ in range(MAX_EMAIL_ATTEMPTS + 3):
        email_sender.run(SECONDS)
        clock.advance(hours=5)
    [row] = rows(email_sender)
    assert (row.state, len(server.rcpt)) == ("failed", 20 - MAX_EMAIL_ATTEMPTS)
    assert row.error == "the SMTP server rejects the recipient (450 4.2.1) (after 10 attempts)"


def test_an_error_that_nobody_named_delays_one_email_and_no_other(
    email_sender: EmailSender, server: SmtpServer, clock: SetClock
) -> None:
    def fail_for_the_first(session: Session, invitation_id: str) -> tuple[Invitation, str]:
        invitation, token_of_it = invitations.new_token(session, invitation_id)
        if invitation.email.startswith("a"):
            raise StrangeError(invitation.email)
        return invitation, token_of_it

    broken = replace(email_sender, new_token=fail_for_the_first)
    invite(broken, "a@acme.test", "b@acme.test")
    for _ in range(MAX_EMAIL_ATTEMPTS):
        task.run(broken)
        clock.advance(hours=5)
    first, second = rows(broken)
    assert (first.state, second.state, len(server.accepted)) == ("failed", "sent", 1)
    assert first.error is not None
    assert first.error.startswith("the program failed unexpectedly (StrangeError at test_sender.py:")
    assert first.error.endswith(") (after 10 attempts)")
    assert "a@acme.test" not in first.error


def test_a_mail_whose_answer_was_lost_comes_again_as_the_same(
    email_sender: EmailSender, server: SmtpServer, clock: SetClock
) -> None:
    server.hang_up = 1
    invite(email_sender, "bob@acme.test")
    email_sender.run(SECONDS)
    assert [(row.state, row.attempts) for row in rows(email_sender)] == [("pending", 1)]
    clock.advance(minutes=1)
    email_sender.run(SECONDS)
    lost, again = server.received
    assert lost["Message-ID"] == again["Message-ID"]
    assert [row.state for row in rows(email_sender)] == ["sent"]


def test_a_worker_that_died_after_the_yes_has_it_sent_again_as_the_same(
    email_sender: EmailSender, server: SmtpServer, clock: SetClock
) -> None:
    invite(email_sender, "bob@acme.test")
    email_sender.run(SECONDS)
    with email_sender.database.write() as session:
        # As it was when the server had said yes and nothing was written yet.
        lease = {"lease_token": "of a dead one", "lease_until": clock() + queue.EMAIL_LEASE}
        session.execute(update(Email).values(state="pending", closed_at=None, **lease))
    email_sender.run(SECONDS)
    assert len(server.accepted) == 1
    clock.advance(seconds=queue.EMAIL_LEASE.total_seconds() + 1)
    email_sender.run(SECONDS)
    first, second = server.accepted
    assert first["Message-ID"] == second["Message-ID"]


def test_a_server_that_is_away_costs_one_try_and_no_mail(
    email_sender: EmailSender, server: SmtpServer, clock: SetClock
) -> None:
    invite(email_sender, *[f"u{number}@acme.test" for number in range(5)])
    gone = to_port(email_sender, free_port())
    with capture_logs() as log:
        for _ in range(3):
            task.run(gone)
    assert [line["event"] for line in log].count("email_server_unavailable") == 1
    with email_sender.database.read() as session:
        counts = queue.counts(session, clock())
    assert (counts.waiting, counts.failed) == (5, 0)
    assert counts.reason == "the SMTP server did not respond (ConnectionRefusedError)"
    for _ in range(30):
        clock.advance(minutes=10)
        task.run(gone)
    assert {(row.state, row.attempts) for row in rows(email_sender)} == {("pending", 0)}
    clock.advance(minutes=10)
    task.run(email_sender)
    assert len(server.accepted) == 5


def test_a_sender_that_is_refused_is_no_mails_fault(
    email_sender: EmailSender, server: SmtpServer, clock: SetClock
) -> None:
    server.mail.append("550 5.7.1 not from you")
    invite(email_sender, "bob@acme.test")
    result = email_sender.run(SECONDS)
    assert result.unavailable_reason == "the SMTP server rejects the sender address MAIL_FROM (550 5.7.1)"
    assert [(row.state, row.attempts) for row in rows(email_sender)] == [("pending", 0)]
    clock.advance(minutes=1)
    assert email_sender.run(SECONDS).sent == 1


@pytest.mark.parametrize("recipient", ['"a b"@acme.test', "=?utf-8?q?eve=40evil.test?=@acme.test"])
def test_an_address_that_no_mail_can_be_sent_to_is_given_up(
    email_sender: EmailSender, server: SmtpServer, recipient: str
) -> None:
    org_id = invite(email_sender, "bob@acme.test")
    with email_sender.database.write() as session:
        session.execute(update(Email).where(Email.org_id == org_id).values(recipient=recipient))
    email_sender.run(SECONDS)
    assert [(row.state, row.error) for row in rows(email_sender)] == [("failed", "the address cannot receive email")]
    assert server.received == []


def test_an_invitation_that_was_taken_back_or_mailed_anew_is_not_sent(
    email_sender: EmailSender, server: SmtpServer
) -> None:
    org_id = invite(email_sender, "bob@acme.test", "carol@acme.test")
    with email_sender.database.write() as session:
        change = ChangeContext(session, email_sender.clock())
        organization = commands.lock(session, org_id)
        assert organization is not None
        [bob, _] = sorted(invitations.list_pending(session, org_id, email_sender.clock()), key=lambda each: each.email)
        assert invitations.revoke(change, org_id, bob.id, None)
        invitations.invite(change, organization, Invitee(email="Carol@acme.test"), "owner", None, UserLimits())
    email_sender.run(SECONDS)
    [email] = server.accepted
    assert email["To"] == "carol@acme.test"
    assert "as an owner" in text_of(email).replace("\n", " ")
    assert sorted(row.state for row in rows(email_sender)) == ["sent", "stale", "stale"]


def test_one_run_at_a_time_and_the_next_one_at_once(
    email_sender: EmailSender, server: SmtpServer, clock: SetClock
) -> None:
    invite(email_sender, "bob@acme.test")
    with email_sender.database.write() as session:
        assert job_locks.acquire(session, SEND_EMAILS, 60, clock())
    assert task.run(email_sender) == 0
    with email_sender.database.write() as session:
        session.execute(update(JobLock).values(lease_until=clock() - timedelta(seconds=1)))
    assert task.run(email_sender) == 1
    invite(email_sender, "carol@acme.test", name="Globex")
    clock.advance(seconds=1)
    assert (task.run(email_sender), len(server.accepted)) == (1, 2)


_TABLES = {
    True: "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'",
    False: "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
}
