"""What other services send gets one verdict each, whatever it is, in whatever order and however often it comes."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import func, select

from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.events import Event
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import Membership, Organization
from core.events.event_types import CHANGE_TYPES, Cause, ChangeContext
from core.inbox import service_events
from core.inbox.service_events import ID_USED_TWICE, MAX_WAITING_EVENTS, UNKNOWN_EVENT_SOURCE, HandledEvent
from core.org_manager import OrgManager
from core.organizations import commands
from tests.support.clocks import SetClock

ORG = "org_shop-1"
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class InboxHarness:
    """``events.receive`` without the broker."""

    def __init__(self, database: Database, plans: Catalog, clock: SetClock) -> None:
        self.database = database
        self.plans = plans
        self.clock = clock
        self._count = 0

    def handle(self, raw: object) -> HandledEvent:
        return service_events.handle(self.database, self.plans, self.clock, raw)

    def send(self, event_type: str, at: int | None = None, subject: str = ORG, **data: object) -> HandledEvent:
        self._count += 1
        return self.handle(message(event_type, data, f"m{self._count}", at, subject))

    def replay(self, event_id: str) -> HandledEvent | None:
        by = Cause(actor="operator:alice", source="billing-sync inbox replay")
        return service_events.replay(self.database, self.plans, self.clock, "/shop", event_id, by)

    def organization(self, org_id: str = ORG) -> Organization | None:
        with self.database.read() as session:
            return session.get(Organization, org_id)

    def present(self, org_id: str = ORG) -> Organization:
        found = self.organization(org_id)
        assert found is not None
        return found

    def roles(self) -> dict[str, str]:
        with self.database.read() as session:
            return {member.user_id: member.role for member in session.scalars(select(Membership))}

    def stored_events(self) -> list[ServiceEvent]:
        with self.database.read() as session:
            return list(session.scalars(select(ServiceEvent).order_by(ServiceEvent.id)))

    def count(self, table: type[Organization | Event | BillingLink | ServiceEvent]) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(table)) or 0


def message(
    event_type: str, data: dict[str, object], message_id: str = "m", at: int | None = None, subject: str = ORG
) -> dict[str, Any]:
    """``at``: minutes after noon."""
    time = {} if at is None else {"time": (NOON + timedelta(minutes=at)).isoformat()}
    return {
        "specversion": "1.0",
        "id": message_id,
        "source": "/shop",
        "type": event_type,
        "subject": subject,
        "datacontenttype": "application/json",
        "data": data,
        **time,
    }


@pytest.fixture
def inbox(database: Database, plans: Catalog, clock: SetClock) -> InboxHarness:
    return InboxHarness(database, plans, clock)


@pytest.fixture
def acme(inbox: InboxHarness) -> InboxHarness:
    assert inbox.send("organization.created", name="Acme", plan_tier="professional").status == "applied"
    return inbox


def test_a_created_organization_keeps_the_senders_id_and_everything_sent(inbox: InboxHarness) -> None:
    handled = inbox.send(
        "organization.created",
        name="Acme",
        plan_tier="starter",
        billing_email="billing@acme.test",
        currency="USD",
        owner_user_id="u1",
    )
    assert handled == HandledEvent(status="applied", reason=None, org_id=ORG)
    organization = inbox.present()
    assert (organization.name, organization.plan_tier, organization.billing_email, organization.currency) == (
        "Acme",
        "starter",
        "billing@acme.test",
        "USD",
    )
    assert inbox.roles() == {"u1": "owner"}
    with inbox.database.read() as session:
        event = session.scalars(select(Event).where(Event.type == "organization.created")).one()
    assert (event.actor, event.source, event.caused_by) == ("service", "/shop", "/shop#m1")


def test_every_other_type_changes_what_it_names(acme: InboxHarness) -> None:
    for handled in (
        acme.send("organization.renamed", name="Acme GmbH"),
        acme.send("organization.plan_changed", plan_tier="enterprise"),
        acme.send("organization.status_changed", status="suspended"),
        acme.send("organization.billing_details_changed", billing_email="a@b.test", currency="USD"),
        acme.send("membership.added", user_id="u1", role="owner"),
        acme.send("membership.added", user_id="u2"),
        acme.send("membership.role_changed", user_id="u2", role="owner"),
        acme.send("membership.removed", user_id="u1"),
    ):
        assert (handled.status, handled.org_id) == ("applied", ORG), handled
    with acme.database.read() as session:
        events = list(session.scalars(select(Event).order_by(Event.seq)))
    assert {event.type for event in events} == set(CHANGE_TYPES)
    assert [event.caused_by for event in events] == [f"/shop#m{number}" for number in range(1, 10)]
    organization = acme.present()
    assert (organization.name, organization.plan_tier, organization.status) == ("Acme GmbH", "enterprise", "suspended")
    assert (organization.billing_email, organization.currency) == ("a@b.test", "USD")
    assert acme.roles() == {"u2": "owner"}


def test_a_repeat_finds_the_verdict_and_does_nothing(acme: InboxHarness) -> None:
    raw = message("organization.renamed", {"name": "Acme GmbH"}, "again")
    first = acme.handle(raw)
    acme.send("organization.renamed", name="Acme AG")
    repeat = acme.handle(raw)
    assert (repeat.status, repeat.org_id, repeat.repeated) == ("applied", first.org_id, True)
    assert acme.present().name == "Acme AG"


def test_a_refused_message_keeps_its_verdict_too(acme: InboxHarness) -> None:
    bad = message("organization.plan_changed", {"plan_tier": "gold"}, "bad")
    assert acme.handle(bad).status == "rejected"
    again = acme.handle(bad)
    assert (again.status, again.repeated) == ("rejected", True)
    assert len([row for row in acme.stored_events() if row.id == "bad"]) == 1


@pytest.mark.parametrize(
    "other",
    [
        message("organization.renamed", {"name": "Globex"}, "again"),
        message("organization.renamed", {"name": "Acme GmbH"}, "again", subject="org_other"),
        message("organization.status_changed", {"name": "Acme GmbH"}, "again"),
        message("organization.renamed", {}, "again"),
        message("organization.renamed", {"name": "x" * 70_000}, "again"),
    ],
    ids=["data", "subject", "type", "nothing", "too large"],
)
def test_other_content_under_a_used_id_is_rejected_and_listed(acme: InboxHarness, other: dict[str, Any]) -> None:
    raw = message("organization.renamed", {"name": "Acme GmbH"}, "again")
    acme.handle(raw)
    refused = acme.handle(other)
    assert (refused.status, refused.reason, refused.org_id, refused.repeated) == (
        "rejected",
        ID_USED_TWICE,
        None,
        False,
    )
    assert (acme.handle(other).status, acme.handle(other).repeated) == ("rejected", True)
    rows = [row for row in acme.stored_events() if "again" in {row.id, row.sent_id}]
    assert sorted((row.status, row.sent_id) for row in rows if row.sent_id) == [("rejected", "again")]
    assert [(row.status, row.data) for row in rows if row.id == "again"] == [("applied", {"name": "Acme GmbH"})]
    assert acme.present().name == "Acme GmbH"
    assert (acme.handle(raw).status, acme.handle(raw).repeated) == ("applied", True)


def test_a_corrected_message_under_the_id_of_a_rejected_one_needs_a_new_id(acme: InboxHarness) -> None:
    wrong = message("organization.plan_changed", {"plan_tier": "gold"}, "bad")
    right = message("organization.plan_changed", {"plan_tier": "enterprise"}, "bad")
    first = acme.handle(wrong)
    assert acme.handle(right).reason == ID_USED_TWICE
    assert acme.handle(wrong) == replace(first, repeated=True)
    assert acme.handle(right | {"id": "good"}).status == "applied"


def test_a_replay_of_other_content_is_rejected_again(acme: InboxHarness) -> None:
    acme.handle(message("organization.renamed", {"name": "Acme GmbH"}, "again"))
    acme.handle(message("organization.renamed", {"name": "Globex"}, "again"))
    digest = next(row.id for row in acme.stored_events() if row.sent_id)
    replayed = acme.replay(digest)
    assert replayed is not None
    assert (replayed.status, replayed.reason, replayed.repeated) == ("rejected", ID_USED_TWICE, False)
    assert acme.present().name == "Acme GmbH"


@pytest.mark.parametrize("extra", [1e23, 1.0, -0.0, 5e-324, 10**300, 0.1, True], ids=repr)
def test_the_same_message_is_a_repeat_whatever_the_database_makes_of_its_numbers(
    acme: InboxHarness, extra: float
) -> None:
    raw = message("organization.renamed", {"name": "Acme GmbH", "extra": [extra]}, "numbers")
    first = acme.handle(raw)
    assert acme.handle(json.loads(json.dumps(raw))) == replace(first, repeated=True)


def test_a_sender_whose_clock_is_ahead_makes_its_events_look_later_for_five_minutes(
    acme: InboxHarness, clock: SetClock
) -> None:
    assert acme.send("organization.renamed", at=600, name="Early").status == "applied"
    clock.advance(minutes=6)
    assert acme.send("organization.renamed", at=4, name="Late").status == "superseded"
    assert acme.send("organization.renamed", at=6, name="Right").status == "applied"
    assert acme.present().name == "Right"
    assert {row.occurred_at for row in acme.stored_events()} >= {NOON + timedelta(minutes=5)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"specversion": "0.3"}, "specversion"),
        ({"id": ""}, "id"),
        ({"id": None}, "id"),
        ({"id": "x" * 256}, "id"),
        ({"source": "x" * 256}, "source"),
        ({"source": 5}, "source"),
        ({"type": "organization.exploded"}, "type must be one of organization.created"),
        ({"subject": "acme.com"}, "subject"),
        ({"subject": None}, "subject"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-11-23T12:00:00"}, "time"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "time"),
        ({"time": "9999-12-31T23:59:59-14:00"}, "time"),
        ({"time": "2027-11-23T12:00:00Z"}, "time"),
        ({"datacontenttype": "text/xml"}, "datacontenttype"),
        ({"data": None}, "data"),
        ({"data": [1]}, "data"),
        ({"data": {"name": ""}}, "data.name"),
        ({"data": {"name": " "}}, "data.name"),
        ({"data": {"name": "x" * 201}}, "data.name"),
        ({"data": {"name": "a\nb"}}, "data.name"),
        ({"data": {}}, "data.name"),
        ({"data": {"name": "A", "plan_tier": "gold"}}, "data.plan_tier"),
        ({"data": {"name": "A", "billing_email": "nobody"}}, "data.billing_email"),
        ({"data": {"name": "A", "currency": "eur"}}, "data.currency"),
        ({"data": {"name": "A", "owner_user_id": ""}}, "data.owner_user_id"),
        ({"data": {"name": "A", "owner_user_id": "a\nb"}}, "data.owner_user_id"),
        ({"data": {"name": "A", "nmae": "B"}}, "data.nmae"),
        ({"data": {"name": "A\x00"}}, "NUL"),
        ({"data": {"name": "A\ud800"}}, "surrogate"),
        ({"id": "m\x00"}, "NUL"),
        ({"extra": float("nan")}, "finite"),
        ({"extra": float("inf")}, "finite"),
        ({"extra": object()}, "plain JSON"),
        ({"extra": "x" * 70_000}, "at most 65536"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_the_field_named_and_kept(
    inbox: InboxHarness, change: dict[str, object], named: str
) -> None:
    raw = message("organization.created", {"name": "Acme"}) | change
    handled = inbox.handle(raw)
    assert handled.status == "rejected"
    assert handled.reason is not None
    assert named in handled.reason
    (row,) = inbox.stored_events()
    assert (row.status, row.reason) == ("rejected", handled.reason)
    assert inbox.count(Organization) == inbox.count(Event) == 0


@pytest.mark.parametrize("missing", ["source", "id"])
def test_a_message_without_its_name_is_kept_once_under_what_it_holds(inbox: InboxHarness, missing: str) -> None:
    raw = message("organization.created", {"name": "Acme"})
    del raw[missing]
    assert inbox.handle(raw).reason == f"{missing}: Field required"
    assert inbox.handle(raw).repeated is True
    assert (
        inbox.handle(raw | {"data": {"name": "Other"}} | ({"id": "n"} if missing == "source" else {})).repeated is False
    )
    row = next(row for row in inbox.stored_events() if row.data == {"name": "Acme"})
    assert (row.source, row.type, row.subject) == (
        UNKNOWN_EVENT_SOURCE if missing == "source" else "/shop",
        "organization.created",
        ORG,
    )


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "raw",
    [None, 5, "text", [], [{"id": "x"}], b"bytes", {}, {1: 2}, {"data": {"x": object()}}, nested(5), nested(50_000)],
    ids=["none", "number", "text", "list", "list of one", "bytes", "empty", "keys", "object", "nested", "deep"],
)
def test_whatever_comes_is_refused_and_never_raises(inbox: InboxHarness, raw: object) -> None:
    assert inbox.handle(raw).status == "rejected"
    assert inbox.handle({"source": "/s", "id": "1", "data": raw}).status == "rejected"
    assert len(inbox.stored_events()) == 2


def test_two_long_ids_that_begin_alike_are_not_taken_for_one(inbox: InboxHarness) -> None:
    raw = message("organization.created", {"name": "Acme"})
    inbox.handle(raw | {"id": "x" * 255 + "a"})
    assert inbox.handle(raw | {"id": "x" * 255}).status == "applied"


def test_reasons_hold_no_name_no_address_and_no_user(acme: InboxHarness) -> None:
    acme.send("organization.created", subject="org_2", name="Secret Ltd")
    acme.send("organization.created", subject="org_3", name="secret ltd")
    acme.send("organization.created", subject="org_4", name="Secret\x01", billing_email="secret")
    acme.send("organization.billing_details_changed", billing_email="secret at secret")
    acme.send("membership.role_changed", user_id="boss@secret.test", role="owner")
    acme.send("organization.plan_changed", plan_tier="secret")
    acme.send("organization.created", subject="org_5", name="A", plan_tier="secret")
    acme.send("organization.created", subject="org_6", name="B", owner_user_id="secret\x01")
    acme.send("organization.status_changed", status="secret")
    acme.send("secret@secret.test")
    acme.handle(message("membership.added", {"user_id": "u", "boss@secret.test": 1, "secret" * 30: 2}, "mx"))
    reasons = [row.reason for row in acme.stored_events() if row.status != "applied"]
    assert len(reasons) == 10
    assert "ecret" not in json.dumps(reasons)
    assert any(reason and "another organization already has this name" in reason for reason in reasons)


def test_messages_before_their_organization_wait_and_are_applied_in_the_order_of_their_time(
    inbox: InboxHarness,
) -> None:
    assert inbox.send("organization.renamed", at=3, name="Third").status == "waiting"
    assert inbox.send("membership.role_changed", at=2, user_id="u1", role="owner").status == "waiting"
    assert inbox.send("organization.renamed", at=1, name="Second").status == "waiting"
    assert inbox.send("membership.added", at=1, user_id="u1").status == "waiting"
    assert inbox.send("organization.plan_changed", at=2, plan_tier="gold").status == "waiting"
    assert inbox.count(Organization) == 0
    assert inbox.send("organization.created", at=0, name="First").status == "applied"
    assert inbox.present().name == "Third"
    assert inbox.roles() == {"u1": "owner"}
    assert [row.status for row in inbox.stored_events()] == [
        "applied",
        "applied",
        "applied",
        "applied",
        "rejected",
        "applied",
    ]
    refused = next(row for row in inbox.stored_events() if row.status == "rejected")
    assert refused.reason is not None
    assert refused.reason.startswith("data.plan_tier: ")


def test_what_still_waits_is_taken_before_the_next_message_about_the_same_organization(inbox: InboxHarness) -> None:
    assert inbox.send("organization.plan_changed", plan_tier="enterprise").status == "waiting"
    make_acme(inbox)
    inbox.send("organization.billing_details_changed", billing_email="a@b.test")
    assert inbox.present().plan_tier == "enterprise"
    assert [row.status for row in inbox.stored_events()] == ["applied", "applied"]


def test_what_waited_without_a_time_does_not_undo_what_came_later(inbox: InboxHarness) -> None:
    assert inbox.send("organization.renamed", name="Acme Early").status == "waiting"
    make_acme(inbox)
    inbox.send("organization.renamed", name="Acme Late")
    assert inbox.present().name == "Acme Late"
    assert [row.status for row in inbox.stored_events()] == ["applied", "applied"]


def make_acme(inbox: InboxHarness) -> None:
    """Not by a message: as an import does, or a person."""
    new = commands.NewOrganization(name="Acme", plan_tier="starter", org_id=ORG)
    with inbox.database.write() as session:
        commands.create(ChangeContext(session, NOON), new, inbox.plans)


def test_a_role_for_somebody_who_is_not_a_member_yet_waits_for_the_addition(acme: InboxHarness) -> None:
    assert acme.send("membership.role_changed", at=2, user_id="u1", role="owner").status == "waiting"
    assert acme.send("membership.role_changed", at=2, user_id="u2", role="owner").status == "waiting"
    assert acme.send("membership.added", at=1, user_id="u1").status == "applied"
    assert acme.roles() == {"u1": "owner"}
    assert acme.send("membership.added", at=3, user_id="u2").status == "applied"
    assert acme.roles() == {"u1": "owner", "u2": "member"}
    assert [row.status for row in acme.stored_events()].count("superseded") == 1


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_later_word_of_a_source_counts_in_whatever_order_they_come(
    acme: InboxHarness, order: tuple[int, int]
) -> None:
    statuses = {at: acme.send("organization.renamed", at=at, name=f"Name {at}").status for at in order}
    assert acme.present().name == "Name 2"
    assert statuses[1] == ("applied" if order == (1, 2) else "superseded")


def history_of(org_id: str) -> list[dict[str, Any]]:
    """One source's messages about one organization, in the order of their times."""
    changes: list[tuple[str, dict[str, object]]] = [
        ("organization.created", {"name": f"First {org_id}", "plan_tier": "starter", "owner_user_id": "u1"}),
        ("membership.added", {"user_id": "u2"}),
        ("organization.renamed", {"name": f"Second {org_id}"}),
        ("organization.billing_details_changed", {"billing_email": "a@b.test", "currency": "USD"}),
        ("membership.role_changed", {"user_id": "u2", "role": "owner"}),
        ("membership.removed", {"user_id": "u1"}),
        ("organization.renamed", {"name": f"Third {org_id}"}),
        ("organization.billing_details_changed", {"billing_email": "c@d.test"}),
        ("organization.status_changed", {"status": "suspended"}),
        ("membership.added", {"user_id": "u3", "role": "owner"}),
        ("membership.removed", {"user_id": "u2"}),
        ("membership.added", {"user_id": "u2"}),
        ("membership.role_changed", {"user_id": "u2", "role": "billing_admin"}),
    ]
    return [message(event_type, data, f"{org_id}-{at}", at, org_id) for at, (event_type, data) in enumerate(changes)]


