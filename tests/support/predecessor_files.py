"""Files in the format of the predecessor store, and short forms of what was read from them."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeAlias

from core.predecessor.files import FileFinding, OldMember, OldOrganization

PREDECESSOR = Path(__file__).parent.parent / "data" / "predecessor"
NAMES = [
    "Acme",
    "Überwald",
    "東京データ",
    "O'Neil & Söhne",
    "شركة النور",
    'The "Quoted" {Co}',
    "[x], Łódź: \\",
    "\U0001f99a",
]

Text: TypeAlias = dict[str, object]


def organization(number: int, **changes: object) -> Text:
    fields: Text = {
        "id": f"org_{number:08d}-aaaa",
        "name": f"{NAMES[number % len(NAMES)]} {number}",
        "created_at": f"2025-03-04 05:06:{number % 60:02}.{number + 1:06}",
        "plan_tier": "starter",
        "lago_customer_id": None,
        "stripe_customer_id": f"cus_{number}" if number % 3 == 0 else None,
        "status": "active",
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def member(number: int, user: int, **changes: object) -> Text:
    fields: Text = {
        "org_id": f"org_{number:08d}-aaaa",
        "user_id": f"user_{user}",
        "role": "owner" if user == 0 else "member",
        "joined_at": f"2025-03-04 05:06:07.{user + 1:06}",
    }
    return {name: value for name, value in (fields | changes).items() if value is not ...}


def organizations_text(records: Iterable[Text], indent: int | None = 2) -> bytes:
    return json.dumps({str(record["id"]): record for record in records}, indent=indent).encode()


def members_text(lists: dict[str, list[Text]], indent: int | None = 2) -> bytes:
    return json.dumps(lists, indent=indent).encode()


ReadOrganizations: TypeAlias = Callable[[bytes], list[OldOrganization | FileFinding]]
ReadMembers: TypeAlias = Callable[[bytes], list[OldMember | FileFinding]]


def findings(items: Iterable[object]) -> list[tuple[str, str, int, str | None]]:
    return [(i.kind, i.reason, i.position.line, i.subject) for i in items if isinstance(i, FileFinding)]


def ids(items: Iterable[object]) -> list[str]:
    return [item.id for item in items if isinstance(item, OldOrganization)]


def users(items: Iterable[object]) -> list[tuple[str, str]]:
    return [(item.org_id, item.user_id) for item in items if isinstance(item, OldMember)]


A, B, C = organization(1), organization(2), organization(3)
A_ID, B_ID, C_ID = "org_00000001-aaaa", "org_00000002-aaaa", "org_00000003-aaaa"
