"""The command that decides a conflict: our state is restored, or what somebody changed at a provider is taken over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from core.common.clock import utc_now
from core.compare.diff import DiffRules
from core.db.database import Database
from core.drift import conflict_resolver
from core.drift.conflict_resolver import CannotResolveError, ConflictResolver
from core.drift.provider_reader import DriftReader
from core.organizations import commands as organizations
from core.ports.spec import ARRANGED_AT_PROVIDER, OTHER_TERMS, PROVIDER_NAMES, Provider
from core.reconcile import payment_problems
from core.reconcile.account_guard import AccountGuard
from core.reconcile.link_status import LinkReport
from core.reporting import overview
from core.reporting.overview import OrganizationReport
from worker.cli import cause, confirmation, descriptions, leaving, output, resources, stored_change
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.worker_runtime import open_worker_runtime
from worker.config import settings as settings_of


def resolve(
    *,
    org: descriptions.OrgArgument,
    ours: Annotated[bool, typer.Option("--ours", help="Restore our state at the provider.")] = False,
    theirs: Annotated[bool, typer.Option("--theirs", help="Take over what the provider has.")] = False,
    dispute: Annotated[bool, typer.Option("--dispute", help="You have dealt with the lost dispute.")] = False,
    yes: confirmation.YesOption = False,
) -> None:
    """Decide about a link that is on hold because somebody changed it at a provider: --ours or --theirs.

    `billing-sync parked` shows what was changed. With --theirs the provider is read again, and the organization gets
    the plan or the payer that it has there. What an organization cannot have is refused, and nothing is changed. The
    command says first what it will change, and where.

    --dispute is for a lost dispute, which Lago never takes back: it is a payment problem no more. One that is lost
    later is shown again. Nothing is changed at a provider.
    """
    if ours + theirs + dispute != 1:
        message = (
            "choose one: --ours restores our state at the provider, --theirs takes over what the provider has, "
            "--dispute closes a lost dispute"
        )
        raise UsageError(message)
    settings = settings_of.read()
    with resources.open_database(settings) as database:
        if dispute:
            _close_dispute(database, org, yes=yes)
            return
        report = _report(database, org)
        org_id, conflicts = report.id, _conflicts(report)
        if ours:
            confirmation.confirm(list(_ours_lines(report, conflicts)), yes=yes)
            _keep_ours(database, org_id, [each.provider for each in conflicts])
    if theirs:
        _take_theirs(org_id, conflicts, yes=yes)
    output.show(*stored_change.lines(settings, org_id))


def _report(database: Database, query: str) -> OrganizationReport:
    with database.read() as session:
        org_id = descriptions.find_organization(session, query).id
        report = overview.organization_report(session, org_id, utc_now())
    if report is None:
        message = f"there is no organization {org_id} any more; nothing was stored"
        raise UsageError(message)
    return report


def _conflicts(report: OrganizationReport) -> list[LinkReport]:
    """The links that are on hold for a conflict."""
    conflicts = [link for link in report.links.values() if link.is_conflict]
    if not conflicts:
        message = (
            f"{report.id} is not on hold for a change at a provider: `billing-sync status {report.id}` shows its state"
        )
        raise UsageError(message)
    return conflicts


def _close_dispute(database: Database, query: str, *, yes: bool) -> None:
    report = _report(database, query)
    if not any(link.payment_status == "dispute_lost" for link in report.links.values()):
        raise _no_dispute(report.id)
    confirmation.confirm(
        [f"The lost dispute of {report.id} is closed here. Nothing is changed at a provider."], yes=yes
    )
    with database.write() as session:
        organizations.lock(session, report.id)
        is_closed = payment_problems.close_dispute(session, report.id)
    if not is_closed:
        raise _no_dispute(report.id)
    output.show("The dispute is closed.")


def _no_dispute(org_id: str) -> UsageError:
    return UsageError(f"{org_id} has no lost dispute: `billing-sync status {org_id}` shows its payment problems")


def _ours_lines(report: OrganizationReport, conflicts: Sequence[LinkReport]) -> Iterator[str]:
    for link in conflicts:
        yield f"{_object_of(link)} is on hold: {link.error_message}"
        yield f"→ {_what_follows(report, link)}"


def _object_of(link: LinkReport) -> str:
    """The provider and what we have there: that is what an attempt writes to."""
    ids = [
        f"{object_type} {object_id}"
        for object_type, object_id in (("customer", link.customer_id), ("subscription", link.subscription_id))
        if object_id is not None
    ]
    return ", ".join([PROVIDER_NAMES[link.provider], *ids])


def _keep_ours(database: Database, org_id: str, providers: list[Provider]) -> None:
    for provider in providers:
        try:
            conflict_resolver.keep_ours(database, utc_now, org_id, provider, actor=cause.actor())
        except CannotResolveError as error:
            raise CommandFailedError(str(error)) from error


def _what_follows(report: OrganizationReport, link: LinkReport) -> str:
    provider_name = PROVIDER_NAMES[link.provider]
    if link.error_code in {OTHER_TERMS, ARRANGED_AT_PROVIDER}:
        return f"{provider_name} will be read again: if nothing changed there, the link is on hold again."
    plan = f"plan {descriptions.plan_text(report.plan_tier, report.pending_plan_tier)}"
    state = "no subscription" if report.status == "deleted" else plan
    return f"Our state will be restored at {provider_name}: {report.name}, {state}."


def _take_theirs(org_id: str, conflicts: Sequence[LinkReport], *, yes: bool) -> None:
    with open_worker_runtime() as runtime:
        reconciler = runtime.reconciler
        resolver = ConflictResolver(
            database=runtime.database,
            provider_reader=DriftReader.for_reconciler(reconciler),
            rules=DiffRules(catalog=reconciler.catalog, policy=reconciler.policy, is_remote_check=True),
            clock=utc_now,
            actor=cause.actor(),
        )
        refusals: list[str] = []
        for link in conflicts:
            _confirm_account(reconciler.account_guard, link.provider)
            try:
                previewed = resolver.preview_theirs(org_id, link.provider)
                confirmation.confirm(_theirs_lines(org_id, link, previewed), yes=yes)
                taken = resolver.take_theirs(org_id, link.provider)
            except CannotResolveError as error:
                refusals.append(str(error))
                continue
            output.show(f"Taken over from {PROVIDER_NAMES[link.provider]}: {_listed(taken)}.")
        with runtime.database.read() as session:
            ends_without_credit = leaving.count_ends_without_credit(session, [org_id], reconciler.catalog)
    if ends_without_credit:
        output.show(leaving.no_credit_notice(ends_without_credit))
    if refusals:
        raise CommandFailedError("\n".join(refusals))


def _theirs_lines(org_id: str, link: LinkReport, previewed: Sequence[str]) -> list[str]:
    provider_name = PROVIDER_NAMES[link.provider]
    return [
        f"{_object_of(link)} is on hold: {link.error_message}",
        f"→ {org_id} gets from {provider_name}: {_listed(previewed)}. {provider_name} keeps what it has.",
    ]


def _listed(changes: Sequence[str]) -> str:
    return ", ".join(changes) or "nothing, since both agree"


def _confirm_account(guard: AccountGuard, provider: Provider) -> None:
    """Raises ``WrongAccountError``, or the provider's error: with another account's key, nothing there means ours."""
    for error in guard.confirm():
        if error.provider == provider:
            raise error