@pytest.mark.slow
def test_the_messages_of_one_source_end_alike_in_whatever_order_they_come(inbox: InboxHarness) -> None:
    arrival = random.Random(13)  # noqa: S311 - orders, not secrets
    inbox.clock.advance(hours=1)  # after the last of them
    for number in range(12):
        org_id = f"org_{number}"
        history = history_of(org_id)
        for raw in history if number == 0 else arrival.sample(history, len(history)):
            assert inbox.handle(raw).status != "rejected"
        organization = inbox.present(org_id)
        assert (organization.name, organization.status) == (f"Third {org_id}", "suspended")
        assert (organization.billing_email, organization.currency) == ("c@d.test", "USD")
        with inbox.database.read() as session:
            members = session.scalars(select(Membership).where(Membership.org_id == org_id))
            assert {each.user_id: each.role for each in members} == {"u2": "billing_admin", "u3": "owner"}


def test_a_removal_is_not_undone_by_the_addition_that_comes_after_it(acme: InboxHarness) -> None:
    assert acme.send("membership.removed", at=2, user_id="u1").status == "applied"
    assert acme.send("membership.added", at=1, user_id="u2").status == "applied"
    assert acme.send("membership.added", at=1, user_id="u1").status == "superseded"
    assert acme.roles() == {"u2": "member"}


