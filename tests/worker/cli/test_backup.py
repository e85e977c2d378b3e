"""`backup`: a command that says what it took, and one sentence where it cannot."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.backup import backups
from core.db.database import Database
from core.org_manager import OrgManager
from tests.support import console


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepared = console.prepare(tmp_path)
    manager = OrgManager(data_dir=prepared / "data")
    manager.create_organization("Acme", plan_tier="starter")
    manager.close()
    return prepared


def test_it_says_what_it_took(folder: Path) -> None:
    shown = console.run(folder, "backup", "--json")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    assert (document["manifest"]["rows"]["organizations"], document["deleted"]) == (1, [])
    assert Path(document["path"]).parent == Path("data/backups")
    assert (folder / document["path"]).is_file()


def test_it_takes_the_folder_and_the_age_that_are_given(folder: Path) -> None:
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    old = backups.take(database, folder / "elsewhere", datetime(2020, 1, 1, tzinfo=UTC)).path
    database.close()
    foreign = old.with_name("billing-sync-20200102T000000Z.sqlite3")
    foreign.write_bytes(old.read_bytes())
    of_another = backups.read_manifest(old).model_copy(update={"database_id": "another", "file": foreign.name})
    backups.manifest_path(foreign).write_text(of_another.model_dump_json())
    shown = console.run(folder, "backup", "--to", "elsewhere", "--keep", "30d")
    assert "1 organizations, schema " in " ".join(shown.stdout.split())
    assert f"Deleted, because they are older than 30d: {old.name}." in " ".join(shown.stdout.split())
    assert (old.exists(), backups.manifest_path(old).exists(), foreign.exists()) == (False, False, True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--keep", "a month"), "--keep: 'a month' is no time: write days as 30d, hours as 36h or weeks as 8w"),
        (("--to", "plans.toml"), "plans.toml is no folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(folder: Path, words: tuple[str, ...], sentence: str) -> None:
    shown = console.run(folder, "backup", *words)
    assert shown.returncode != 0
    assert sentence in " ".join(shown.stderr.split())
    assert "Traceback" not in shown.stderr


def test_doctor_shows_the_newest(folder: Path) -> None:
    def found(**settings: str) -> dict[str, str]:
        shown = console.run(folder, "doctor", "--json", settings=settings)
        (subject,) = [each for each in json.loads(shown.stdout)["subjects"] if each["subject"] == "backups"]
        (finding,) = subject["findings"]
        return {"code": finding["code"], "level": finding["level"]}

    assert found() == {"code": "no_backup", "level": "not_set"}
    assert found(BACKUP_DIR="elsewhere") == {"code": "no_backup", "level": "warning"}
    console.run(folder, "backup")
    assert found(BACKUP_DIR="elsewhere") == {"code": "backup", "level": "ok"}
    assert found(BACKUP_DIR="elsewhere", BACKUP_EVERY_HOURS="0.0000001") == {"code": "backup_old", "level": "error"}
