"""Members come with their organization, never with more rights than the file proves, and never as orphans."""

from __future__ import annotations

from core.common.clock import Clock
from core.organizations import memberships
from tests.support.importer import Importer, said
from tests.support.predecessor_files import A_ID, B_ID, A, member, organization


def test_members_of_an_organization_that_is_not_there_are_losses_by_name(importer: Importer) -> None:
    report = importer.bring([A], {A_ID: [member(1, 0)], B_ID: [member(2, 0), member(2, 1)]})
    reason = "its organization is in neither the file nor the database"
    assert said(report) == [("loss", reason, f"{B_ID} user_0"), ("loss", reason, f"{B_ID} user_1")]
    assert [finding.position.line for finding in report.losses] == [11, 17]
    assert (report.members.new, report.members.rejected, report.ok) == (1, 2, False)


def test_thousands_of_orphans_are_all_counted_and_the_first_are_named(importer: Importer) -> None:
    report = importer.bring([A], {B_ID: [member(2, user) for user in range(12_000)]})
    assert (report.lost, report.members.rejected, len(report.losses)) == (12_000, 12_000, 1_000)


def test_members_of_an_organization_that_was_here_before_are_taken(importer: Importer) -> None:
    importer.bring([A])
    report = importer.bring([], {A_ID: [member(1, 0)]})
    assert (report.members.new, said(report)) == (1, [])


def test_an_unknown_role_is_the_least_right(importer: Importer) -> None:
    report = importer.bring([A], {A_ID: [member(1, 0, role="admin"), member(1, 1, role="Owner")]})
    assert [membership.role for membership in importer.members().values()] == ["member", "member"]
    assert said(report) == [
        ("repair", "the unknown role 'admin' was imported as 'member', the least privileged role", f"{A_ID} user_0"),
        ("repair", "the unknown role 'Owner' was imported as 'member', the least privileged role", f"{A_ID} user_1"),
    ]


def test_a_missing_date_is_the_time_of_the_import(importer: Importer, clock: Clock) -> None:
    report = importer.bring([A], {A_ID: [member(1, 0, joined_at=None)]})
    assert importer.members()[A_ID, "user_0"].joined_at == clock()
    assert said(report)[1:] == [("repair", "joined_at was set to the time of the import", f"{A_ID} user_0")]


def test_a_user_id_too_long_to_keep_is_a_loss(importer: Importer) -> None:
    members = [member(1, n, user_id="é" * length) for n, length in enumerate((255, 256))]
    report = importer.bring([A], {A_ID: members})
    assert said(report) == [("loss", "user_id must be 1 to 255 characters long", f"{A_ID} {'é' * 255}")]
    assert list(importer.members()) == [(A_ID, "é" * 255)]


def test_members_of_a_deleted_organization_are_kept(importer: Importer) -> None:
    importer.bring([organization(1, status="deleted")], {A_ID: [member(1, 0)]})
    assert list(importer.members()) == [(A_ID, "user_0")]


def test_who_was_removed_here_stays_removed_in_every_part_of_a_long_list(importer: Importer) -> None:
    members = [member(1, user) for user in range(10_003)]
    importer.bring([A], {A_ID: members})
    with importer.change(A_ID) as (change, _):
        for user in ("user_5", "user_10001"):
            membership = memberships.lock(change.session, A_ID, user)
            assert membership is not None
            memberships.remove(change, membership)
    report = importer.bring([A], {A_ID: members})
    kept = "kept the database's version: removed since the import"
    assert said(report) == [("repair", kept, f"{A_ID} user_5"), ("repair", kept, f"{A_ID} user_10001")]
    assert len(importer.members()) == 10_001