def test_an_older_word_about_another_billing_field_is_still_news(acme: InboxHarness) -> None:
    assert acme.send("organization.billing_details_changed", at=2, currency="USD").status == "applied"
    late = acme.send("organization.billing_details_changed", at=1, currency="USD", billing_email="a@b.test")
    assert late.status == "applied"
    assert (acme.present().currency, acme.present().billing_email) == ("USD", "a@b.test")
    assert acme.send("organization.billing_details_changed", at=1, currency="CHF").status == "superseded"


def test_another_sources_clock_says_nothing(acme: InboxHarness) -> None:
    acme.send("organization.renamed", at=5, name="Ours")
    other = message("organization.renamed", {"name": "Theirs"}, "x", 1) | {"source": "/crm"}
    assert acme.handle(other).status == "applied"
    assert acme.present().name == "Theirs"


def test_a_message_from_the_far_future_cannot_silence_its_source(acme: InboxHarness) -> None:
    assert acme.send("organization.renamed", at=60 * 24 * 400, name="Future").status == "rejected"
    assert acme.send("organization.renamed", at=1, name="Now").status == "applied"


@pytest.mark.slow
def test_waiting_is_bounded(inbox: InboxHarness) -> None:
    with inbox.database.write() as session:
        session.add_all(
            ServiceEvent(
                source="/shop", id=f"w{number}", type="membership.removed", subject=ORG, received_at=NOON,
                status="waiting", data={"user_id": "u"},
            )
            for number in range(MAX_WAITING_EVENTS)
        )  # fmt: skip
    handled = inbox.send("organization.renamed", name="One too many")
    assert handled.status == "rejected"
    assert handled.reason is not None
    assert "already wait for it" in handled.reason
    assert inbox.send("organization.created", name="Acme").status == "applied"
    assert {row.status for row in inbox.stored_events()} == {"applied", "rejected"}


