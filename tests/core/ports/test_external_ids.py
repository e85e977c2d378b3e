"""Which external ids a request to Lago can name for certain."""

from __future__ import annotations

import pytest

from core.ports.external_ids import MAX_EXTERNAL_ID_LENGTH, ExternalIds, unaddressable_reason


@pytest.mark.parametrize(
    "external_id", ["acme", "acme / 7", "né o?#50%", "株式会社", "gid:x~1", "a" * MAX_EXTERNAL_ID_LENGTH]
)
def test_what_the_address_can_carry_is_addressable(external_id: str) -> None:
    assert unaddressable_reason(external_id) is None


@pytest.mark.parametrize(
    ("external_id", "reason"),
    [
        ("acme.com", "a dot"),
        (".", "a dot"),
        (" acme", "a blank"),
        ("acme\n", "a blank"),
        ("ac\x00me", "cannot be printed"),
        ("ac\ud800me", "cannot be printed"),
        ("", "characters long"),
        ("a" * (MAX_EXTERNAL_ID_LENGTH + 1), "characters long"),
    ],
)
def test_what_could_name_another_object_is_not(external_id: str, reason: str) -> None:
    assert reason in str(unaddressable_reason(external_id))


def test_without_an_external_id_it_is_the_organizations_id() -> None:
    assert ExternalIds().customer_of("org_1") == ExternalIds().subscription_of("org_1") == "org_1"
