"""Messages for the queue ``events``, generated from a seed: of every type, right and wrong in every way that we know.

Each says what must become of it (``Fate``). The ledger compares that with the rows.
"""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from core.common.json_types import Json
from core.inbox.event_schemas import MAX_SERVICE_EVENT_BYTES
from tests.generated.values import (
    TYPED_VALUES,
    encoded,
    moment,
    mutated,
    nested_text,
    odd_text,
    odd_value,
)

Fate = Literal["row", "rejected", "dropped", "row or dropped"]
"""``row``: it has a row, whatever its status. ``dropped``: it is no task, so only a line of the log tells of it."""

JSON_TYPE: Final = "application/json"
SOURCES: Final = ("/generated/signup", "/generated/admin", "/generated/" + "s" * 244, "urn:generated:ü")
DEEP_SOURCE: Final = "/generated/deep"
DEEP_HTTP_SOURCE: Final = "/http/deep"
ORGANIZATIONS: Final = 40
USERS: Final = ("ann", "auth0|bob", "auth0/carl x", "dora@example.com", "é" * 255, "team/ä b/9")
NAMES: Final = (
    "Acme",
    " Acme ",
    "Ümlaut & Co",
    "A" * 200,
    "A" * 201,
    "a\x00b",
    "a\nb",
    "\u200b",
    "a\x07",
    "=1+1",
    "<b>",
)
EMAILS: Final = ("a@acme.test", "A.B+c@acme.test", "no address", "a@b", "a@acme.test,b@acme.test", "ü@acme.test", "@.")
CURRENCIES: Final = ("USD", "EUR", "usd", "XXX", "US", "")
# The C functions of Python 3.11 share a limit of 1,000 levels with the stack, so all depths near it are tried.
DEPTHS: Final = (10, 100, 500, 900, 990, 1_100, 5_000)
DEPTHS_NEAR_THE_LIMIT: Final = range(780, 1_000)
SENSELESS_HEADERS: Final = (
    "eta",
    "timelimit",
    "retries",
    "headers",
    "id",
    "group",
    "shadow",
    "ignore_result",
    "stamps",
)
SENSELESS: Final[tuple[Json, ...]] = ("soon", 7, [], {}, None, -1, [7], {"a": None})


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedMessage:
    """``body`` lies in the queue as it is. ``is_deep``: where it is cut off depends on the stack of who reads it."""

    number: int
    kind: str
    fate: Fate
    body: bytes
    content_type: str = JSON_TYPE
    task: str | None = "events.receive"
    headers: Mapping[str, Json] = field(default_factory=dict)
    is_deep: bool = False


def deepened(chance: random.Random, event: dict[str, Any]) -> str:
    """Its text, with one field that is nested deeply."""
    depth = chance.choice(DEPTHS_NEAR_THE_LIMIT) if chance.random() < 0.8 else chance.choice(DEPTHS)
    place = "data" if chance.random() < 0.4 else chance.choice(("subject", "type", "time", "extra"))
    nested = nested_text(depth, as_object=place == "data" or chance.random() < 0.5)
    return json.dumps({**event, place: "(deep)"}).replace('"(deep)"', nested)