def test_created_twice_under_two_ids_is_one_organization(acme: InboxHarness) -> None:
    assert acme.send("organization.created", name="Acme").reason == "already existed"
    refused = acme.send("organization.created", name="Other")
    assert (refused.status, acme.count(Organization)) == ("rejected", 1)


def test_a_deleted_organization_takes_no_new_members(acme: InboxHarness) -> None:
    acme.send("organization.status_changed", status="deleted")
    assert acme.send("membership.added", user_id="u1").status == "rejected"
    assert acme.roles() == {}


def at_once(*works: Callable[[], object]) -> list[object]:
    results: list[object] = []
    gate = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        gate.wait()
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 - the test judges whatever came
            results.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_same_message_many_times_at_once_is_applied_once(inbox: InboxHarness) -> None:
    for number in range(5):
        raw = message("organization.created", {"name": f"Acme {number}"}, f"m{number}", subject=f"org_{number}")
        results = at_once(*[partial(inbox.handle, raw)] * 8)
        handled_events = [result for result in results if isinstance(result, HandledEvent)]
        assert len(handled_events) == 8, results
        assert {handled.status for handled in handled_events} == {"applied"}
        assert [handled.repeated for handled in handled_events].count(False) == 1
    assert inbox.count(Organization) == inbox.count(Event) == inbox.count(ServiceEvent) == 5
    assert inbox.count(BillingLink) == 10


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (message("organization.renamed", {"name": "Early"}), "waiting"),
        (message("organization.created", {"name": " "}), "rejected"),
        (message("organization.exploded", {}), "rejected"),
        ({"data": {"name": "Nobody's"}}, "rejected"),
        ("no object", "rejected"),
    ],
    ids=["waiting", "refused by the rules", "unknown type", "without a name", "text"],
)
def test_what_is_not_applied_is_kept_once_too_however_often_it_comes_at_once(
    inbox: InboxHarness, raw: object, status: str
) -> None:
    results = at_once(*[partial(inbox.handle, raw)] * 8)
    handled_events = [result for result in results if isinstance(result, HandledEvent)]
    assert len(handled_events) == 8, results
    assert [handled.repeated for handled in handled_events].count(False) == 1
    assert {handled.status for handled in handled_events} == {status}
    assert [row.status for row in inbox.stored_events()] == [status]


