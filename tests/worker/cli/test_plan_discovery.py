"""`plans discover` as a newcomer types it, beside two accounts of a business that exists already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from core.catalog import plans
from sandbox.business.cases import create_business
from sandbox.business.catalog import AMOUNTS, FORMER_AMOUNTS
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support import leaks
from tests.support.console import prepare
from worker.cli.app import app as commands
from worker.cli.exit_codes import CommandFailedError, UsageError

Type = Callable[..., Result]
SECRETS = {"STRIPE_SECRET_KEY": "sk_test_secret_of_this_test", "LAGO_API_KEY": "lago-secret-of-this-test"}


@pytest.fixture
def types(sandbox_server: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """In an empty folder: no plan catalog and no database."""
    monkeypatch.chdir(tmp_path)
    environment = {"STRIPE_API_BASE": sandbox_server.url, "LAGO_API_URL": sandbox_server.url, "COLUMNS": "80"}
    absent = dict.fromkeys(("REDIS_URL", "CELERY_BROKER_URL", "DATABASE_URL", "PLANS_FILE"))

    def typed(*words: str, **settings: str) -> Result:
        given = {name.upper(): value for name, value in settings.items()}
        return CliRunner().invoke(commands, list(words), env={**absent, **environment, **SECRETS, **given})

    return typed


def discover(types: Type) -> Result:
    result = types("plans", "discover", "--out", "plans.toml")
    assert result.exit_code == 0, result.output
    return result


def test_a_business_gets_a_catalog_of_what_it_sells(types: Type, sandbox: SandboxClient, tmp_path: Path) -> None:
    business = create_business(sandbox, count=120, seed=1, database_id="ours")
    before = sandbox.state()
    result = discover(types)
    assert sandbox.state() == before
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert {path.name for path in tmp_path.iterdir()} == {"plans.toml"}
    catalog = plans.load(tmp_path / "plans.toml")
    sold = {tier: catalog.plan(tier) for tier in ("starter", "professional", "enterprise")}
    assert {tier: plan.amount for tier, plan in sold.items()} == {tier: AMOUNTS[tier] for tier in sold}
    assert {tier: plan.charged_by for tier, plan in sold.items()} == {
        "starter": "lago",
        "professional": "stripe",
        "enterprise": "lago",
    }
    assert catalog.plan("starter_2023").amount == FORMER_AMOUNTS["starter"]
    text = (tmp_path / "plans.toml").read_text()
    assert not [each.name for each in business.organizations if each.name in text]
    assert leaks.found([("plans.toml", text + result.output)], leaks.secrets_of(SECRETS)) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_existing_file_is_not_touched_and_nothing_is_read(
    types: Type, sandbox: SandboxClient, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "plans.toml").write_text("ours") if kind == "file" else (tmp_path / "plans.toml").mkdir()
    result = types("plans", "discover", "--out", "plans.toml")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == (
        "plans.toml is there already, and it is not overwritten: name another file, and compare the two"
    )
    assert sandbox.calls() == []


def test_a_folder_that_does_not_exist_is_said_before_anything_is_read(types: Type, sandbox: SandboxClient) -> None:
    result = types("plans", "discover", "--out", "nowhere/plans.toml")
    assert isinstance(result.exception, UsageError)
    assert "there is no folder nowhere" in str(result.exception)
    assert sandbox.calls() == []


def test_two_empty_accounts_give_no_file(types: Type, sandbox: SandboxClient, tmp_path: Path) -> None:
    assert sandbox.calls() == []
    result = types("plans", "discover", "--out", "plans.toml")
    assert isinstance(result.exception, CommandFailedError)
    assert "neither Stripe nor Lago has a plan yet, so nothing was written" in str(result.exception)
    assert not (tmp_path / "plans.toml").exists()


def test_accounts_without_any_flat_price_give_no_file_and_the_reasons(
    types: Type, sandbox: SandboxClient, tmp_path: Path
) -> None:
    usage = {"recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_calls"}}
    sandbox.preload_stripe_prices([{"currency": "usd", "product_data": {"name": "Calls"}, "unit_amount": 2, **usage}])
    result = types("plans", "discover", "--out", "plans.toml")
    assert isinstance(result.exception, CommandFailedError)
    assert "nothing was written: it is metered" in str(result.exception)
    assert not (tmp_path / "plans.toml").exists()


def test_nothing_is_pushed_while_all_is_observed_and_the_way_is_said(
    types: Type, sandbox: SandboxClient, tmp_path: Path
) -> None:
    prepare(tmp_path)
    before = sandbox.state()
    result = types("plans", "push", management="observe", lago_stripe_provider_code="stripe_main")
    assert isinstance(result.exception, UsageError)
    assert str(result.exception).startswith("MANAGEMENT is observe, so nothing was sent: `MANAGEMENT=manage billing-")
    assert (sandbox.state(), sandbox.calls()) == (before, [])


def test_what_is_missing_is_readable_on_a_narrow_screen_and_no_second_price_is_advised(
    types: Type, tmp_path: Path
) -> None:
    prepare(tmp_path)
    checked = types("plans", "check", charged_by="stripe")
    assert checked.exit_code == 1
    lines = checked.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.endswith("missing")]
    assert rows[0].split() == ["founders_friend", "Stripe", "founders_friend_monthly_usd", "missing"]
    assert len(rows) == 8, "each is on one line"
    shown = " ".join(checked.stdout.split())
    assert "If Stripe has a price of the same amount without a lookup key, give it the code above" in shown
    by_lago = {"lago_stripe_provider_code": "stripe_main"}
    assert "add a second price" not in types("plans", "check", **by_lago).stdout
    assert "`MANAGEMENT=manage billing-sync plans push` creates" in " ".join(
        types("plans", "check", management="observe", **by_lago).stdout.split()
    )
