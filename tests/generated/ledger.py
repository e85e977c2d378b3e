"""Which row each message must have, computed from what was sent, and compared with the rows that are there.

A message is stored under its source and id. One that has no id, or none that fits, is stored under a digest of what
was sent. Another message under a used id has a row of its own, which names that id. The same message again has none:
it is counted as repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from kombu.utils import json as kombu_json
from sqlalchemy import Text, cast, select

from core.db.database import Database
from core.db.models.inbox import ServiceEvent
from tests.generated.messages import DEEP_HTTP_SOURCE, DEEP_SOURCE, GeneratedMessage

NO_SOURCE: Final = "(no source)"
LONGEST_KEY: Final = 255  # characters
LARGEST_DATA: Final = 64 * 1024  # bytes
STATUSES: Final = ("applied", "rejected", "waiting", "superseded")
SHOWN_BYTES: Final = 400


class EventKey(NamedTuple):
    """``id``: as it was sent, also where the row has a digest instead."""

    source: str
    id: str


@dataclass(frozen=True, slots=True)
class StoredEvent:
    content: str
    status: str
    from_queue: bool


@dataclass(kw_only=True)
class MessageAccount:
    """What became of the messages. ``problems`` is empty if each has its row, and no row is one that nobody sent."""

    messages: int
    statuses: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    dropped: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def line(self) -> str:
        counts = [f"{self.statuses[status]:,} {status}" for status in STATUSES]
        return ", ".join((*counts, f"{self.repeated:,} repeated", f"{self.dropped:,} no task and dropped"))


def stored_events(database: Database) -> dict[EventKey, list[StoredEvent]]:
    """All rows. Those of the deep sources are not opened: nobody can say on which stack that is possible."""
    columns = (ServiceEvent.source, ServiceEvent.id, ServiceEvent.sent_id, ServiceEvent.type, ServiceEvent.subject)
    rows: defaultdict[EventKey, list[StoredEvent]] = defaultdict(list)
    with database.read() as session:
        for source, row_id, sent_id, kind, subject, status, key_id, data in session.execute(
            select(*columns, ServiceEvent.status, ServiceEvent.key_id, cast(ServiceEvent.data, Text))
        ):
            content = (
                "" if source in {DEEP_SOURCE, DEEP_HTTP_SOURCE} else _content(kind, subject, json.loads(data or "null"))
            )
            rows[EventKey(source, sent_id or row_id)].append(StoredEvent(content, status, key_id is None))
    return dict(rows)


def account(
    messages: Iterable[GeneratedMessage], rows: Mapping[EventKey, list[StoredEvent]], dropped_lines: int
) -> MessageAccount:
    """``dropped_lines``: how many lines of the log say that a message was dropped."""
    all_messages = list(messages)
    found = MessageAccount(messages=len(all_messages))
    sent: defaultdict[EventKey, dict[str, list[GeneratedMessage]]] = defaultdict(dict)
    for message in all_messages:
        if message.fate == "dropped":
            found.dropped += 1
            continue
        key, content = expected_row(message)
        if message.fate == "row or dropped" and key not in rows:
            found.dropped += 1
            continue
        sent[key].setdefault(content, []).append(message)
    for key, contents in sent.items():
        _compare(found, contents, rows.get(key, []))
    _add_unsent(found, sent.keys(), rows)
    if found.dropped != dropped_lines:
        found.problems.append(f"{found.dropped} messages have no row and are no task, but {dropped_lines} were dropped")
    counted = found.statuses.total() + found.repeated + found.dropped + found.lost
    if counted != found.messages:
        found.problems.append(f"{found.messages} messages were sent, but {counted} are accounted for")
    return found


def expected_row(message: GeneratedMessage) -> tuple[EventKey, str]:
    """The key and the content of its row."""
    if message.is_deep:
        return EventKey(DEEP_SOURCE, f"deep-{message.number}"), ""
    raw = _sent_value(message)
    fields: dict[str, Any] = raw if isinstance(raw, dict) else {}
    source = _storable_text(fields.get("source")) or NO_SOURCE
    event_id = _storable_text(fields.get("id")) or _digest(raw)
    data = fields.get("data")
    stored = data if isinstance(data, dict) and _is_storable(data) else None
    content = _content(_storable_text(fields.get("type")), _storable_text(fields.get("subject")), stored)
    return EventKey(source, event_id), content


def _sent_value(message: GeneratedMessage) -> object:
    """The event, or all arguments if they are not one event. A body of another form may be read as it can be."""
    body = kombu_json.loads(message.body.decode())
    args, kwargs = (body.get("args"), body.get("kwargs", {})) if isinstance(body, dict) else list(body)[:2]
    if not isinstance(args, list | dict | str) or not isinstance(kwargs, dict):
        return f"message {message.number} has no arguments"
    events = [*args, *kwargs.values()] if kwargs.keys() <= {"event"} else []
    return events[0] if len(events) == 1 else [list(args), kwargs]


def _compare(found: MessageAccount, contents: dict[str, list[GeneratedMessage]], rows: list[StoredEvent]) -> None:
    """All messages under one id: each content has one row, whatever the order in which they arrived."""
    by_content = {row.content: row for row in rows}
    for content, messages in contents.items():
        row = by_content.get(content)
        if row is None:
            found.lost += len(messages)
            found.problems += [f"lost: {_shown(message)}" for message in messages]
            continue
        found.statuses[row.status] += 1
        found.repeated += len(messages) - 1
        if any(message.fate == "rejected" for message in messages) and row.status != "rejected":
            found.problems.append(f"{row.status}, not rejected: {_shown(messages[0])}")


def _add_unsent(found: MessageAccount, sent: Iterable[EventKey], rows: Mapping[EventKey, list[StoredEvent]]) -> None:
    known = set(sent)
    for key, stored in rows.items():
        if key not in known and any(row.from_queue for row in stored):
            found.problems.append(f"a row that nobody sent: {key}")


def _shown(message: GeneratedMessage) -> str:
    return f"message {message.number} ({message.kind}): {message.body[:SHOWN_BYTES]!r}"


def _content(kind: str | None, subject: str | None, data: object) -> str:
    return json.dumps([kind, subject, _canonical(data)], sort_keys=True)


def _canonical(value: object) -> object:
    """JSON that is equal where its text is: 1 and 1.0 are one number, and 1 and true are not."""
    if isinstance(value, dict):
        return {name: _canonical(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_canonical(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return str(value)
    return 0.0 if value == 0 and isinstance(value, float) else value


def _storable_text(value: object) -> str | None:
    fits = isinstance(value, str) and 0 < len(value) <= LONGEST_KEY and value.isprintable()
    return str(value) if fits else None


def _is_storable(value: object) -> bool:
    """What both databases can store: plain JSON of at most 64 KB without NUL and lone surrogates."""
    try:
        escaped = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return len(escaped) <= LARGEST_DATA and all(_is_storable_text(text) for text in _texts(value))


def _is_storable_text(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield name
            yield from _texts(each)


def _digest(raw: object) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True, default=str).encode()).hexdigest()