def test_a_member_and_its_organization_at_once_are_both_there_whoever_wins(inbox: InboxHarness) -> None:
    for number in range(10):
        subject = f"org_{number}"
        created = message("organization.created", {"name": f"Acme {number}"}, f"c{number}", subject=subject)
        added = message("membership.added", {"user_id": f"u{number}"}, f"a{number}", subject=subject)
        results = at_once(partial(inbox.handle, created), partial(inbox.handle, added))
        assert all(isinstance(result, HandledEvent) for result in results), results
    assert inbox.roles() == {f"u{number}": "member" for number in range(10)}
    assert {row.status for row in inbox.stored_events()} == {"applied"}


def test_two_organizations_that_want_one_name_at_once_get_it_once(inbox: InboxHarness) -> None:
    for number in range(10):
        raws = [
            message(
                "organization.created", {"name": f"Acme {number}"}, f"{side}{number}", subject=f"org_{side}{number}"
            )
            for side in "ab"
        ]
        results = at_once(*[partial(inbox.handle, raw) for raw in raws])
        statuses = sorted(result.status for result in results if isinstance(result, HandledEvent))
        assert statuses == ["applied", "rejected"], results


def test_a_change_by_a_person_and_a_message_at_once_lose_nothing(acme: InboxHarness) -> None:
    def by_a_user() -> None:
        for number in range(20):
            with acme.database.write() as session:
                organization = commands.lock(session, ORG)
                assert organization is not None
                commands.rename(ChangeContext(session, NOON), organization, f"Person {number}")

    def by_messages() -> None:
        for number in range(20):
            raw = message("organization.billing_details_changed", {"billing_email": f"a{number}@b.test"}, f"e{number}")
            assert acme.handle(raw).status == "applied"

    assert at_once(by_a_user, by_messages) == [None, None]
    changed = acme.present()
    assert (changed.name, changed.billing_email, changed.version) == ("Person 19", "a19@b.test", 41)
    with acme.database.read() as session:
        links = list(session.scalars(select(BillingLink)))
    assert {link.desired_version for link in links} == {41}


