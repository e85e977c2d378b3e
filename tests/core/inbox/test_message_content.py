"""A repeat has the content of the first, whatever a database does to its numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.inbox import message_content


def nested(depth: int) -> Any:  # noqa: ANN401 - any JSON value
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1e23}, {"a": 10**23}),
        ({"a": -0.0}, {"a": 0}),
        ({"a": 10**400}, {"a": 10**400}),
        (None, None),
        (nested(50_000), nested(50_000)),
    ],
)
def test_the_same_json_is_the_same(one: object, other: object) -> None:
    assert message_content.is_same_json(one, other)
    assert message_content.is_same_json(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 0}, {"a": False}),
        ({"a": 1.0}, {"a": True}),
        ({"a": 1}, {"a": "1"}),
        ({"a": None}, {}),
        ({"a": None}, {"a": False}),
        ({"a": []}, {"a": {}}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": [1]}, {"a": [1, 1]}),
        ({"a": 1.5}, {"a": 10**400}),
        ({"a": 1.5}, {"a": "1.5"}),
        ({}, None),
    ],
)
def test_other_json_is_other(one: object, other: object) -> None:
    assert not message_content.is_same_json(one, other)
    assert not message_content.is_same_json(other, one)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_everything_is_the_same_as_itself(value: object) -> None:
    assert message_content.is_same_json(value, value)
