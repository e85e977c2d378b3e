"""`billing-sync history`: what happened at 80 columns, an earlier state, and times that are no times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.org_manager import OrgManager
from tests.support import console


@pytest.fixture
def org_id(tmp_path: Path) -> str:
    console.prepare(tmp_path)
    manager = OrgManager(data_dir=tmp_path / "data")
    made = manager.create_organization("Acme", "professional")
    manager.update_org_plan(made, "enterprise")
    manager.close()
    return made


def test_changes_are_listed_newest_first_and_older_ones_by_the_command_that_is_shown(
    tmp_path: Path, org_id: str
) -> None:
    shown = console.run(tmp_path, "history", org_id, "--limit", "1", settings={"COLUMNS": "80"}).stdout
    assert "plan professional → enterprise, now" in shown
    assert "created on" not in shown
    command = shown.split("`billing-sync ")[1].split("`")[0]
    older = console.run(tmp_path, *command.split(), settings={"COLUMNS": "80"}).stdout
    assert "enterprise" not in older


def test_json_has_the_entries_and_an_earlier_state(tmp_path: Path, org_id: str) -> None:
    entries = json.loads(console.run(tmp_path, "history", org_id, "--json").stdout)["entries"]
    assert entries[0]["kind"] == "organization.plan_changed"
    at = entries[0]["at"]
    past = json.loads(console.run(tmp_path, "history", org_id, "--at", at, "--json").stdout)
    assert (past["plan_tier"], past["links"]) == ("enterprise", {"stripe": None, "lago": None})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--at", "yesterday"], "--at must be a time such as 2026-11-01T12:00Z, not yesterday"),
        (["--at", "2001-01-01"], "did not exist at 2001-01-01"),
        (["--at", "2026-11-01", "--before", "2026-11-01"], "choose one"),
    ],
)
def test_a_time_that_cannot_be_shown_is_one_sentence(
    tmp_path: Path, org_id: str, arguments: list[str], sentence: str
) -> None:
    refused = console.run(tmp_path, "history", org_id, *arguments)
    assert refused.returncode == 2
    assert sentence in " ".join(refused.stderr.split())
