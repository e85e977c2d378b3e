"""What stands in the old store's file becomes an organization here; what is in doubt waits for a person, by name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.common.clock import Clock
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.organizations import commands as organization_commands
from core.organizations import provider_ids
from core.ports.spec import PROVIDERS
from core.reconcile import commands, due_links
from tests.support.importer import Importer, said
from tests.support.predecessor_files import A_ID, B_ID, C_ID, PREDECESSOR, A, B, organization

BOGUS = "org_959dc5c4-67d4-46a1-8f1d-1e3f3bd8b66f"
FIRST, SECOND = "org_626d0b03-5996-4a14-8b0c-7f9b6768e5f2", "org_ccd46089-9739-4a81-9f31-489b61e5cfce"


def on_hold_links(importer: Importer, org_id: str) -> dict[str, tuple[str | None, str | None]]:
    links = (importer.link(org_id, provider) for provider in PROVIDERS)
    return {link.provider: (link.error_code, link.error_message) for link in links if link.state == "on_hold"}


def test_the_torn_files_give_every_organization_and_name_every_tear(importer: Importer) -> None:
    report = importer.run(PREDECESSOR / "torn")
    assert (report.organizations.new, report.members.new, report.lost, report.ok) == (24, 0, 4, False)
    tear = "the beginning of this document was overwritten: everything before this position is lost"
    assert [(str(finding.position), finding.reason) for finding in report.losses] == [
        ("organizations.json line 11", tear),
        ("organizations.json line 20", tear),
        ("organizations.json line 29", tear),
        ("org_users.json line 3", tear),
    ]
    assert said(report)[4:] == [
        (
            "repair",
            "its key is damaged: the id was taken from the record",
            "org_3e5e761a-d0b7-4df6-afe2-d6a11178db6d",
        )
    ]


def test_the_poisoned_files_give_every_record_and_name_every_decision(importer: Importer) -> None:
    report = importer.run(PREDECESSOR / "poisoned")
    assert (report.organizations.new, report.members.new, report.lost, report.repaired) == (5, 5, 1, 5)
    lost = (
        f"stripe_customer_id 'cus_dup' is also used by {FIRST}: {FIRST} keeps it and {SECOND} gets none; "
        "billing of both waits for an operator"
    )
    waits = "was imported unchanged; billing waits until the organization has a plan of the catalog"
    assert said(report) == [
        (
            "loss",
            lost,
            SECOND,
        ),
        ("repair", "the empty lago_customer_id was imported as missing", FIRST),
        ("repair", "the unknown status 'bogus' was imported as suspended; billing waits for an operator", BOGUS),
        ("repair", f"the unknown plan 'profesional' {waits}", "org_81eff046-bc57-4f2c-b88e-7b50dd7261ec"),
        ("repair", f"the unknown plan 'byok' {waits}", SECOND),
        (
            "repair",
            "the unknown role 'admin' was imported as 'member', the least privileged role",
            "org_ae344640-619c-4986-aab6-40b4d9d3c39d user_1",
        ),
    ]
    assert importer.organization("org_81eff046-bc57-4f2c-b88e-7b50dd7261ec").plan_tier == "profesional"
    assert importer.organization(BOGUS).status == "suspended"
    sentence = (
        f"the predecessor's file had the unknown status 'bogus': run `billing-sync set {BOGUS} --status …` with one of "
        f"active, suspended, deleted, then `billing-sync retry {BOGUS}`"
    )
    assert on_hold_links(importer, BOGUS) == dict.fromkeys(PROVIDERS, ("unknown_status", sentence))
    assert on_hold_links(importer, "org_ae344640-619c-4986-aab6-40b4d9d3c39d") == {}


# --- billing ids that stand on two organizations ---


def twice(org_id: str, other: str, way_out: str) -> dict[str, tuple[str, str]]:
    sentence = f"stripe_customer_id 'cus_dup' is used by both {other} and {org_id}: {way_out}"
    return {"stripe": ("customer_id_in_use", sentence)}


def keeps(org_id: str) -> str:
    return (
        f"if it belongs to {org_id}, run `billing-sync retry {org_id}`; if not, set the right id with "
        f"`billing-sync set-customer-id {org_id} --stripe ID`"
    )


def has_none(org_id: str) -> str:
    return (
        f"set its own customer id with `billing-sync set-customer-id {org_id} --stripe ID`; if it has none, run "
        f"`billing-sync retry {org_id}` to create a new customer"
    )


@pytest.mark.parametrize("between", [0, 600])
def test_an_id_on_two_organizations_is_believed_of_neither_however_far_apart(importer: Importer, between: int) -> None:
    others = [organization(n, stripe_customer_id=None) for n in range(10, 10 + between)]
    records = [organization(1, stripe_customer_id="cus_dup"), *others, organization(2, stripe_customer_id="cus_dup")]
    report = importer.bring(records)
    assert [kind for kind, *_ in said(report)] == ["loss"]
    assert importer.link(A_ID, "stripe").customer_id == "cus_dup"
    assert importer.link(B_ID, "stripe").customer_id is None
    assert on_hold_links(importer, A_ID) == twice(A_ID, B_ID, keeps(A_ID))
    assert on_hold_links(importer, B_ID) == twice(B_ID, A_ID, has_none(B_ID))


def test_an_id_in_doubt_is_held_from_its_first_part_on(importer: Importer) -> None:
    """The second may never come: here its own id is unusable."""
    records = [organization(1, stripe_customer_id="cus_dup")]
    records.append(organization(2, id=f"org_{'x' * 61}", stripe_customer_id="cus_dup"))
    report = importer.bring(records)
    assert on_hold_links(importer, A_ID) == twice(A_ID, "another organization in the imported file", keeps(A_ID))
    assert said(report) == [
        ("loss", "unusable record: its id has more than 60 characters after 'org_'", f"org_{'x' * 61}")
    ]
    assert (report.organizations.new, report.organizations.rejected) == (1, 1)


def test_an_id_that_is_here_already_is_believed_of_neither_and_a_worker_loses_its_turn(importer: Importer) -> None:
    importer.bring([organization(1, stripe_customer_id="cus_dup")])
    before = importer.link(A_ID, "stripe")
    report = importer.bring([organization(2, stripe_customer_id="cus_dup", lago_customer_id="lago_2")])
    assert report.lost == 1
    assert on_hold_links(importer, A_ID) == twice(A_ID, B_ID, keeps(A_ID))
    assert on_hold_links(importer, B_ID) == twice(B_ID, A_ID, has_none(B_ID))
    assert importer.link(A_ID, "stripe").generation > before.generation
    assert importer.link(B_ID, "lago").customer_id == "lago_2"


def test_once_people_have_decided_a_second_run_leaves_it_so(importer: Importer) -> None:
    records = [organization(n, stripe_customer_id="cus_dup") for n in (1, 2)]
    importer.bring(records)
    with importer.change(A_ID) as (change, first):
        commands.retry(change, first)
    with importer.change(B_ID) as (change, second):
        provider_ids.set_customer_ids(change, second, {"stripe": "cus_own"})
    before = importer.tables()
    report = importer.bring(records)
    assert importer.tables() == before
    assert on_hold_links(importer, A_ID) == on_hold_links(importer, B_ID) == {}
    assert said(report) == [
        ("repair", "kept the database's version: stripe_customer_id changed since the import", B_ID)
    ]


def test_the_same_id_at_the_two_billers_is_no_doubt(importer: Importer) -> None:
    records = [organization(1, stripe_customer_id="same"), organization(2, lago_customer_id="same")]
    assert said(importer.bring(records)) == []


def test_an_id_too_long_to_keep_is_a_loss_and_no_new_customer_is_made_meanwhile(importer: Importer) -> None:
    report = importer.bring(
        [organization(1, stripe_customer_id="c" * 256), organization(2, lago_customer_id="c" * 255)]
    )
    lost = "stripe_customer_id is 256 characters long, more than 255: not imported, billing waits for an operator"
    assert said(report) == [("loss", lost, A_ID)]
    assert on_hold_links(importer, A_ID) == {"stripe": ("customer_id_not_imported", f"{lost}; {has_none(A_ID)}")}
    assert importer.link(B_ID, "lago").customer_id == "c" * 255


# --- names ---


def test_two_of_one_name_both_live_and_neither_name_can_be_taken_again(importer: Importer) -> None:
    report = importer.bring([organization(1, name="Acme"), organization(2, name=" ACME "), organization(3)])
    assert said(report) == [
        ("repair", f"its name is also the name of {A_ID}: both organizations keep it, {A_ID} and {B_ID}", B_ID)
    ]
    assert [importer.organization(org_id).name for org_id in (A_ID, B_ID)] == ["Acme", " ACME "]
    shared = {org_id: importer.organization(org_id).may_share_name for org_id in (A_ID, B_ID, C_ID)}
    assert shared == {A_ID: False, B_ID: True, C_ID: False}
    for renamed in (A_ID, B_ID):
        with importer.change(C_ID) as (change, other), pytest.raises(organization_commands.NameTakenError):
            organization_commands.rename(change, other, "acme")
        with importer.change(renamed) as (change, other):
            organization_commands.rename(change, other, f"Not {renamed}")
    with importer.change(C_ID) as (change, other):
        organization_commands.rename(change, other, "acme")
    assert importer.organization(C_ID).name_key == "acme"


def test_where_names_need_not_be_unique_an_import_shares_them_without_a_word(importer: Importer) -> None:
    url = importer.database.url.render_as_string(hide_password=False)
    off = replace(importer, database=Database(url, unique_names=False))
    assert said(off.bring([organization(1, name="Acme"), organization(2, name="ACME")])) == []
    off.database.close()
    assert [importer.organization(org_id).may_share_name for org_id in (A_ID, B_ID)] == [True, True]


def test_what_nobody_sees_in_a_name_is_removed_and_reported(importer: Importer) -> None:
    records = [
        organization(1, name="Ac\u202eme\n"),
        organization(2, name="\u200b"),
        organization(3, name="\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    ]
    removed = "characters that nobody sees were removed from the name"
    empty = "the empty name was replaced by the id; billing waits until the organization is renamed"
    assert said(importer.bring(records)) == [
        ("repair", removed, A_ID),
        ("repair", removed, B_ID),
        ("repair", empty, B_ID),
    ]
    assert [importer.organization(org_id).name for org_id in (A_ID, B_ID, C_ID)] == [
        "Acme ",
        B_ID,
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    ]
    assert said(importer.bring(records))[0] == ("repair", removed, A_ID)


def test_the_name_of_a_deleted_organization_is_free(importer: Importer) -> None:
    records = [organization(n, name="Acme", status=status) for n, status in ((1, "deleted"), (2, "active"))]
    assert said(importer.bring(records)) == []
    assert importer.organization(B_ID).name_key == "acme"


def test_a_name_too_long_is_cut_and_an_empty_one_waits_under_the_id(importer: Importer) -> None:
    report = importer.bring([organization(1, name="é" * 201), organization(2, name=" ")])
    assert said(report) == [
        ("repair", "the name is 201 characters long, more than 200", A_ID),
        ("repair", "the name is empty", B_ID),
        ("repair", "the name was cut to 200 characters", A_ID),
        ("repair", "the empty name was replaced by the id; billing waits until the organization is renamed", B_ID),
    ]
    assert (importer.organization(A_ID).name, importer.organization(B_ID).name) == ("é" * 200, B_ID)
    assert on_hold_links(importer, A_ID) == {}
    sentence = (
        f"the predecessor's file had no name for it: run `billing-sync set {B_ID} --name …`, then "
        f"`billing-sync retry {B_ID}`"
    )
    assert on_hold_links(importer, B_ID) == dict.fromkeys(PROVIDERS, ("empty_name", sentence))


@pytest.mark.parametrize("sign", ["\u0390", "\ufdfa", "\u3316"])
def test_the_longest_key_that_a_name_can_have_fits(importer: Importer, sign: str) -> None:
    """One letter may become eighteen in its key."""
    records = [organization(n, name=sign * 200) for n in (1, 2)]
    assert importer.bring(records).organizations.new == 2


# --- the rest ---


def test_a_missing_date_is_the_time_of_the_import(importer: Importer, clock: Clock) -> None:
    report = importer.bring([organization(1, created_at=None)])
    assert importer.organization(A_ID).created_at == clock()
    assert said(report)[1:] == [("repair", "created_at was set to the time of the import", A_ID)]


def test_nothing_is_ever_made_for_a_deleted_organization_and_its_ids_stay(importer: Importer, clock: Clock) -> None:
    importer.bring([organization(1, status="deleted", stripe_customer_id="cus_1"), B])
    link = importer.link(A_ID, "stripe")
    assert (link.customer_id, link.desired_version, link.applied_version) == ("cus_1", 1, 1)
    with importer.database.write() as session:
        assert [due_links.dispatch(session, provider, 10, clock()) for provider in PROVIDERS] == [[B_ID], [B_ID]]


def test_a_plan_too_long_to_keep_is_a_loss_and_never_another_plan(importer: Importer) -> None:
    report = importer.bring([organization(1, plan_tier="p" * 201)])
    assert [(kind, reason[:36]) for kind, reason, _ in said(report)] == [
        ("loss", "plan_tier is 201 characters long and"),
        ("repair", f"the unknown plan '{'p' * 18}"),
    ]
    assert importer.organization(A_ID).plan_tier == "p" * 200


def test_a_long_value_of_the_file_does_not_flood_the_report(importer: Importer) -> None:
    [(_, reason, _)] = said(importer.bring([organization(1, status="s" * 100_000)]))
    assert len(reason) < 200


def test_links_in_doubt_are_not_handed_to_the_broker(importer: Importer, clock: Clock) -> None:
    importer.bring([A, organization(2, status="bogus")])
    with importer.database.write() as session:
        assert [due_links.dispatch(session, provider, 10, clock()) for provider in PROVIDERS] == [[A_ID], [A_ID]]
        assert session.query(BillingLink).filter(BillingLink.state == "on_hold").count() == 2
