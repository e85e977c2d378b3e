"""An operator gets one email an hour at most, with everything that waits, and none if nothing new came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email import message_from_bytes
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest
from sqlalchemy import select

from core.access import invitations
from core.db.models.email import Email
from core.emails import operations_digest, queue
from core.emails.sender import EmailRejectedError, EmailSender, EmailTransport, SenderConfig
from core.flow_control.payment_brake import PaymentLimit
from core.inbox import service_events
from core.reconcile import commands as reconcile_commands
from providers.emails.folder import EmailFolder
from providers.emails.smtp import SmtpConfig, SmtpTransport
from tests.support.sync_world import CREATE_CUSTOMER_REQUEST, SyncWorld

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
OPERATIONS = "operations@acme.test"
REFUSED = '{"error": {"type": "invalid_request_error", "code": "email_invalid", "message": "Acme has a wrong address"}}'
REJECTION = "550: no such mailbox"
SANDBOX_KEY = "sk_test_sandbox"


class DigestHarness:
    """The sweep's and the sender's part in a digest, with emails as files."""

    def __init__(self, world: SyncWorld, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.recipient: str | None = OPERATIONS
        self._read: set[Path] = set()

    def park(self, name: str) -> str:
        self.world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "status", status=400, body=REFUSED)
        org_id = self.world.create(name)
        self.world.run(org_id, "stripe")
        assert self.world.link(org_id, "stripe").state == "parked"
        return org_id

    def minutes(self, count: int, *, transport: EmailTransport | None = None) -> list[str]:
        """Each minute the sweep and the sender run. Returns the texts of the emails that came."""
        sender = EmailSender(
            database=self.world.database,
            catalog=self.world.catalog,
            clock=self.world.clock,
            config=SenderConfig(from_address=Address("billing-sync", addr_spec="billing@acme.test")),
            transport=transport or EmailFolder(self.folder),
            new_token=invitations.new_token,
        )
        for _ in range(count):
            self.world.wait(60)
            operations_digest.enqueue_due(self.world.database, self.recipient, self.world.now)
            sender.run(5.0)
        files = sorted(path for path in self.folder.glob("*.eml") if path not in self._read)
        self._read.update(files)
        return [self._text(message_from_bytes(path.read_bytes(), policy=default)) for path in files]

    def _text(self, message: EmailMessage) -> str:
        assert message["To"] == self.recipient
        body = message.get_body(("plain",))
        assert body is not None
        return f"{message['Subject']}\n{' '.join(body.get_content().split())}"

    def states(self) -> list[str]:
        with self.world.database.read() as session:
            return list(session.scalars(select(Email.state).order_by(Email.created_at)))


class RefusingServer:
    """Rejects every email for good."""

    @contextmanager
    def connect(self) -> Iterator[RefusingServer]:
        yield self

    def send(self, message: EmailMessage) -> None:  # noqa: ARG002 - the protocol's
        raise EmailRejectedError(REJECTION)


@pytest.fixture
def operations(world: SyncWorld, tmp_path: Path) -> DigestHarness:
    return DigestHarness(world, tmp_path / "emails")


def test_what_began_together_is_one_email_with_counts_and_codes(operations: DigestHarness) -> None:
    operations.park("Acme")
    assert operations.minutes(2) == []
    operations.park("Globex")
    (text,) = operations.minutes(5)
    assert text.startswith("2 links need an operator\n")
    assert "Stripe: 2 links parked since" in text
    assert "email_invalid" in text
    assert "billing-sync parked" in text
    assert not {"Acme", "Globex", "ap@"} & set(text.split())
    assert "Acme" not in text


def test_a_second_comes_an_hour_later_and_only_if_something_new_began(operations: DigestHarness) -> None:
    operations.park("Acme")
    assert len(operations.minutes(10)) == 1
    assert operations.minutes(120) == []
    operations.park("Globex")
    assert len(operations.minutes(5)) == 1
    operations.park("Initech")
    assert operations.minutes(54) == []
    (text,) = operations.minutes(10)
    assert text.startswith("3 links need an operator\n")
    assert operations.minutes(120) == []


def test_an_end_that_is_on_hold_is_named_first(operations: DigestHarness, world: SyncWorld) -> None:
    leaving = world.create("Initech")
    world.reconcile_until_idle(leaving)
    operations.park("Acme")
    operations.park("Globex")
    world.payment_limit = PaymentLimit(changes=0)
    world.change_status(leaving, "deleted")
    world.reconcile_until_idle(leaving)
    (text,) = operations.minutes(5)
    end = "Somebody who has left goes on paying. Lago: 1 link on hold since"
    assert text.index(end) < text.index("Stripe: 2 links parked since")
    assert "`billing-sync brake list` shows who." in text


def test_what_is_over_when_it_is_due_is_not_sent_and_delays_nothing(
    operations: DigestHarness, world: SyncWorld
) -> None:
    org_id = operations.park("Acme")
    operations.minutes(1)
    world.change(org_id, reconcile_commands.retry)
    world.reconcile_until_idle(org_id)
    assert operations.minutes(10) == []
    assert operations.states() == ["stale"]
    operations.park("Globex")
    assert len(operations.minutes(5)) == 1


def test_a_provider_that_receives_nothing_is_told(operations: DigestHarness, world: SyncWorld) -> None:
    org_id = world.create()
    world.sandbox.settings(revoked_keys=[SANDBOX_KEY])
    world.restart()
    world.run(org_id, "stripe")
    (text,) = operations.minutes(5)
    assert text.startswith("billing-sync needs an operator\n")
    assert "Stripe receives no changes since" in text
    assert "(misconfigured)" in text


def test_none_is_queued_while_one_cannot_be_sent(operations: DigestHarness) -> None:
    operations.park("Acme")
    nowhere = SmtpTransport(SmtpConfig(host="127.0.0.1", port=1, tls="none"), connect_seconds=0.5)
    for _ in range(4):
        assert operations.minutes(1, transport=nowhere) == []
        operations.world.wait(timedelta(hours=1).total_seconds())
    operations.park("Globex")
    assert operations.states() == ["pending"]
    operations.world.wait(180)
    (text,) = operations.minutes(3)
    assert text.startswith("2 links need an operator\n")
    assert operations.minutes(100) == []


def test_two_schedulers_at_once_queue_one(operations: DigestHarness, world: SyncWorld) -> None:
    operations.park("Acme")
    for _ in range(2):
        with world.database.write() as session:
            queue.enqueue_digest(session, None, OPERATIONS, world.now, world.now)
    assert operations.states() == ["pending"]


def test_what_still_waits_after_thirty_days_is_sent_once_more(operations: DigestHarness, world: SyncWorld) -> None:
    operations.park("Acme")
    operations.minutes(5)
    world.wait(timedelta(days=31).total_seconds())
    with world.database.write() as session:
        queue.delete_expired(session, world.now)
    assert len(operations.minutes(5)) == 1


def test_a_renamed_organization_that_is_parked_again_is_new(operations: DigestHarness, world: SyncWorld) -> None:
    org_id = operations.park("Acme")
    operations.minutes(65)
    world.sandbox.add_fault("stripe", CREATE_CUSTOMER_REQUEST, "status", status=400, body=REFUSED, times=0)
    world.rename(org_id, "Acme two")
    result = world.run(org_id, "stripe")
    assert world.link(org_id, "stripe").state == "parked", result
    assert len(operations.minutes(5)) == 1


def test_what_a_failed_digest_said_is_in_the_next_one(operations: DigestHarness) -> None:
    operations.park("Acme")
    assert operations.minutes(10, transport=RefusingServer()) == []
    assert operations.states() == ["failed"]
    (text,) = operations.minutes(60)
    assert text.startswith("1 link needs an operator\n")


def test_a_changed_setting_moves_the_digest_to_the_new_address(operations: DigestHarness) -> None:
    operations.park("Acme")
    operations.minutes(1)
    operations.recipient = None
    assert operations.minutes(10) == []
    assert operations.states() == ["stale"]
    operations.recipient = "oncall@acme.test"
    (text,) = operations.minutes(5)
    assert text.startswith("1 link needs an operator\n")


def test_a_problem_that_came_and_went_does_not_repeat_the_others(operations: DigestHarness, world: SyncWorld) -> None:
    operations.park("Acme")
    operations.minutes(65)
    world.sandbox.settings(revoked_keys=[SANDBOX_KEY])
    world.restart()
    org_id = world.create("Globex")
    world.run(org_id, "stripe")
    assert operations.minutes(1) == []
    world.sandbox.settings(revoked_keys=[])
    world.wait(60)
    world.run(org_id, "stripe")
    assert operations.minutes(30) == []


def test_a_message_that_is_rejected_after_it_waited_is_told(operations: DigestHarness, world: SyncWorld) -> None:
    event = {
        "specversion": "1.0",
        "id": "e-1",
        "source": "crm",
        "type": "organization.renamed",
        "subject": "org_late",
        "data": {"name": "Taken"},
    }
    assert service_events.handle(world.database, world.catalog, world.clock, event).status == "waiting"
    world.wait(timedelta(days=3).total_seconds())
    world.create("Taken")
    created = {**event, "id": "e-2", "type": "organization.created", "data": {"name": "Late", "plan_tier": "starter"}}
    service_events.handle(world.database, world.catalog, world.clock, created)
    (text,) = operations.minutes(5)
    assert "rejected in the last 24 hours: 1." in text
