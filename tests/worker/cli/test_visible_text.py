"""What came from outside controls no terminal: a control character in it is shown as its code."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import update

from core.db.database import Database
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import Organization
from core.org_manager import OrgManager
from tests.support import console
from worker.cli.visible_text import visible, visible_json

# Clears the screen, writes the clipboard (OSC 52), turns the direction, ends the line as C1 does.
HOSTILE = "\x1b[2J\x1b]52;c;cm0gLXJm\x07\u202eemcA\u2066\x9b1m\u2028"
RAW = ("\x1b", "\x07", "\u202e", "\u2066", "\x9b", "\u2028")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An organization and a message from a time when such characters were accepted."""
    folder = console.prepare(tmp_path)
    manager = OrgManager(data_dir=folder / "data")
    org_id = manager.create_organization("Acme")
    manager.close()
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    with database.write() as session:
        session.execute(update(Organization).values(name=HOSTILE))
        session.add(
            ServiceEvent(
                source=f"/{HOSTILE}",
                id=HOSTILE,
                type=HOSTILE,
                subject=org_id,
                received_at=NOW,
                status="rejected",
                rejected_at=NOW,
                reason=HOSTILE,
                data={"name": HOSTILE},
            )
        )
    database.close()
    (folder / "organizations.json").write_text(json.dumps({org_id: {"id": org_id, "name": HOSTILE}}))
    (folder / "org_users.json").write_text(json.dumps({HOSTILE: [{"user_id": HOSTILE}]}))
    return folder


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
@pytest.mark.parametrize(
    "words",
    [
        ("orgs",),
        ("status", "org_"),
        ("history", "org_"),
        ("inbox", "list"),
        ("import", "."),
        ("status", HOSTILE),
    ],
    ids=["orgs", "status", "history", "inbox", "import", "mistake"],
)
def test_no_command_prints_a_control_character_raw(folder: Path, words: tuple[str, ...], *, as_json: bool) -> None:
    ran = console.run(folder, *words, *(["--json"] if as_json else []))
    for raw in RAW:
        assert raw not in ran.stdout + ran.stderr, (words, ran.stdout, ran.stderr)


@pytest.mark.parametrize("words", [("orgs",), ("inbox", "list"), ("status", HOSTILE)])
def test_it_is_shown_as_its_code(folder: Path, words: tuple[str, ...]) -> None:
    ran = console.run(folder, *words)
    assert "\\x1b" in ran.stdout + ran.stderr


def test_json_keeps_the_value(folder: Path) -> None:
    listed = json.loads(console.run(folder, "orgs", "--json").stdout)
    assert HOSTILE in str(listed) or HOSTILE in {each["name"] for each in listed["organizations"]}
    assert json.loads(visible_json(json.dumps(HOSTILE, ensure_ascii=False))) == HOSTILE


def test_a_usual_text_stays_as_it_is() -> None:
    for text in ("Acme & Söhne", "株式会社🚀", "two\nlines\tand a tab", "\u0646\u0627\u0645\u200c\u0647\u0627"):
        assert visible(text) == text
