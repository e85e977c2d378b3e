"""Which status a service event gets, and what of it is still news: rules over plain data, without a database.

The first row that fits decides:

| the event                                                       | status     | what is applied |
|-----------------------------------------------------------------|------------|-----------------|
| is dated more than one day in the future                        | rejected   | nothing         |
| creates an organization that exists with a different name       | rejected   | nothing         |
| creates an organization that exists with this name              | applied    | nothing         |
| creates an organization that does not exist                     | applied    | all of it       |
| is about an organization that does not exist, and 500 wait      | rejected   | nothing         |
| is about an organization that does not exist                    | waiting    | nothing         |
| has no part that is still news                                  | superseded | nothing         |
| changes the role of a user who is not a member, and 500 wait    | rejected   | nothing         |
| changes the role of a user who is not a member                  | waiting    | nothing         |
| takes the last owner away, and 500 wait                         | rejected   | nothing         |
| takes the last owner away                                       | waiting    | nothing         |
| is any other                                                    | applied    | what is news    |

A time that is more than five minutes after the moment at which we received the event counts as those five minutes after
it. A sender whose clock is ahead thereby makes its later events look superseded for five minutes at most.

An event that would be applied and is invalid, for example because its plan is unknown, is rejected.

News is what no later event has changed. An event is later than another one if it was applied or is being handled, has
the same source, organization and type, and has a later time. The membership types count as one type. An event without a
time is neither later nor earlier than any other. Billing details are compared by field, members by user. Of each other
type the last event is the only news.

A waiting event is decided again, by the rows from "has no part" on, when an event about its organization is handled,
after an import, and when somebody becomes an owner in another way. Waiting events are decided in the order of their
times. One whose member or next owner is still missing continues to wait, whatever their number. One that waits for the
next owner is superseded by the next message from the same source about the same member, unless both have times. A
rejected event is decided again when an operator replays it; then also an event that has no time is later than it, if it
was received later. All other statuses are final.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from core.db.models.inbox import ServiceEventStatus
from core.inbox.event_schemas import (
    BillingDetailsChangedData,
    MembershipAddedData,
    MembershipRemovedData,
    MembershipRoleChangedData,
    OrganizationCreatedData,
    ServiceEventData,
)

# An event dated further ahead is a mistake of its sender, and no clock that is a little fast.
MAX_EVENT_CLOCK_SKEW: Final = timedelta(days=1)
MAX_ORDERED_AHEAD: Final = timedelta(minutes=5)
MAX_WAITING_EVENTS: Final = 500
_MEMBERSHIP_PREFIX: Final = "membership."


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``news``: what of the event is to be applied; ``None``: nothing."""

    status: ServiceEventStatus
    reason: str | None = None
    news: ServiceEventData | None = None


def decide_time(occurred_at: datetime | None, now: datetime) -> Decision | None:
    """``None``: the event's time is acceptable, and the other rules decide."""
    if occurred_at is None or occurred_at <= now + MAX_EVENT_CLOCK_SKEW:
        return None
    reason = "time: more than one day in the future; send the time at which the change happened"
    return Decision(status="rejected", reason=reason)


def ordered_time(occurred_at: datetime | None, received_at: datetime) -> datetime | None:
    """The time by which an event is compared with others, and which is stored."""
    return None if occurred_at is None else min(occurred_at, received_at + MAX_ORDERED_AHEAD)


def decide_creation(org_id: str, data: OrganizationCreatedData, existing_name: str | None) -> Decision:
    """``existing_name``: the name of the organization that has this id already; ``None``: there is none."""
    if existing_name is None:
        return Decision(status="applied", news=data)
    if existing_name == data.name.strip():
        return Decision(status="applied", reason="already existed")
    return Decision(status="rejected", reason=f"subject: {org_id} already exists with a different name")


def decide_missing_subject(reason: str, waiting_count: int) -> Decision:
    """``waiting_count``: how many events already wait for this organization or its members."""
    if waiting_count < MAX_WAITING_EVENTS:
        return Decision(status="waiting", reason=reason)
    return Decision(status="rejected", reason=f"{reason}, and {MAX_WAITING_EVENTS} events already wait for it")


def decide_repeated_member() -> Decision:
    """Of an event that waits for the next owner, when its source has sent a newer one about the same member."""
    return Decision(status="superseded", reason="data.user_id: the same source has since sent another message about it")


def decide_change(data: ServiceEventData, later: Sequence[Mapping[str, Any]]) -> Decision:
    """``later``: the data of all later events, in any order."""
    news = _still_news(data, later)
    if news is None:
        return Decision(status="superseded", reason="time: the same source has already sent a later event of this type")
    return Decision(status="applied", news=news)


def compared_type_prefix(event_type: str) -> str | None:
    """With what the types begin that are compared with this one; ``None``: it is compared with itself only.

    An addition, a removal and a change of role supersede each other.
    """
    return _MEMBERSHIP_PREFIX if event_type.startswith(_MEMBERSHIP_PREFIX) else None


def _still_news(data: ServiceEventData, later: Sequence[Mapping[str, Any]]) -> ServiceEventData | None:
    match data:
        case BillingDetailsChangedData():
            return _unchanged_billing_fields(data, later)
        case MembershipAddedData() | MembershipRemovedData() | MembershipRoleChangedData():
            superseded = any(each.get("user_id") == data.user_id for each in later)
        case _:
            superseded = bool(later)
    return None if superseded else data


def _unchanged_billing_fields(
    data: BillingDetailsChangedData, later: Sequence[Mapping[str, Any]]
) -> BillingDetailsChangedData | None:
    """The fields that no later event has changed since."""
    later_fields = {field for each in later for field, value in each.items() if value is not None}
    own_fields = {field for field, value in data if value is not None}
    return data.model_copy(update=dict.fromkeys(later_fields)) if not later or own_fields - later_fields else None