def test_a_rejected_message_is_applied_by_a_replay_once_its_cause_is_gone(acme: InboxHarness) -> None:
    acme.send("organization.created", subject="org_beta", name="Beta", plan_tier="starter")
    assert acme.send("organization.renamed", name="Beta").status == "rejected"
    again = acme.replay("m3")
    assert again is not None
    assert (again.status, again.repeated) == ("rejected", False)
    assert acme.present().name == "Acme"
    acme.send("organization.renamed", subject="org_beta", name="Gamma")
    assert acme.replay("m3") == HandledEvent(status="applied", reason=None, org_id=ORG)
    assert acme.present().name == "Beta"
    version = acme.present().version
    assert acme.replay("m3") == HandledEvent(status="applied", reason=None, org_id=ORG, repeated=True)
    assert acme.present().version == version
    assert acme.replay("m99") is None
    assert acme.count(ServiceEvent) == 4
    with acme.database.read() as session:
        renamed = session.scalars(select(Event).where(Event.org_id == ORG).order_by(Event.seq.desc()).limit(1)).one()
    assert (renamed.actor, renamed.source) == ("operator:alice", "billing-sync inbox replay")
    assert str(renamed.caused_by).endswith("#m3")


@pytest.mark.parametrize(("first", "later"), [(1, 2), (None, 2), (1, None), (None, None)])
def test_a_replay_leaves_what_a_later_message_has_changed(
    acme: InboxHarness, first: int | None, later: int | None
) -> None:
    """Without a time, the message that was received later is the later one."""
    acme.clock.now = NOON
    acme.send("organization.created", subject="org_beta", name="Beta", plan_tier="starter")
    acme.clock.now = NOON + timedelta(minutes=1)
    assert acme.send("organization.renamed", at=first, name="Beta").status == "rejected"
    acme.clock.now = NOON + timedelta(minutes=2)
    assert acme.send("organization.renamed", at=later, name="Acme GmbH").status == "applied"
    acme.send("organization.renamed", subject="org_beta", name="Gamma")
    replayed = acme.replay("m3")
    assert replayed is not None
    assert replayed.status == "superseded"
    assert acme.present().name == "Acme GmbH"


