"""``adopt discover`` as an operator types it, against the sandbox."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from core.adoption.table import read_table
from core.catalog.plans import DEFAULT_PLANS_FILE
from sandbox.server import Sandbox
from tests.support.adoption_harness import AdoptionHarness
from tests.support.sync_world import SyncWorld
from worker.cli import adopt_discover
from worker.cli.app import app as commands
from worker.cli.exit_codes import UsageError

Type = Callable[..., Result]


@pytest.fixture
def theirs(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[AdoptionHarness]:
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    yield harness
    harness.close()


@pytest.fixture
def types(theirs: AdoptionHarness, tmp_path: Path) -> Type:
    environment = {
        "DATABASE_URL": theirs.world.database.url.render_as_string(hide_password=False),
        "DATA_DIR": str(tmp_path),
        "PLANS_FILE": str(DEFAULT_PLANS_FILE),
        "STRIPE_SECRET_KEY": "sk_test_sandbox",
        "STRIPE_API_BASE": theirs.url,
        "LAGO_API_KEY": "lago-key",
        "LAGO_API_URL": theirs.url,
        "LAGO_STRIPE_PROVIDER_CODE": "stripe_main",
        "COLUMNS": "80",
    }
    without = dict.fromkeys(("REDIS_URL", "CELERY_BROKER_URL"))
    return lambda *words: CliRunner().invoke(commands, list(words), env={**without, **environment})


@pytest.fixture
def business(theirs: AdoptionHarness) -> AdoptionHarness:
    """One to adopt, one with nothing to adopt, and seven conflicts."""
    theirs.stripe_customer()
    theirs.lago_customer(plan="professional")
    theirs.stripe_customer("cus_idle", name="Idle", email="idle@acme.test")
    for number in range(7):
        theirs.lago_customer(f"dot.{number}", payer=None, name=f"Dot {number}", email=None)
    theirs.world.sandbox.reset_calls()
    return theirs


def test_the_summary_says_what_is_proposed_and_what_to_type_next(
    business: AdoptionHarness, types: Type, tmp_path: Path
) -> None:
    out = tmp_path / "adopt.csv"
    result = types("adopt", "discover", "--out", str(out))
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert [line.split()[:2] for line in lines if line.startswith(("adopt ", "skip ", "conflict "))] == [
        ["adopt", "1"],
        ["skip", "1"],
        ["conflict", "7"],
    ]
    assert result.stdout.count("Lago's API cannot address") == 5
    assert "and 2 more; the table has each reason" in lines
    assert "billing-sync adopt apply" in result.stdout
    assert max(map(len, lines)) <= 80 + len(str(out))
    assert len(read_table(out)) == 9
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert business.writes() == []


def test_programs_get_the_counts(business: AdoptionHarness, types: Type, tmp_path: Path) -> None:
    assert business.writes() == []
    out = tmp_path / "adopt.json"
    result = types("adopt", "discover", "--out", str(out), "--json")
    assert json.loads(result.stdout) == {
        "file": str(out),
        "rows": 9,
        "actions": {"adopt": 1, "adopt-keep-price": 0, "change-to-catalog": 0, "skip": 1, "conflict": 7},
        "begins": 0,
        "managed": 0,
        "observed": [],
    }
    assert result.stderr == ""


def test_a_table_that_discover_wrote_is_one_that_apply_takes(
    business: AdoptionHarness, types: Type, tmp_path: Path
) -> None:
    out = tmp_path / "adopt.csv"
    types("adopt", "discover", "--out", str(out))
    assert types("adopt", "apply", str(out), "--yes").exit_code == 0
    assert business.writes() == []
    again = types("adopt", "discover", "--out", str(tmp_path / "again.csv"))
    assert "1 organization has nothing left to adopt." in again.stdout
    assert {row.action for row in read_table(tmp_path / "again.csv")} == {"skip", "conflict"}


def test_what_begins_to_be_charged_has_a_count_of_its_own(theirs: AdoptionHarness, types: Type, tmp_path: Path) -> None:
    for name in ("one", "two"):
        org_id = theirs.world.create(name, "professional")
        theirs.world.set_customer_id(org_id, "stripe", theirs.stripe_customer(f"cus_{name}"))
    shown = types("adopt", "discover", "--out", str(tmp_path / "adopt.csv"))
    begins = "2 of those to adopt have no subscription: one begins, and is charged, once managed."
    assert begins in " ".join(shown.stdout.split())
    programs = types("adopt", "discover", "--out", str(tmp_path / "adopt.json"), "--json")
    assert json.loads(programs.stdout)["begins"] == 2


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), adopt_discover.failures_as_messages_of(tmp_path / "adopt.csv"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "Stopped. No table is written; the same command goes on.\n"


def test_an_organization_that_may_pay_already_is_said_with_both_ways_on(
    theirs: AdoptionHarness, types: Type, tmp_path: Path
) -> None:
    theirs.lago_customer("beta", payer=None, plan="professional", name="ACME", email=None)
    org_id = theirs.world.create("Acme")
    shown = types("adopt", "discover", "--out", str(tmp_path / "adopt.csv")).stdout
    text = " ".join(shown.split())
    assert f"Acme {org_id}" in text
    assert "A customer in a conflict may belong to 1 organization without a customer" in text
    assert "`billing-sync management inherit ORG` gives it the mode of all others" in text
    assert theirs.world.organization(org_id).management == "observe"
    again = types("adopt", "discover", "--out", str(tmp_path / "again.json"), "--json")
    assert json.loads(again.stdout)["observed"] == [org_id]


def test_an_existing_file_is_refused_before_anything_is_read(
    business: AdoptionHarness, types: Type, tmp_path: Path
) -> None:
    out = tmp_path / "adopt.csv"
    out.write_text("mine")
    result = types("adopt", "discover", "--out", str(out))
    assert isinstance(result.exception, UsageError)
    assert "exists already and is never replaced" in str(result.exception)
    assert out.read_text() == "mine"
    assert business.world.sandbox.calls() == []


def test_nothing_at_the_providers_is_an_empty_table(types: Type, tmp_path: Path) -> None:
    result = types("adopt", "discover", "--out", str(tmp_path / "adopt.csv"))
    assert result.exit_code == 0, result.output
    assert "has 0 rows" in result.stdout
    assert "adopt apply" not in result.stdout
    assert read_table(tmp_path / "adopt.csv") == []
