"""Files of any length in flat memory; no border of the window shows."""

import tracemalloc
from pathlib import Path

import pytest

from core.predecessor.files import OldMember, read_members
from tests.support.predecessor_files import (
    A_ID,
    B_ID,
    C_ID,
    A,
    B,
    C,
    ReadMembers,
    ReadOrganizations,
    findings,
    ids,
    member,
    members_text,
    organization,
    organizations_text,
    users,
)


def test_damage_longer_than_the_window_is_one_loss_and_what_follows_is_read(organizations: ReadOrganizations) -> None:
    garbage = (bytes(range(256)) * 12_000).translate(None, b'{}[]",:\\')
    text = organizations_text([A, B, C])
    at = text.index(f'"{B_ID}"'.encode())
    items = organizations(text[:at] + garbage + text[at:])
    assert ids(items) == [A_ID, B_ID, C_ID]
    assert [(f[0], f[1]) for f in findings(items)] == [("loss", f"{len(garbage)} bytes outside any record")]


@pytest.mark.slow
def test_records_across_every_border_of_the_window_come_out_and_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "org_users.json"
    numbers = range(4000)
    path.write_bytes(members_text({f"org_{n:08d}-aaaa": [member(n, u) for u in range(10)] for n in numbers}))
    told: list[int] = []
    tracemalloc.start()
    try:
        count = sum(isinstance(item, OldMember) for item in read_members(path, told.append))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 40_000
    assert sum(told) == path.stat().st_size > 5_000_000
    assert peak < 6_000_000


@pytest.mark.slow
@pytest.mark.parametrize("backwards", [False, True])
def test_no_border_of_the_window_cuts_a_key_or_a_record(
    organizations: ReadOrganizations, members: ReadMembers, *, backwards: bool
) -> None:
    padding = [organization(n, name="x" * 195_000) for n in range(6)]  # the first border stands 6 kB behind four
    small = [organization(n, plan_tier="p" * 40) for n in range(6, 46)]
    for shift in range(0, 330, 3):
        records = [organization(99, plan_tier="p" * shift), *padding[:4], *small, *padding[4:]]
        laid_out = [dict(reversed(record.items())) if backwards else record for record in records]
        items = organizations(organizations_text(laid_out, None))
        assert len(ids(items)) == len(records)
        assert {reason[:10] for _, reason, *_ in findings(items)} == {"the name i"}
        lists = {f"org_{n:08d}-aaaa": [member(n, u) for u in range(n % 3)] for n in range(1, 90)}
        lists["org_last"] = [member(0, n, org_id="org_last", role="x" * 195_000) for n in range(2)]
        first = [member(0, n, role="x" * 195_000) for n in range(4)] + [member(0, 4, role="x" * shift)]
        again = members(members_text({"org_00000000-aaaa": first} | lists, None))
        assert len(users(again)) == 5 + 90 + 2
        assert findings(again) == []
