"""`charging move`: a list of whom the wrong provider charges, and its rows moved once and only as they were listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.org_manager import OrgManager
from tests.support import console

BY_STRIPE = {"CHARGED_BY": "stripe"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepared = console.prepare(tmp_path)
    plans = prepared / "plans.toml"
    plans.write_text(plans.read_text().replace('lago_credit_note = "credit"', 'lago_credit_note = "refund"'))
    return prepared


def charged_by_lago(folder: Path, *names: str, email: str | None = "ap@acme.test") -> list[str]:
    manager = OrgManager(data_dir=folder / "data")
    org_ids = [manager.create_organization(name, plan_tier="starter") for name in names]
    manager.close()
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    with database.write() as session:
        for org_id in org_ids:
            session.get_one(Organization, org_id).billing_email = email
            link = session.get_one(BillingLink, (org_id, "lago"))
            link.payer_id, link.subscription_id, link.customer_id = f"cus_{org_id}", f"sub_{org_id}", f"lago_{org_id}"
    database.close()
    return org_ids


def moves_of(folder: Path, org_ids: list[str]) -> list[str | None]:
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    with database.read() as session:
        found: list[str | None] = [session.get_one(BillingLink, (org_id, "lago")).charging_move for org_id in org_ids]
    database.close()
    return found


def test_the_rows_of_the_list_are_moved_once(folder: Path) -> None:
    org_ids = charged_by_lago(folder, "Acme", "Globex")
    listed = console.run(folder, "charging", "move", "--to", "stripe", "--out", "moves.csv", settings=BY_STRIPE)
    assert listed.returncode == 0, listed.stderr
    assert "2 can move" in listed.stdout
    again = console.run(folder, "charging", "move", "--to", "stripe", "--out", "moves.csv", settings=BY_STRIPE)
    assert "never replaced" in again.stderr
    apply = ("charging", "move", "--apply", "moves.csv")
    refused = console.run(folder, *apply, "--expect", "1", "--yes", settings=BY_STRIPE)
    assert "2 rows are still to move" in refused.stderr
    assert moves_of(folder, org_ids) == [None, None]
    moved = console.run(folder, *apply, "--expect", "2", "--yes", "--json", settings=BY_STRIPE)
    assert [each["result"] for each in json.loads(moved.stdout)["results"]] == ["started", "started"]
    assert moves_of(folder, org_ids) == ["asked", "asked"]
    repeated = console.run(folder, *apply, "--yes", "--json", settings=BY_STRIPE)
    assert [each["result"] for each in json.loads(repeated.stdout)["results"]] == ["moving", "moving"]


def test_who_changed_since_the_list_is_left(folder: Path) -> None:
    org_ids = charged_by_lago(folder, "Acme")
    console.run(folder, "charging", "move", "--to", "stripe", "--out", "moves.csv", settings=BY_STRIPE)
    manager = OrgManager(data_dir=folder / "data")
    manager.update_org_plan(org_ids[0], "professional")
    manager.close()
    left = console.run(folder, "charging", "move", "--apply", "moves.csv", "--yes", settings=BY_STRIPE)
    assert left.returncode == 1
    assert "changed since it was listed" in left.stdout
    assert moves_of(folder, org_ids) == [None]


def test_status_names_the_number_and_the_command(folder: Path) -> None:
    charged_by_lago(folder, "Acme")
    shown = console.run(folder, "status", settings=BY_STRIPE | {"COLUMNS": "200"}).stdout
    assert "1 organization is charged by Lago" in shown
    assert "billing-sync charging move --to stripe" in shown


def test_who_has_no_billing_email_is_not_moved_to_where_invoices_are_mailed(folder: Path) -> None:
    charged_by_lago(folder, "Acme", email=None)
    words = ("charging", "move", "--to", "stripe", "--out")
    listed = console.run(folder, *words, "moves.csv", settings=BY_STRIPE)
    assert "0 can move" in listed.stdout
    assert "Stripe mails its invoices, and it has no billing email" in " ".join(listed.stdout.split())
    automatic = BY_STRIPE | {"STRIPE_COLLECTION_METHOD": "charge_automatically"}
    assert "1 can move" in console.run(folder, *words, "automatic.csv", settings=automatic).stdout
