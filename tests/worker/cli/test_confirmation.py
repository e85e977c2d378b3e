"""An operator at a terminal confirms what a command says; only then it is done."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from core.org_manager import OrgManager
from tests.support import console

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(("typed", "code", "tier"), [("y", 0, "enterprise"), ("n", 1, "starter"), ("", 1, "starter")])
def test_a_change_is_made_only_after_a_yes_in_a_terminal(tmp_path: Path, typed: str, code: int, tier: str) -> None:
    folder = console.prepare(tmp_path)
    manager = OrgManager(data_dir=str(folder / "data"))
    org_id = manager.create_organization("Acme", "starter")
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{typed}\n".encode())
        ended = subprocess.run(
            [console.SCRIPT, "set", "Acme", "--plan", "enterprise"],
            cwd=folder,
            env=console.environment({}),
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert ended.returncode == code, ended.stderr
    assert "plan: enterprise applies immediately." in ended.stdout
    assert "Do this? [y/N]" in ended.stdout
    assert ("nothing was changed" in ended.stderr) == (code == 1)
    changed = manager.get_org(org_id)
    assert changed is not None
    assert changed.plan_tier == tier
    manager.close()


ASKS = "from worker.cli import confirmation; confirmation.confirm(['it changes'], yes=False, on_stderr=True)"


@pytest.mark.parametrize(("typed", "code"), [("y", 0), ("n", 1)])
def test_beside_json_everything_that_is_asked_is_on_standard_error(typed: str, code: int) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, f"{typed}\n".encode())
        ended = subprocess.run(
            [sys.executable, "-c", ASKS], stdin=theirs, capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith("it changes\nDo this? [y/N]:")
