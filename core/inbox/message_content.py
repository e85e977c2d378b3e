"""The content of a message: its type, its subject and its data. A repeat of a message has the same content.

Data is compared as JSON: the order of keys does not matter, 1 and 1.0 are the same, and 1 and true are not.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from core.db.models.inbox import ServiceEvent


def is_same(stored: ServiceEvent, sent: ServiceEvent) -> bool:
    """Whether the second may be a repeat of the first. Both have no data where it could not be stored."""
    if (stored.type, stored.subject) != (sent.type, sent.subject):
        return False
    if stored.data is None and stored.status != "rejected":
        return True  # it was applied with data that is not stored any more
    return is_same_json(stored.data, sent.data)


def digest(sent: ServiceEvent) -> str:
    """Identifies the message among those that one source sends under one id."""
    content = [sent.id, sent.type, sent.subject, sent.data]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_same_json(one: Any, other: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Without recursion, since a sender may nest deeply."""
    pairs = [(one, other)]
    while pairs:
        left, right = pairs.pop()
        if isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pairs += [(value, right[key]) for key, value in left.items()]
        elif isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs += zip(left, right, strict=True)
        elif not _is_same_scalar(left, right):
            return False
    return True


def _is_same_scalar(left: Any, right: Any) -> bool:  # noqa: ANN401 - any JSON value
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, float) or isinstance(right, float):
        return _as_float(left) is not None and _as_float(left) == _as_float(right)
    return bool(left == right)


def _as_float(value: Any) -> float | None:  # noqa: ANN401 - any JSON value
    """As Postgres returns a number: it has no exponents, so 1e23 comes back as a whole number."""
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