class MessageGenerator:
    """``others``: ids of existing organizations that somebody else changes, too."""

    def __init__(self, seed: int, tiers: Sequence[str], others: Sequence[str] = ()) -> None:
        self._chance = random.Random(f"messages {seed}")  # noqa: S311 - a seeded story, no secret
        self._tiers = tiers
        self._subjects = [f"org_generated_{seed}_{number}" for number in range(ORGANIZATIONS)] + list(others)
        self._sent: list[dict[str, Any]] = []
        self._number = 0
        self._now = datetime.now(UTC)

    def generate(self, count: int) -> Iterator[GeneratedMessage]:
        kinds: dict[Callable[[], GeneratedMessage], int] = {
            self._valid: 44,
            self._repeated: 14,
            self._mutated: 16,
            self._no_object: 4,
            self._wrong_arguments: 5,
            self._wrong_body: 2,
            self._no_task: 5,
            self._senseless_header: 3,
            self._senseless_embed: 3,
            self._deep: 3,
            self._large: 1,
        }
        for _ in range(count):
            self._number += 1
            (draw,) = self._chance.choices(list(kinds), list(kinds.values()))
            yield draw()

    # ------------------------------------------------------------------------------------------------ as one should

    def _event(self) -> dict[str, Any]:
        chance = self._chance
        kind, data = self._change()
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": self._new_id(),
            "source": chance.choice(SOURCES),
            "type": kind,
            "subject": chance.choice(self._subjects) if chance.random() < 0.93 else f"org_unknown_{self._number}",
            "data": data,
        }
        if chance.random() < 0.5:
            event["time"] = self._time()
        if chance.random() < 0.1:
            event["traceparent"] = odd_text(chance)
        return event

    def _new_id(self) -> str:
        """Mostly short; also of exactly the greatest length, and one longer, which is no id."""
        short = f"{self._chance.choice(('m', 'ü', 'a b/', '🙂'))}{self._number}"
        length = self._chance.choices((0, 255, 256), (94, 4, 2))[0]
        return short + "i" * max(0, length - len(short))

    def _time(self) -> str:
        if self._chance.random() < 0.15:
            return moment(self._chance)
        return (self._now + timedelta(seconds=self._chance.uniform(-90_000, 90_000))).isoformat()

    def _change(self) -> tuple[str, dict[str, Any]]:
        """A type with its data. Organizations are created seldom, since there are few."""
        chance = self._chance
        member = {"user_id": chance.choice(USERS)}
        role = chance.choice(("owner", "billing_admin", "member"))
        name = chance.choice(NAMES) if chance.random() < 0.4 else f"Generated {self._number}"
        changes: tuple[tuple[int, str, dict[str, Any]], ...] = (
            (3, "organization.created", self._some({"name": name, **self._billing(), "owner_user_id": USERS[0]})),
            (2, "organization.renamed", {"name": name}),
            (1, "organization.plan_changed", {"plan_tier": chance.choice((*self._tiers, "unknown", "\x1f"))}),
            (1, "organization.status_changed", {"status": chance.choice(("active", "active", "suspended", "deleted"))}),
            (2, "organization.billing_details_changed", self._some(self._billing())),
            (3, "membership.added", {**member, "role": role}),
            (2, "membership.removed", member),
            (3, "membership.role_changed", {**member, "role": role}),
        )
        ((_, kind, data),) = chance.choices(changes, [weight for weight, _, _ in changes])
        return kind, data

    def _billing(self) -> dict[str, Any]:
        return {"billing_email": self._chance.choice(EMAILS), "currency": self._chance.choice(CURRENCIES)}

    def _some(self, data: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in data.items() if name == "name" or self._chance.random() < 0.5}

    def _valid(self) -> GeneratedMessage:
        event = self._event()
        self._sent.append(event)
        as_keyword = self._chance.random() < 0.1
        body = encoded([[], {"event": event}, {}]) if as_keyword else encoded([[event], {}, {}])
        return self._message(str(event["type"]), "row", body)

    def _repeated(self) -> GeneratedMessage:
        """The same message again, or another one under its id."""
        if not self._sent:
            return self._valid()
        chance = self._chance
        event = dict(chance.choice(self._sent[-400:]))
        if chance.random() < 0.6:
            return self._message("repeat", "row", encoded([[event], {}, {}]))
        match chance.randrange(3):
            case 0:
                event["data"] = mutated(chance, event["data"])
            case 1:
                event["subject"] = chance.choice(self._subjects)
            case _:
                event["type"], event["data"] = self._change()
        return self._message("used id", "row", encoded([[event], {}, {}]))

    # ------------------------------------------------------------------------------------- as one should not, a task

    def _mutated(self) -> GeneratedMessage:
        """One place is wrong; sometimes several, or a value that kombu reads as one of another type."""
        event: Json = self._event()
        for _ in range(self._chance.choice((1, 1, 1, 3))):
            event = mutated(self._chance, event)
        if self._chance.random() < 0.08 and isinstance(event, dict):
            event[self._chance.choice(sorted(event) or ["id"])] = self._chance.choice(TYPED_VALUES)
        return self._message("mutated", "row", encoded([[event], {}, {}]))

    def _no_object(self) -> GeneratedMessage:
        value = self._chance.choice((odd_value(self._chance), [self._number], f"text {self._number}", self._number))
        fate: Fate = "row" if isinstance(value, dict) else "rejected"
        return self._message("no object", fate, encoded([[value], {}, {}]))

    def _wrong_arguments(self) -> GeneratedMessage:
        event = self._event()
        wrong: tuple[tuple[list[Any], dict[str, Any]], ...] = (
            ([], {}),
            ([event, event], {}),
            ([event, odd_value(self._chance)], {}),
            ([event], {"event": event}),
            ([], {"evnt": event}),
            ([event], {odd_text(self._chance): odd_value(self._chance)}),
            ([event] * 5, {"event": None}),
        )
        return self._message("wrong arguments", "rejected", encoded([*self._chance.choice(wrong), {}]))

    def _wrong_body(self) -> GeneratedMessage:
        """Three parts of wrong types, or what senders of Celery 3 sent."""
        event = self._event()
        wrong: tuple[Any, ...] = (
            {"args": [event], "kwargs": {}},
            {"args": [event]},
            {"args": event, "kwargs": [self._number]},
            *([event, {}, {}], [[event], [], {}], [[event], "b", {}], [[event], None, {}], [None, None, None]),
            *("abc", [7, 7, 7], [[event], {}, None], [[event], {}, 7], [{}, [], {}], [[event], [["event", 1]], {}]),
        )
        return self._message("wrong body", "row or dropped", encoded(self._chance.choice(wrong)))

    def _senseless_header(self) -> GeneratedMessage:
        headers = {self._chance.choice(SENSELESS_HEADERS): self._chance.choice(SENSELESS)}
        return self._message("header", "row or dropped", encoded([[self._event()], {}, {}]), headers=headers)

    def _senseless_embed(self) -> GeneratedMessage:
        """What a task is followed by, without sense."""
        name = self._chance.choice(("callbacks", "errbacks", "chain", "chord", "odd"))
        body = encoded([[self._event()], {}, {name: self._chance.choice(SENSELESS)}])
        return self._message("embed", "row or dropped", body)

    def _deep(self) -> GeneratedMessage:
        event = {**self._event(), "source": DEEP_SOURCE, "id": f"deep-{self._number}"}
        body = f"[[{deepened(self._chance, event)}], {{}}, {{}}]".encode()
        return self._message("deep", "row or dropped", body, is_deep=True)

    def _large(self) -> GeneratedMessage:
        """Around the limit of a message, and far above it."""
        event = self._event()
        size = self._chance.choice((MAX_SERVICE_EVENT_BYTES - 600, MAX_SERVICE_EVENT_BYTES, 2**20, 3 * 2**20))
        event["data"] = {**event["data"], "note": "x" * size}
        if self._chance.random() < 0.3:
            event = {**event, "note": event["data"].pop("note")}
        return self._message("large", "row", encoded([[event], {}, {}]))

    # --------------------------------------------------------------------------------------------------- no task at all

    def _no_task(self) -> GeneratedMessage:
        chance = self._chance
        right = encoded([[self._event()], {}, {}])
        kinds: tuple[tuple[bytes, dict[str, Any]], ...] = (
            (right[: chance.randrange(1, len(right))], {}),
            (b"\xff\xfe" + right, {}),
            (b"[" * 200_000 + b"]" * 200_000, {}),
            (b'[[{"id": ' + b"9" * 5_000 + b"}], {}, {}]", {}),
            (b'[[{"__type__": "unknown", "__value__": 1}], {}, {}]', {}),
            (b'[[{"__type__": "datetime", "__value__": 7}], {}, {}]', {}),
            (right, {"content_type": "text/made-up"}),
            (pickle.dumps([[1], {}, {}]), {"content_type": "application/x-python-serialize"}),
            (right, {"task": "events.recieve"}),
            (right, {"task": None}),
            (encoded("text"), {}),
            (b"7", {}),
            (b"", {}),
        )
        body, more = chance.choice(kinds)
        return self._message("no task", "dropped", body, **more)

    def _message(self, kind: str, fate: Fate, body: bytes, **more: Any) -> GeneratedMessage:  # noqa: ANN401 - its fields
        return GeneratedMessage(number=self._number, kind=kind, fate=fate, body=body, **more)
