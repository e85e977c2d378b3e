"""Values that no sender should send, drawn from a seeded generator: of every JSON type, and at the ends of each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Final

from core.common.json_types import Json

LARGEST_TEXT: Final = 70_000
ODD_TEXTS: Final = (
    *("", " ", "0", "null", "true", "[]", "{}", "\x00", "a\x00b", "\ud800", "x\udfffy", "\r\nX-Injected: 1", "\t"),
    *("\u202eevil", "\u200b", "é" * 130, "\U0001f4a5" * 60, "' OR '1'='1", "%00", "%", "../../etc/passwd", "\\u0000"),
    *("a" * 255, "a" * 256, "a" * 513, "NaN", "Infinity", "1e999", "-1", "org_", "org_" + "a" * 61, "\u017f", "\u0130"),
    *("\x7f", "\x1b[31m", "\u2028", "\ufeff", "\uffff", "{{7*7}}", "${x}", "<script>", "auth0/a b", " a ", "a\n"),
)
MOMENTS: Final = (
    *("9999-12-31T23:59:59Z", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999999+00:00", "0001-01-01T00:00:00Z"),
    *("0001-01-01T00:00:00+14:00", "1969-12-31T23:59:59Z", "2016-12-31T23:59:60Z", "2026-02-30T00:00:00Z", "now"),
    *("2026-11-23T12:00:00", "2026-11-23", "20261123T120000Z", "2026-11-23T24:00:00Z", "2026-11-23t12:00:00z", "0"),
    *("2026-11-23T12:00:00+23:59", "2026-11-23T12:00:00.1234567Z", "2300-01-01T00:00:00Z", "-0001-01-01T00:00:00Z"),
)
ODD_NUMBERS: Final[tuple[Json, ...]] = (
    *(0, -1, 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.1, -0.0, 1e23, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf"), 253402300800, 1e20),
)
# kombu reads an object with these two keys as a value of another type.
TYPED_VALUES: Final[tuple[Json, ...]] = (
    {"__type__": "datetime", "__value__": "2026-11-23T12:00:00+00:00"},
    {"__type__": "uuid", "__value__": {"hex": "0" * 32, "version": 4}},
    {"__type__": "decimal", "__value__": "NaN"},
    {"__type__": "bytes", "__value__": "AAAA"},
)


def odd_text(chance: random.Random) -> str:
    if chance.random() < 0.02:
        return "x" * LARGEST_TEXT
    return chance.choice(MOMENTS if chance.random() < 0.2 else ODD_TEXTS)


def moment(chance: random.Random) -> str:
    return chance.choice(MOMENTS)


def odd_value(chance: random.Random, depth: int = 3) -> Json:
    """Of any type, nested ``depth`` levels at most."""
    makers: list[Callable[[], Json]] = [
        lambda: None,
        lambda: chance.random() < 0.5,
        lambda: chance.choice(ODD_NUMBERS),
        lambda: odd_text(chance),
        lambda: chance.choice(ODD_NUMBERS),
        lambda: odd_text(chance),
    ]
    if depth > 0:
        makers += [
            lambda: [odd_value(chance, depth - 1) for _ in range(chance.randrange(4))],
            lambda: {odd_text(chance): odd_value(chance, depth - 1) for _ in range(chance.randrange(4))},
        ]
    return chance.choice(makers)()


def nested_text(depth: int, *, as_object: bool) -> str:
    """JSON text of this depth; written without ``json``, which refuses what is too deep."""
    return '{"a":' * depth + "1" + "}" * depth if as_object else "[" * depth + "]" * depth


def mutated(chance: random.Random, value: Json) -> Json:
    """A copy in which one place has another value, is missing, or is new."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        copy = dict(value)
        name = chance.choice(sorted(copy))
        match chance.randrange(6):
            case 0:
                del copy[name]
            case 1:
                copy[odd_text(chance)] = odd_value(chance)
            case 2:
                copy[name] = mutated(chance, copy[name])
            case _:
                copy[name] = odd_value(chance)
        return copy
    if isinstance(value, list) and value and chance.random() < 0.7:
        items = list(value)
        items[chance.randrange(len(items))] = odd_value(chance)
        return items
    return odd_value(chance)


def encoded(value: object) -> bytes:
    """As Python's senders write JSON: also NaN, and every unusual character as an escape."""
    return json.dumps(value).encode()