def test_a_message_that_never_had_the_form_of_one_stays_rejected(inbox: InboxHarness) -> None:
    assert inbox.send("organization.created", name=7).status == "rejected"
    assert (replayed := inbox.replay("m1")) is not None
    assert (replayed.status, inbox.organization()) == ("rejected", None)


def test_a_name_that_nobody_sees_is_rejected_by_its_code_point(inbox: InboxHarness) -> None:
    sentence = (
        "data.name: name contains U+202E (RIGHT-TO-LEFT OVERRIDE) at position 5; use one line of text that can be seen"
    )
    for event_type in ("organization.created", "organization.renamed"):
        handled = inbox.send(event_type, name="Acme\u202egpj")
        assert (handled.status, handled.reason) == ("rejected", sentence)
        inbox.send("organization.created", name="Acme")
    assert inbox.present().name == "Acme"


@pytest.mark.parametrize(("unique_names", "status"), [(True, "rejected"), (False, "applied")])
def test_a_name_of_another_organization_is_a_matter_of_the_setting(
    acme: InboxHarness,
    unique_names: bool,  # noqa: FBT001 - the setting
    status: str,
) -> None:
    first = acme.database
    acme.database = Database(first.url.render_as_string(hide_password=False), unique_names=unique_names)
    try:
        created = acme.send("organization.created", subject="org_second", name="ACME")
        acme.send("organization.created", subject="org_third", name="Third")
        renamed = acme.send("organization.renamed", subject="org_third", name="acme")
    finally:
        acme.database.close()
        acme.database = first
    assert (created.status, renamed.status) == (status, status)
    assert acme.count(Organization) == (2 if unique_names else 3)


