"""Who may send from a source: the first account owns it, nobody else burns its ids, and the queue has a list."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.access import service_accounts
from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.events import Event
from core.db.models.inbox import ServiceEvent
from core.events.event_types import Cause
from core.inbox import event_sources, service_events
from core.inbox.senders import (
    SOURCE_NOT_ALLOWED,
    SOURCE_OF_ANOTHER_ACCOUNT,
    AccountSender,
    EventSender,
    QueueSender,
    SenderAccount,
)
from core.inbox.service_events import HandledEvent
from tests.support.clocks import SetClock

CREATED: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "/signup",
    "type": "organization.created",
    "subject": "org_shop-1",
    "data": {"name": "Acme"},
}
REPLAY = Cause(actor="operator:alice", source="billing-sync inbox replay")


class Senders:
    """Two accounts and the queue, all with one inbox."""

    def __init__(self, database: Database, plans: Catalog, clock: SetClock) -> None:
        self.database, self.plans, self.clock = database, plans, clock
        with database.write() as session:
            self.signup = service_accounts.create(session, "signup", clock()).id
            self.shop = service_accounts.create(session, "shop", clock()).id

    def send(self, account_id: str, raw: object) -> HandledEvent:
        def confirm(_: Session) -> SenderAccount:
            return SenderAccount(account_id=account_id, key_id="k" * 16)

        return self.handle(raw, AccountSender(confirm=confirm))

    def handle(self, raw: object, sender: EventSender) -> HandledEvent:
        return service_events.handle(self.database, self.plans, self.clock, raw, sender)

    def rows(self) -> list[ServiceEvent]:
        with self.database.read() as session:
            return list(session.scalars(select(ServiceEvent).order_by(ServiceEvent.received_at)))

    def replay(self, row: ServiceEvent) -> HandledEvent | None:
        return service_events.replay(self.database, self.plans, self.clock, row.source, row.id, REPLAY)


@pytest.fixture
def senders(database: Database, plans: Catalog, clock: SetClock) -> Senders:
    return Senders(database, plans, clock)


def test_the_first_account_owns_the_source_and_another_burns_none_of_its_ids(senders: Senders) -> None:
    assert senders.send(senders.signup, CREATED | {"id": "0", "data": {}}).status == "rejected"
    foreign = senders.send(senders.shop, CREATED)
    assert (foreign.status, foreign.reason, foreign.is_foreign) == ("rejected", SOURCE_OF_ANOTHER_ACCOUNT, True)
    assert senders.send(senders.shop, CREATED | {"data": {}}).is_foreign
    assert [row.id for row in senders.rows()] == ["0"]
    assert senders.send(senders.signup, CREATED).status == "applied"
    with senders.database.read() as session:
        assert [(each.source, each.account_name) for each in event_sources.list_all(session)] == [("/signup", "signup")]


def test_what_fails_binds_no_source(senders: Senders) -> None:
    def ended(_: Session) -> SenderAccount:
        raise PermissionError

    with pytest.raises(PermissionError):
        senders.handle(CREATED, AccountSender(confirm=ended))
    assert senders.send(senders.shop, CREATED).status == "applied"


def test_an_operator_gives_a_source_to_another_account(senders: Senders) -> None:
    senders.send(senders.shop, CREATED)
    with senders.database.write() as session:
        event_sources.bind(session, "/signup", senders.signup, senders.clock())
        event_sources.bind(session, "/new", senders.signup, senders.clock())
    assert senders.send(senders.shop, CREATED | {"id": "2"}).is_foreign
    assert senders.send(senders.shop, CREATED | {"id": "2", "source": "/new"}).is_foreign
    assert senders.send(senders.signup, CREATED).repeated


def test_a_source_that_is_not_allowed_on_the_queue_is_rejected_with_the_field_and_the_setting(senders: Senders) -> None:
    queue = QueueSender(allowed_sources=frozenset({"/billing"}))
    for raw in (CREATED, CREATED | {"data": {}}):
        assert senders.handle(raw, queue).reason == SOURCE_NOT_ALLOWED
        assert senders.handle(raw, queue).repeated
    assert {(row.status, row.sent_id) for row in senders.rows()} == {("rejected", "1")}
    assert len(senders.rows()) == 2
    assert senders.send(senders.signup, CREATED).status == "applied"
    assert senders.handle(CREATED | {"source": "/billing", "id": "2"}, queue).status == "applied"
    nameless = {name: value for name, value in CREATED.items() if name != "source"}
    assert senders.handle(nameless, queue).reason == "source: Field required"


def test_a_replay_applies_what_was_not_allowed_under_the_id_that_was_sent(senders: Senders) -> None:
    senders.handle(CREATED, QueueSender(allowed_sources=frozenset({"/billing"})))
    handled = senders.replay(senders.rows()[0])
    assert handled is not None
    assert (handled.status, handled.org_id) == ("applied", "org_shop-1")
    assert [(row.id, row.sent_id, row.status) for row in senders.rows()] == [("1", None, "applied")]
    assert senders.handle(CREATED, QueueSender()).repeated


def test_a_replay_of_what_was_sent_again_meanwhile_does_nothing(senders: Senders) -> None:
    senders.handle(CREATED, QueueSender(allowed_sources=frozenset({"/billing"})))
    senders.handle(CREATED, QueueSender())
    handled = senders.replay(next(row for row in senders.rows() if row.sent_id))
    assert handled is not None
    assert (handled.status, handled.repeated) == ("applied", True)


def test_a_change_names_the_key_of_its_sender_also_if_it_waited(senders: Senders) -> None:
    renamed = CREATED | {"id": "2", "type": "organization.renamed", "data": {"name": "Acme AG"}}
    assert senders.send(senders.signup, renamed).status == "waiting"
    assert senders.handle(CREATED, QueueSender()).status == "applied"
    with senders.database.read() as session:
        recorded = [
            (event.type, event.actor, event.key_id) for event in session.scalars(select(Event).order_by(Event.seq))
        ]
    assert recorded == [("organization.created", "service", None), ("organization.renamed", "service", "k" * 16)]
