"""What somebody runs who has customers already: it fits a small screen, meets nothing of theirs, and leaves nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.support import console
from tests.worker.test_demo import LIVE

pytestmark = pytest.mark.processes


def test_the_demo_adopts_manages_and_says_what_was_left_and_why(tmp_path: Path) -> None:
    shown = console.run(tmp_path, "demo-adopt", settings={**LIVE, "COLUMNS": "80", "MANAGEMENT": "manage"})
    assert shown.returncode == 0, shown.stderr
    for words in (
        "$ billing-sync adopt discover --out adoption.csv",
        "$ billing-sync adopt apply adoption.csv --limit 10 --yes",
        "What was left, and why",
        "subscriptions in Stripe got our metadata",
        "Nothing else was written to what was there",
    ):
        assert words in " ".join(shown.stdout.split())
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert [line for line in shown.stderr.splitlines() if not line.startswith("· ")] == []
    assert "0 requests until now could write" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    with console.running(tmp_path, "demo-adopt", settings={"TMPDIR": str(tmp_path / "temporary")}) as demo:
        demo.wait_for_output("imported from the organization manager")
        demo.stop(signal.SIGINT)
        assert "Traceback" not in demo.output
    assert list((tmp_path / "temporary").iterdir()) == []