@pytest.mark.parametrize("leaves", ["membership.removed", "membership.role_changed", "membership.added"])
@pytest.mark.parametrize("comes", ["membership.added", "membership.role_changed"])
def test_a_message_that_takes_the_last_owner_away_waits_for_the_next_owner(
    acme: InboxHarness, leaves: str, comes: str
) -> None:
    acme.send("membership.added", user_id="old", role="owner")
    acme.send("membership.added", user_id="new", role="owner" if comes == "membership.added" else "member", at=1)
    acme.send("membership.removed", user_id="new") if comes == "membership.added" else None
    role: dict[str, Any] = {} if leaves == "membership.removed" else {"role": "member"}
    waiting = acme.send(leaves, user_id="old", **role)
    assert waiting.status == "waiting"
    assert "last owner" in (waiting.reason or "")
    assert "old" not in (waiting.reason or "").replace("older", "")
    assert acme.roles()["old"] == "owner"
    acme.send(comes, user_id="new", role="owner", at=2)
    assert acme.roles() == {"new": "owner"} | ({"old": "member"} if role else {})


@pytest.mark.parametrize("timed", [True, False], ids=["with times", "without"])
def test_the_last_word_about_the_last_owner_is_the_one_that_holds(acme: InboxHarness, *, timed: bool) -> None:
    acme.send("membership.added", user_id="old", role="owner", at=1 if timed else None)
    assert acme.send("membership.removed", user_id="old", at=2 if timed else None).status == "waiting"
    acme.send("membership.role_changed", user_id="old", role="owner", at=3 if timed else None)
    acme.send("membership.added", user_id="new", role="owner", at=4 if timed else None)
    assert acme.roles() == {"old": "owner", "new": "owner"}
    assert [event.status for event in acme.stored_events() if event.type == "membership.removed"] == ["superseded"]


def test_an_owner_who_is_made_in_another_way_ends_the_wait(acme: InboxHarness) -> None:
    acme.send("membership.added", user_id="old", role="owner")
    assert acme.send("membership.removed", user_id="old").status == "waiting"
    manager = OrgManager(database_url=acme.database.url.render_as_string(hide_password=False))
    assert manager.add_user_to_org(ORG, "new", "member")
    assert acme.roles() == {"old": "owner", "new": "member"}
    assert manager.update_user_role(ORG, "new", "owner")
    manager.close()
    assert acme.roles() == {"new": "owner"}


def test_an_organization_that_was_deleted_meanwhile_has_its_owner_when_it_is_active_again(acme: InboxHarness) -> None:
    acme.send("membership.added", user_id="old", role="owner")
    acme.send("organization.status_changed", status="deleted")
    assert acme.send("membership.removed", user_id="old").status == "waiting"
    acme.send("organization.status_changed", status="active")
    assert acme.roles() == {"old": "owner"}


def test_what_waits_for_an_owner_who_waits_too_is_decided_with_it(inbox: InboxHarness) -> None:
    assert inbox.send("membership.removed", user_id="old", at=2).status == "waiting"
    assert inbox.send("membership.added", user_id="new", role="owner", at=3).status == "waiting"
    inbox.send("organization.created", name="Acme", owner_user_id="old", at=1)
    assert inbox.roles() == {"new": "owner"}


def test_a_message_with_a_time_supersedes_what_waits_without_one(acme: InboxHarness) -> None:
    acme.send("membership.added", user_id="old", role="owner")
    assert acme.send("membership.removed", user_id="old").status == "waiting"
    acme.send("membership.added", user_id="old", role="owner", at=5)
    acme.send("membership.added", user_id="new", role="owner")
    assert acme.roles() == {"old": "owner", "new": "owner"}


def test_an_older_message_does_not_change_whom_somebody_adds_now(acme: InboxHarness) -> None:
    assert acme.send("membership.role_changed", user_id="guest", role="owner").status == "waiting"
    manager = OrgManager(database_url=acme.database.url.render_as_string(hide_password=False))
    manager.add_user_to_org(ORG, "other", "owner")
    manager.add_user_to_org(ORG, "guest", "member")
    manager.close()
    assert acme.roles() == {"other": "owner", "guest": "member"}


@pytest.mark.parametrize("user_id", [" u1", "u1 ", "a\u202eb", "a\nb", "\u200b"])
def test_a_user_id_that_cannot_be_kept_is_rejected_wherever_it_comes_in(acme: InboxHarness, user_id: str) -> None:
    for handled in (
        acme.send("membership.added", user_id=user_id),
        acme.send("membership.role_changed", user_id=user_id, role="owner"),
        acme.send("organization.created", subject="org_other", name="Other", owner_user_id=user_id),
    ):
        assert handled.status == "rejected"
        assert "user_id" in (handled.reason or "")
