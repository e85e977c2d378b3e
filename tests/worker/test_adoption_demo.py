"""What somebody runs who has customers already: it fits a small screen, meets nothing of theirs, and leaves nothing."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.support import console
from tests.support.deployment import free_port
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
    assert re.search(r"[0-9]+ for example: it may be org_", " ".join(shown.stdout.split()))
    assert "because a customer whose sides nothing joins is two" in " ".join(shown.stdout.split())
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert [line for line in shown.stderr.splitlines() if not line.startswith("· ")] == []
    assert "0 requests until now could write" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_stays_is_one_to_try_the_commands_in(tmp_path: Path) -> None:
    shown = console.run(tmp_path, "demo-adopt", "--keep", "try", settings={**LIVE, "MANAGEMENT": "manage"})
    assert shown.returncode == 0, shown.stderr
    assert "MANAGEMENT=observe\n" in (tmp_path / "try" / ".env").read_text()
    port = str(free_port())
    command = "sandbox --port 8700 --no-limits --state sandbox.jsonl"
    for words in ("cd try", command, "adopt discover --out customers.csv", "adopt apply customers.csv --limit 10"):
        assert f"{words}\n" in shown.stdout
    settings = dict.fromkeys(("STRIPE_API_BASE", "LAGO_API_URL"), f"http://127.0.0.1:{port}")
    with console.running(tmp_path / "try", *command.replace("8700", port).split()) as server:
        server.wait_for_output("The sandbox listens on")
        found = console.run(tmp_path / "try", "adopt", "discover", "--out", "customers.csv", settings=settings)
        assert found.returncode == 0, found.stderr
        adopted = console.run(tmp_path / "try", "adopt", "apply", "customers.csv", "--limit", "10", settings=settings)
        assert "10 adopted" in adopted.stdout, adopted.stderr
    again = console.run(tmp_path, "demo-adopt", "--keep", "try")
    assert (again.returncode, "File exists; give a valid path" in again.stderr) == (2, True)


def test_ctrl_c_ends_it_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    with console.running(tmp_path, "demo-adopt", settings={"TMPDIR": str(tmp_path / "temporary")}) as demo:
        demo.wait_for_output("imported from the organization manager")
        demo.stop(signal.SIGINT)
        assert "Traceback" not in demo.output
    assert list((tmp_path / "temporary").iterdir()) == []
