"""What `orgs` lists, in which width, and which ids the commands accept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.org_manager import OrgManager
from tests.support import console
from worker.cli import descriptions
from worker.cli.exit_codes import UsageError

WHOLE_OR_SHORTENED = re.compile(r"org_[0-9a-f-]{36}|org_[0-9a-f-]+…")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.fixture
def manager(folder: Path) -> Iterator[OrgManager]:
    opened = OrgManager(data_dir=folder / "data")
    yield opened
    opened.close()


def test_orgs_lists_only_parked_ones_or_only_those_behind(folder: Path, manager: OrgManager) -> None:
    parked, in_sync = manager.create_organization("Acme"), manager.create_organization("Beta")
    manager.create_organization("Gamma")
    database = Database(f"sqlite:///{folder / 'data' / 'billing-sync.db'}")
    with database.write() as session:
        to_parked = update(BillingLink).where(BillingLink.org_id == parked).values(state="parked")
        synced = update(BillingLink).values(applied_version=BillingLink.desired_version)
        session.execute(to_parked.execution_options(synchronize_session=False))
        session.execute(synced.where(BillingLink.org_id == in_sync).execution_options(synchronize_session=False))
    database.close()

    def names(*words: str) -> list[str]:
        shown = console.run(folder, "orgs", *words, settings={"COLUMNS": "80"}).stdout
        return [name for name in ("Acme", "Beta", "Gamma") if name in shown]

    assert names() == ["Acme", "Beta", "Gamma"]
    assert names("--parked") == ["Acme"]
    assert names("--behind") == ["Gamma"]
    assert names("--parked", "--behind") == ["Acme", "Gamma"]


def test_an_id_is_shortened_at_80_columns_and_accepted_so(folder: Path, manager: OrgManager) -> None:
    org_id = manager.create_organization("An organization with a long name")
    shown = console.run(folder, "orgs", settings={"COLUMNS": "80"}).stdout
    (short,) = {word for word in shown.split() if word.startswith("org_")}
    assert WHOLE_OR_SHORTENED.fullmatch(short)
    assert org_id in console.run(folder, "status", short, settings={"COLUMNS": "80"}).stdout


@pytest.mark.parametrize(("given", "meant"), [("abcd1", "abcd1"), ("abcd1…", "abcd1"), ("xy", "xyz"), ("abcd", "abcd")])
def test_the_unambiguous_beginning_of_an_id_means_it(given: str, meant: str) -> None:
    assert descriptions.whole_id(given, ["abcd", "abcd1", "xyz"], "key", "keys list") == meant


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("ab", "'ab' is ambiguous: abcd, abce; give the whole id"),
        ("q", "there is no key 'q'; `billing-sync keys list` shows all"),
        ("", "there is no key ''; `billing-sync keys list` shows all"),
    ],
)
def test_the_beginning_of_several_ids_or_of_none_is_refused(given: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        descriptions.whole_id(given, ["abcd", "abce"], "key", "keys list")
    assert str(caught.value) == sentence
