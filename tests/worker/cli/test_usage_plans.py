"""`plans use-usage-plans`: it says how many, asks, and can be repeated; `doctor` leads to it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from core.catalog.plans import DEFAULT_PLANS_FILE
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.org_manager import OrgManager
from tests.support import console

STRIPE_CHARGES: Final = {"CHARGED_BY": "stripe"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.fixture
def on_full_plans(folder: Path) -> list[str]:
    """As they were sold before the file named a plan of amount 0."""
    manager = OrgManager(data_dir=folder / "data")
    org_ids = [manager.create_organization(name, plan_tier="professional") for name in ("Acme", "Globex", "Initech")]
    manager.close()
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    with database.write() as session:
        for org_id in org_ids:
            link = session.get_one(BillingLink, (org_id, "lago"))
            link.subscription_id, link.sold_plan = f"lago_{org_id}", "professional"
            link.state = "parked" if org_id == org_ids[2] else "active"
    database.close()
    text = DEFAULT_PLANS_FILE.read_text(encoding="utf-8")
    code = 'lago_plan_code = "professional"\n'
    (folder / "plans.toml").write_text(text.replace(code, f'{code}lago_usage_plan_code = "professional_usage"\n', 1))
    return org_ids


def targets(folder: Path, org_ids: list[str]) -> list[str | None]:
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    with database.read() as session:
        found = [session.get_one(BillingLink, (org_id, "lago")).target_plan for org_id in org_ids]
    database.close()
    return found


def test_it_says_how_many_and_moves_them_once_it_is_confirmed(folder: Path, on_full_plans: list[str]) -> None:
    refused = console.run(folder, "plans", "use-usage-plans", settings=STRIPE_CHARGES)
    assert refused.returncode != 0
    assert "professional: 2 organizations from professional to professional_usage in Lago" in refused.stdout
    assert "observed, parked or on hold: 1 organization." in refused.stdout
    assert targets(folder, on_full_plans) == [None, None, None]
    moved = console.run(folder, "plans", "use-usage-plans", "professional", "--yes", settings=STRIPE_CHARGES)
    assert "Moved: 2 organizations." in moved.stdout
    assert targets(folder, on_full_plans) == ["professional_usage", "professional_usage", None]
    again = console.run(folder, "plans", "use-usage-plans", "--yes", settings=STRIPE_CHARGES)
    assert "Nobody is left to move." in again.stdout
    shown = console.run(folder, "history", on_full_plans[0], settings=STRIPE_CHARGES).stdout
    assert "moved to the plan professional_usage in Lago, which costs nothing" in shown


def test_where_it_has_nothing_to_do_it_says_why(folder: Path, on_full_plans: list[str]) -> None:
    where_lago_charges = console.run(folder, "plans", "use-usage-plans", "--yes")
    assert "no tier that Stripe charges for has a lago_usage_plan_code" in where_lago_charges.stderr
    other = console.run(folder, "plans", "use-usage-plans", "starter", "--yes", settings=STRIPE_CHARGES)
    assert "starter is none of the tiers" in other.stderr
    assert targets(folder, on_full_plans) == [None, None, None]


@pytest.mark.usefixtures("on_full_plans")
def test_doctor_and_the_check_recommend_what_is_missing(folder: Path) -> None:
    doctor = console.run(folder, "doctor", settings={**STRIPE_CHARGES, "COLUMNS": "300"}).stdout
    assert "Stripe charges 3 organizations that are on a full plan in Lago" in doctor
    assert "billing-sync plans use-usage-plans" in doctor
    assert doctor.count("docs/how-to/usage-plans.md") == 1
