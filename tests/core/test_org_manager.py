"""The organization manager's own face: names, defaults, results and errors as its users know them, and nothing lost."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from core.catalog.plans import DEFAULT_PLANS_FILE
from core.db.database import Database, DatabaseError
from core.org_manager import OrgManager

ROOT = Path(__file__).resolve().parents[2]
PROCESSES, EACH = 8, 200


@pytest.fixture
def manager(database: Database) -> Iterator[OrgManager]:
    opened = OrgManager(database_url=database.url.render_as_string(hide_password=False))
    yield opened
    opened.close()


def test_importing_it_touches_nothing(tmp_path: Path) -> None:
    looks = (
        "import sys, os, logging; sys.path.insert(0, sys.argv[1]); before = list(logging.root.handlers);"
        "from core.org_manager import OrgManager, Organization, OrgUser, org_manager;"
        "assert logging.root.handlers == before; assert os.listdir('.') == [], os.listdir('.')"
    )
    subprocess.run([sys.executable, "-I", "-c", looks, str(ROOT)], cwd=tmp_path, check=True)


def test_a_new_organization_has_the_defaults(manager: OrgManager) -> None:
    org_id = manager.create_organization("  Acme  ")
    found = manager.get_org(org_id)
    assert found is not None
    assert org_id.startswith("org_")
    assert len(org_id) == 40
    assert (found.name, found.plan_tier, found.status) == ("Acme", "founders_friend", "active")
    assert (found.lago_customer_id, found.stripe_customer_id, found.pending_plan_tier) == (None, None, None)
    assert found.created_at.utcoffset() is not None


@pytest.mark.parametrize("name", ["", "   ", "\t\n"])
def test_an_empty_name_is_refused(manager: OrgManager, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be empty"):
        manager.create_organization(name)


@pytest.mark.parametrize("name", ["Straße AG", " straße ag", "STRASSE AG", "Straße AG  "])
def test_a_name_is_taken_whatever_its_blanks_and_case(manager: OrgManager, name: str) -> None:
    manager.create_organization("Straße AG")
    with pytest.raises(ValueError, match="already exists"):
        manager.create_organization(name)


def test_a_deleted_organization_frees_its_name_and_takes_no_members(manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    assert manager.update_org_status(org_id, "deleted")
    assert manager.create_organization("Acme") != org_id
    assert not manager.add_user_to_org(org_id, "user_1")
    found = manager.get_org(org_id)
    assert found is not None
    assert found.status == "deleted"
    assert org_id not in [organization.id for organization in manager.list_all_organizations()]
    with pytest.raises(ValueError, match="already exists"):
        manager.update_org_status(org_id, "active")


def test_unknown_words_are_refused_with_the_known_ones(manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    with pytest.raises(ValueError, match="founders_friend, starter, professional, enterprise"):
        manager.create_organization("Other", "platinum")
    with pytest.raises(ValueError, match="founders_friend, starter, professional, enterprise"):
        manager.update_org_plan(org_id, "platinum")
    with pytest.raises(ValueError, match="active, suspended, deleted"):
        manager.update_org_status(org_id, "bogus")
    with pytest.raises(ValueError, match="must be one of owner, billing_admin, member"):
        manager.add_user_to_org(org_id, "user_1", "admin")
    manager.add_user_to_org(org_id, "user_1")
    with pytest.raises(ValueError, match="must be one of owner, billing_admin, member"):
        manager.update_user_role(org_id, "user_1", "admin")


def test_an_unknown_organization_is_no_exception(manager: OrgManager) -> None:
    assert manager.get_org("org_no") is None
    assert manager.update_org_billing_ids("org_no", lago_id="x") is False
    assert manager.update_org_plan("org_no", "starter") is False
    assert manager.update_org_status("org_no", "active") is False
    assert manager.add_user_to_org("org_no", "user_1") is False
    assert manager.remove_user_from_org("org_no", "user_1") is False
    assert manager.update_user_role("org_no", "user_1", "owner") is False
    assert manager.get_user_role_in_org("org_no", "user_1") is None
    assert manager.get_org_users("org_no") == []
    assert manager.get_user_orgs("nobody") == []
    assert manager.search_organizations("nothing") == []
    assert manager.get_organizations_by_plan("platinum") == []


def test_members_come_change_and_go(manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    assert manager.add_user_to_org(org_id, "user_1", "owner")
    assert manager.add_user_to_org(org_id, "user_2")
    with pytest.raises(ValueError, match="already in organization"):
        manager.add_user_to_org(org_id, "user_2")
    assert manager.get_user_role_in_org(org_id, "user_2") == "member"
    assert manager.update_user_role(org_id, "user_2", "billing_admin")
    assert [(user.user_id, user.role) for user in manager.get_org_users(org_id)] == [
        ("user_1", "owner"),
        ("user_2", "billing_admin"),
    ]
    assert [organization.id for organization in manager.get_user_orgs("user_2")] == [org_id]
    assert manager.remove_user_from_org(org_id, "user_2")
    assert not manager.remove_user_from_org(org_id, "user_2")


def test_a_higher_plan_is_now_and_a_lower_one_waits_and_can_be_taken_back(manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme", "starter")
    plans: list[tuple[str, str | None]] = []
    for tier in ("enterprise", "starter", "enterprise"):
        assert manager.update_org_plan(org_id, tier)
        found = manager.get_org(org_id)
        assert found is not None
        plans.append((found.plan_tier, found.pending_plan_tier))
    assert plans == [("enterprise", None), ("enterprise", "starter"), ("enterprise", None)]
    assert [organization.id for organization in manager.get_organizations_by_plan("enterprise")] == [org_id]


def test_billing_ids_are_set_one_by_one_and_belong_to_one_organization(manager: OrgManager) -> None:
    org_id, other = manager.create_organization("Acme"), manager.create_organization("Other")
    assert manager.update_org_billing_ids(org_id, stripe_id="cus_1")
    assert manager.update_org_billing_ids(org_id, lago_id="lago_1")
    found = manager.get_org(org_id)
    assert found is not None
    assert (found.stripe_customer_id, found.lago_customer_id) == ("cus_1", "lago_1")
    with pytest.raises(ValueError, match=f"already belongs to organization {org_id}"):
        manager.update_org_billing_ids(other, stripe_id="cus_1")
    with pytest.raises(ValueError, match="stripe_id must be"):
        manager.update_org_billing_ids(org_id, stripe_id="")
    assert manager.get_org(org_id) == found


@pytest.mark.parametrize(("words", "found"), [("ACM", 1), ("100%", 1), ("_", 0), ("zzz", 0)])
def test_search_is_by_part_of_the_name_without_case_or_wildcards(manager: OrgManager, words: str, found: int) -> None:
    manager.create_organization("Acme")
    manager.create_organization("100% Juice")
    assert len(manager.search_organizations(words)) == found


def test_a_folder_keeps_its_own_database(tmp_path: Path) -> None:
    first = OrgManager(data_dir=tmp_path / "new" / "folder")
    org_id = first.create_organization("Acme")
    first.close()
    again = OrgManager(data_dir=tmp_path / "new" / "folder")
    assert again.get_org(org_id) is not None
    again.close()
    assert (tmp_path / "new" / "folder" / "billing-sync.db").exists()


def test_two_who_take_one_name_at_once_get_one_organization(manager: OrgManager) -> None:
    gate = threading.Barrier(8)
    results: list[str] = []

    def take() -> None:
        gate.wait()
        try:
            results.append(manager.create_organization("Acme"))
        except ValueError as error:
            results.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([result for result in results if result.startswith("org_")]) == 1
    assert len([result for result in results if "already exists" in result]) == 7


def write_many(url: str, process: int) -> None:
    """One of eight writers, in a process of its own."""
    manager = OrgManager(database_url=url)
    for number in range(EACH):
        org_id = manager.create_organization(f"Organization {process}-{number}")
        assert manager.add_user_to_org(org_id, f"user_{number}", "owner")
    manager.close()


@pytest.mark.processes
def test_eight_processes_write_at_once_and_nothing_is_lost(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=write_many, args=(url, number)) for number in range(PROCESSES)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(100)
    assert [writer.exitcode for writer in writers] == [0] * PROCESSES
    with database.read() as session:
        counts = {
            table: session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()  # noqa: S608 - our own names
            for table in ("organizations", "memberships", "events", "billing_links")
        }
    many = PROCESSES * EACH
    assert counts == {"organizations": many, "memberships": many, "events": 2 * many, "billing_links": 2 * many}


def test_two_who_bring_one_member_at_once_add_it_once(manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    gate = threading.Barrier(6)
    results: list[str] = []

    def add() -> None:
        gate.wait()
        try:
            results.append(str(manager.add_user_to_org(org_id, "u1")))
        except ValueError as error:
            results.append(str(error))

    threads = [threading.Thread(target=add) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["True", *[f"User u1 already in organization {org_id}"] * 5]


def create_one(folder: str, number: int) -> None:
    """One of many that find no database yet."""
    manager = OrgManager(data_dir=folder)
    manager.create_organization(f"Acme {number}")
    manager.close()


@pytest.mark.processes
def test_many_processes_may_open_a_new_folder_at_once_whatever_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "new? folder %20"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=create_one, args=(str(folder), number)) for number in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 6
    manager = OrgManager(data_dir=folder)
    assert len(manager.list_all_organizations()) == 6
    manager.close()
    assert (folder / "billing-sync.db").is_file()


@pytest.mark.processes
def test_a_forked_child_and_its_parent_do_not_disturb_each_other(database: Database) -> None:
    script = (
        "import os, sys\n"
        "from core.org_manager import OrgManager\n"
        "manager = OrgManager(sys.argv[1])\n"
        "manager.create_organization('Parent')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    manager.create_organization('Child')\n"
        "    manager.close()\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "manager.create_organization('After')\n"
        "print(len(manager.list_all_organizations()))\n"
    )
    url = database.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-c", script, url], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("3", 0), done.stderr


def test_a_server_without_our_tables_is_refused_again_and_again_and_no_connection_stays(postgres_url: str) -> None:
    manager = OrgManager(postgres_url)
    for _ in range(3):
        with pytest.raises(DatabaseError, match="billing-sync db upgrade"):
            manager.list_all_organizations()
    manager.close()
    watching = Database(postgres_url)
    with watching.read() as session:
        others = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert session.execute(others).scalar_one() == 1
    watching.close()


def _own_catalog(folder: Path, tier: str) -> Path:
    file = folder / f"{tier}.toml"
    file.write_text(DEFAULT_PLANS_FILE.read_text().replace("[plans.starter]", f"[plans.{tier}]"))
    return file


def test_the_catalog_is_the_given_file_else_that_of_the_environment_else_that_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiers(plans: Path | None = None) -> list[str]:
        manager = OrgManager(data_dir=tmp_path / "data", plans=plans)
        try:
            with pytest.raises(ValueError, match="plan_tier") as caught:
                manager.create_organization("Acme", plan_tier="none")
        finally:
            manager.close()
        return [tier for tier in ("starter", "ours", "theirs", "small") if tier in str(caught.value)]

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PLANS_FILE", raising=False)
    assert tiers() == ["starter"]
    _own_catalog(tmp_path, "ours").rename(tmp_path / "plans.toml")
    assert tiers() == ["ours"]
    monkeypatch.setenv("PLANS_FILE", str(_own_catalog(tmp_path, "theirs")))
    assert tiers() == ["theirs"]
    assert tiers(_own_catalog(tmp_path, "small")) == ["small"]


@pytest.mark.parametrize(
    ("word", "argument", "is_refused"),
    [
        (None, None, True),
        ("", None, True),
        ("true", None, True),
        ("false", None, False),
        ("0", None, False),
        ("false", True, True),
        ("true", False, False),
    ],
)
def test_a_name_of_another_organization_is_refused_as_the_argument_or_the_environment_says(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    word: str | None,
    argument: bool | None,  # noqa: FBT001 - as the manager takes it
    is_refused: bool,  # noqa: FBT001 - the outcome
) -> None:
    monkeypatch.delenv("UNIQUE_ORGANIZATION_NAMES", raising=False)
    if word is not None:
        monkeypatch.setenv("UNIQUE_ORGANIZATION_NAMES", word)
    manager = OrgManager(database.url.render_as_string(hide_password=False), unique_names=argument)
    manager.create_organization("Acme")
    if is_refused:
        with pytest.raises(ValueError, match="already exists"):
            manager.create_organization("ACME")
    else:
        manager.create_organization("ACME")
    assert len(manager.search_organizations("acme")) == (1 if is_refused else 2)
    manager.close()


def test_a_word_that_is_neither_true_nor_false_is_refused_by_the_name_of_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIQUE_ORGANIZATION_NAMES", "perhaps")
    manager = OrgManager(data_dir=tmp_path)
    with pytest.raises(ValueError, match="UNIQUE_ORGANIZATION_NAMES must be true or false"):
        manager.list_all_organizations()


def test_the_last_owner_is_neither_removed_nor_given_another_role(manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    manager.add_user_to_org(org_id, "u1", "owner")
    assert manager.remove_user_from_org(org_id, "u1") is False
    assert manager.update_user_role(org_id, "u1", "member") is False
    assert manager.get_user_role_in_org(org_id, "u1") == "owner"
    manager.add_user_to_org(org_id, "u2", "owner")
    assert manager.remove_user_from_org(org_id, "u1") is True
