"""The rules that decide about service events, case by case, and the order of arrival, which decides nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.db.models.inbox import ServiceEventStatus
from core.events.event_types import CHANGE_TYPES, ChangeType
from core.inbox.event_schemas import (
    DATA_MODELS,
    MembershipAddedData,
    MembershipRemovedData,
    MembershipRoleChangedData,
    OrganizationCreatedData,
    ServiceEventData,
)
from core.inbox.ordering import (
    MAX_WAITING_EVENTS,
    Decision,
    compared_type_prefix,
    decide_change,
    decide_creation,
    decide_missing_subject,
    decide_time,
    ordered_time,
)

ORG = "org_shop-1"
ROLE_CHANGED: ChangeType = "membership.role_changed"
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DAY, MINUTE, MICROSECOND = timedelta(days=1), timedelta(minutes=1), timedelta(microseconds=1)
MEMBERSHIP_TYPES: list[ChangeType] = ["membership.added", "membership.removed", ROLE_CHANGED]


def parsed(event_type: ChangeType, data: dict[str, Any]) -> ServiceEventData:
    return DATA_MODELS[event_type].model_validate(data)


@pytest.mark.parametrize(
    ("occurred_at", "status"),
    [
        (None, None),
        (datetime.min.replace(tzinfo=UTC), None),
        (NOON, None),
        (NOON + DAY, None),
        (NOON + DAY + MICROSECOND, "rejected"),
        (datetime.max.replace(tzinfo=UTC), "rejected"),
    ],
    ids=["without a time", "long ago", "now", "a day ahead", "just over a day ahead", "in the far future"],
)
def test_only_a_time_more_than_a_day_ahead_rejects_an_event(occurred_at: datetime | None, status: str | None) -> None:
    decision = decide_time(occurred_at, NOON)
    assert (decision and decision.status) == status
    assert decision is None or (decision.news is None and (decision.reason or "").startswith("time: "))


@pytest.mark.parametrize(
    ("occurred_at", "ordered"),
    [
        (None, None),
        (NOON - DAY, NOON - DAY),
        (NOON + 5 * MINUTE, NOON + 5 * MINUTE),
        (NOON + 5 * MINUTE + MICROSECOND, NOON + 5 * MINUTE),
        (NOON + DAY, NOON + 5 * MINUTE),
    ],
)
def test_a_time_orders_as_five_minutes_ahead_at_most(occurred_at: datetime | None, ordered: datetime | None) -> None:
    assert ordered_time(occurred_at, NOON) == ordered


@pytest.mark.parametrize(
    ("existing_name", "status", "reason", "creates"),
    [
        (None, "applied", None, True),
        ("Acme", "applied", "already existed", False),
        ("acme", "rejected", f"subject: {ORG} already exists with a different name", False),
        (" Acme ", "rejected", f"subject: {ORG} already exists with a different name", False),
    ],
)
def test_an_organization_is_created_once_and_never_under_a_second_name(
    existing_name: str | None, status: ServiceEventStatus, reason: str | None, *, creates: bool
) -> None:
    data = OrganizationCreatedData(name=" Acme ")
    decision = decide_creation(ORG, data, existing_name)
    assert decision == Decision(status=status, reason=reason, news=data if creates else None)


@pytest.mark.parametrize(
    ("waiting_count", "status"),
    [
        (0, "waiting"),
        (MAX_WAITING_EVENTS - 1, "waiting"),
        (MAX_WAITING_EVENTS, "rejected"),
        (MAX_WAITING_EVENTS + 1, "rejected"),
    ],
)
def test_no_more_than_five_hundred_events_wait_for_one_organization(waiting_count: int, status: str) -> None:
    decision = decide_missing_subject("subject: missing", waiting_count)
    full = ", and 500 events already wait for it" if status == "rejected" else ""
    assert (decision.status, decision.reason, decision.news) == (status, f"subject: missing{full}", None)


@pytest.mark.parametrize("event_type", CHANGE_TYPES)
def test_membership_types_are_compared_with_each_other_and_all_others_with_themselves(event_type: ChangeType) -> None:
    prefix = compared_type_prefix(event_type)
    compared = [each for each in CHANGE_TYPES if (each == event_type if prefix is None else each.startswith(prefix))]
    assert compared == (MEMBERSHIP_TYPES if event_type in MEMBERSHIP_TYPES else [event_type])


BILLING: ChangeType = "organization.billing_details_changed"
EUR, USD = {"currency": "EUR"}, {"currency": "USD"}
EMAIL, OTHER_EMAIL = {"billing_email": "a@b.test"}, {"billing_email": "c@d.test"}
LATER_CASES: list[tuple[ChangeType, dict[str, Any], list[dict[str, Any]], dict[str, Any] | None]] = [
    # the event, the data of later events, and what of it is still news
    ("organization.renamed", {"name": "A"}, [], {"name": "A"}),
    ("organization.renamed", {"name": "A"}, [{"name": "B"}], None),
    ("organization.renamed", {"name": "A"}, [{"name": "A"}], None),
    ("organization.plan_changed", {"plan_tier": "starter"}, [], {"plan_tier": "starter"}),
    ("organization.plan_changed", {"plan_tier": "starter"}, [{"plan_tier": "enterprise"}], None),
    ("organization.status_changed", {"status": "active"}, [], {"status": "active"}),
    ("organization.status_changed", {"status": "active"}, [{"status": "deleted"}, {"status": "active"}], None),
    (BILLING, EUR, [], EUR),
    (BILLING, EUR, [USD], None),
    (BILLING, EUR, [EMAIL], EUR),
    (BILLING, EUR | EMAIL, [USD], EMAIL),
    (BILLING, EUR | EMAIL, [USD, EMAIL], None),
    (BILLING, EUR | EMAIL, [USD | EMAIL], None),
    (BILLING, EUR, [EMAIL | {"currency": None}], EUR),
    (BILLING, EUR | {"billing_email": None}, [USD], None),
    (BILLING, {}, [], {}),
    (BILLING, {}, [EMAIL], None),
    (BILLING, EUR, [{}], EUR),
    ("membership.added", {"user_id": "u"}, [], {"user_id": "u"}),
    ("membership.added", {"user_id": "u"}, [{"user_id": "v"}], {"user_id": "u"}),
    ("membership.added", {"user_id": "u"}, [{"user_id": "v"}, {"user_id": "u"}], None),
    ("membership.removed", {"user_id": "u"}, [{"user_id": "v"}], {"user_id": "u"}),
    ("membership.removed", {"user_id": "u"}, [{"user_id": "u", "role": "owner"}], None),
    (ROLE_CHANGED, {"user_id": "u", "role": "owner"}, [{"user_id": "v"}], {"user_id": "u", "role": "owner"}),
    (ROLE_CHANGED, {"user_id": "u", "role": "owner"}, [{"user_id": "u"}], None),
]  # fmt: skip


@pytest.mark.parametrize(("event_type", "data", "later", "news"), LATER_CASES)
def test_what_later_events_have_changed_is_no_news(
    event_type: ChangeType, data: dict[str, Any], later: list[dict[str, Any]], news: dict[str, Any] | None
) -> None:
    for any_order in (later, later[::-1]):
        decision = decide_change(parsed(event_type, data), any_order)
        if news is None:
            assert (decision.status, decision.news) == ("superseded", None)
            assert decision.reason == "time: the same source has already sent a later event of this type"
        else:
            assert decision == Decision(status="applied", news=parsed(event_type, news))


def test_every_type_that_changes_an_organization_has_a_case() -> None:
    assert {event_type for event_type, *_ in LATER_CASES} == set(CHANGE_TYPES) - {"organization.created"}


@dataclass(kw_only=True)
class SentEvent:
    type: ChangeType
    minute: int
    data: dict[str, Any]
    status: ServiceEventStatus = "applied"

    def is_later_than(self, other: SentEvent) -> bool:
        prefix = compared_type_prefix(other.type)
        same_type = self.type == other.type if prefix is None else self.type.startswith(prefix)
        return same_type and self.status == "applied" and self.minute > other.minute


@dataclass
class MemoryInbox:
    """The flow of ``service_events`` over dictionaries. Every decision is one of ``ordering``."""

    fields: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    events: list[SentEvent] = field(default_factory=list)

    @property
    def state(self) -> tuple[dict[str, str], dict[str, str]]:
        return self.fields, self.roles

    def handle(self, event: SentEvent) -> None:
        self.events.append(event)
        if exists := bool(self.fields):
            self._apply_waiting()
        data = parsed(event.type, event.data)
        if isinstance(data, OrganizationCreatedData):
            self._create(event, data)
        elif exists:
            event.status = self._change(event, data)
        else:
            event.status = self._wait()
        if exists and isinstance(data, MembershipAddedData):
            self._apply_waiting()

    def _create(self, event: SentEvent, data: OrganizationCreatedData) -> None:
        decision = decide_creation(ORG, data, self.fields.get("name"))
        event.status = decision.status
        if decision.news is not None:
            self.fields = {"name": data.name, "plan_tier": data.plan_tier, "status": "active"}
            self.roles = {} if data.owner_user_id is None else {data.owner_user_id: "owner"}
            self._apply_waiting()

    def _apply_waiting(self) -> None:
        for event in sorted(self.events, key=lambda each: each.minute):
            if event.status == "waiting":
                event.status = self._change(event, parsed(event.type, event.data))

    def _change(self, event: SentEvent, data: ServiceEventData) -> ServiceEventStatus:
        decision = decide_change(data, [each.data for each in self.events if each.is_later_than(event)])
        match decision.news:
            case None:
                return decision.status
            case MembershipRoleChangedData(user_id=user_id) if user_id not in self.roles:
                return self._wait()
            case (
                MembershipAddedData(user_id=user_id, role=role) | MembershipRoleChangedData(user_id=user_id, role=role)
            ):
                self.roles[user_id] = role
            case MembershipRemovedData(user_id=user_id):
                self.roles.pop(user_id, None)
            case news:
                self.fields |= news.model_dump(exclude_none=True)
        return decision.status

    def _wait(self) -> ServiceEventStatus:
        waiting_count = sum(each.status == "waiting" for each in self.events)
        return decide_missing_subject("missing", waiting_count).status


Change = tuple[ChangeType, dict[str, Any]]


def changes(event_type: ChangeType, data: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Change]:
    return st.tuples(st.just(event_type), data)


USERS = st.sampled_from("uv")
PLANS = st.sampled_from(["starter", "enterprise"])
STATUSES = st.sampled_from(["active", "suspended"])
ROLES = st.sampled_from(["owner", "billing_admin", "member"])
ANY_CHANGE = st.one_of(
    changes("organization.renamed", st.fixed_dictionaries({"name": st.sampled_from("ABC")})),
    changes("organization.plan_changed", st.fixed_dictionaries({"plan_tier": PLANS})),
    changes("organization.status_changed", st.fixed_dictionaries({"status": STATUSES})),
    changes(BILLING, st.sampled_from([{}, EUR, USD, EMAIL, OTHER_EMAIL, EUR | EMAIL, USD | OTHER_EMAIL])),
    changes("membership.added", st.fixed_dictionaries({"user_id": USERS, "role": ROLES})),
    changes("membership.removed", st.fixed_dictionaries({"user_id": USERS})),
    changes(ROLE_CHANGED, st.fixed_dictionaries({"user_id": USERS, "role": ROLES})),
)


@st.composite
def histories(draw: st.DrawFn) -> list[SentEvent]:
    """What one source may say about one organization, in the order in which it happened there.

    The organization is created first and is not deleted, no two times are equal, and only members get another role.
    """
    owner = draw(st.sampled_from([None, "u"]))
    history = [SentEvent(type="organization.created", minute=0, data={"name": "A", "owner_user_id": owner})]
    members = {owner}
    drawn: list[Change] = draw(st.lists(ANY_CHANGE, max_size=12))
    for minute, (drawn_type, data) in enumerate(drawn, 1):
        user_id = data.get("user_id")
        event_type = "membership.added" if drawn_type == ROLE_CHANGED and user_id not in members else drawn_type
        if event_type == "membership.added":
            members.add(user_id)
        if event_type == "membership.removed":
            members.discard(user_id)
        history.append(SentEvent(type=event_type, minute=minute, data=data))
    return history


def handled(events: Iterable[SentEvent]) -> MemoryInbox:
    inbox = MemoryInbox()
    for event in events:
        inbox.handle(replace(event))
    return inbox


@given(st.data())
def test_any_order_of_arrival_ends_like_the_order_of_the_times(data: st.DataObject) -> None:
    history = data.draw(histories())
    in_time = handled(history)
    assert {event.status for event in in_time.events} == {"applied"}
    shuffled = handled(data.draw(st.permutations(history)))
    assert shuffled.state == in_time.state
    assert {event.status for event in shuffled.events} <= {"applied", "superseded", "waiting"}


@pytest.mark.parametrize("order", list(itertools.permutations(range(5))))
def test_any_order_of_one_members_events_ends_like_the_order_of_their_times(order: tuple[int, ...]) -> None:
    member = {"user_id": "u"}
    history = [
        SentEvent(type="organization.created", minute=0, data={"name": "A"}),
        SentEvent(type="membership.added", minute=1, data=member),
        SentEvent(type="membership.removed", minute=2, data=member),
        SentEvent(type="membership.added", minute=3, data=member | {"role": "billing_admin"}),
        SentEvent(type=ROLE_CHANGED, minute=4, data=member | {"role": "owner"}),
    ]
    inbox = handled(history[index] for index in order)
    assert inbox.roles == {"u": "owner"}
    assert next(each.status for each in inbox.events if each.type == ROLE_CHANGED) == "applied"
