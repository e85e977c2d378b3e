"""The first thing anybody runs: it must work on a bare machine, be quiet, and not say "in sync" when it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import console

pytestmark = pytest.mark.processes

LIVE = {
    "STRIPE_SECRET_KEY": "sk_live_never",
    "STRIPE_API_BASE": "http://127.0.0.1:9",
    "LAGO_API_KEY": "never",
    "LAGO_API_URL": "http://127.0.0.1:9",
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/none",
    "REDIS_URL": "redis://127.0.0.1:9/0",
    "CHARGED_BY": "stripe",
}


def test_the_demo_shows_every_organization_in_sync(tmp_path: Path) -> None:
    shown = console.run(tmp_path, "demo", settings={"COLUMNS": "80"})
    assert shown.returncode == 0, shown.stderr
    assert "All 6 organizations are in sync" in shown.stdout
    assert "cus_AcmeS" in shown.stdout
    assert "→ starter" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert [line for line in shown.stderr.splitlines() if not line.startswith("· ")] == []
    assert list(tmp_path.iterdir()) == []


def test_the_demo_meets_nothing_that_the_environment_names(tmp_path: Path) -> None:
    """One Stripe and three Lago calls for each that is new: imported, so read first. The others are never made.

    The account, the plans and the pages that ``adopt discover`` reads are of no organization: some requests in all.
    """
    shown = console.run(tmp_path, "demo", "--json", settings=LIVE)
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout)
    assert told["in_sync"] is True
    assert told["problem"] is None
    known, new, changed = told["organizations"][:2], told["organizations"][2:-1], told["organizations"][-1]
    assert [each["stripe_customer_id"] for each in known] == ["cus_AcmeSince2024", "cus_ProTechSince25"]
    assert [(each["stripe_calls"], each["lago_calls"]) for each in new] == [(1, 3)] * 3
    assert (changed["name"], changed["plan_tier"]) == ("Northwind Traders", "enterprise")
    assert changed["pending_plan_tier"] == "starter"
    assert 0 < told["stripe_calls"] - sum(each["stripe_calls"] for each in told["organizations"]) <= 10
    assert 0 < told["lago_calls"] - sum(each["lago_calls"] for each in told["organizations"]) <= 10


def test_the_demo_shows_its_log_when_asked_and_fits_a_wide_screen(tmp_path: Path) -> None:
    shown = console.run(tmp_path, "demo", "--verbose", settings={"COLUMNS": "120"})
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 120
    assert "customers.sync_to_stripe" in shown.stderr
    assert "Northwind Traders" not in "".join(line for line in shown.stderr.splitlines() if not line.startswith("·"))
