"""The command that decides a conflict: our state is restored, or what somebody changed at a provider is taken over."""

from __future__ import annotations

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
from core.reconcile import commands, payment_problems
from core.reconcile.account_guard import AccountGuard
from worker.cli import descriptions, leaving, output, resources
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.worker_runtime import open_worker_runtime
from worker.config import settings as settings_of


def resolve(
    *,
    org: descriptions.OrgArgument,
    ours: Annotated[bool, typer.Option("--ours", help="Restore our state at the provider.")] = False,
    theirs: Annotated[bool, typer.Option("--theirs", help="Take over what the provider has.")] = False,
    dispute: Annotated[bool, typer.Option("--dispute", help="You have dealt with the lost dispute.")] = False,
) -> None:
    """Decide about a link that is on hold because somebody changed it at a provider: --ours or --theirs.

    `billing-sync parked` shows what was changed. With --theirs the provider is read again, and the organization gets
    the plan or the payer that it has there. What an organization cannot have is refused, and nothing is changed.

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
            _close_dispute(database, org)
            return
        org_id, providers = _conflicts(database, org)
        if ours:
            _keep_ours(database, org_id, providers)
    if theirs:
        _take_theirs(org_id, providers)
    output.show(f"`billing-sync status {org_id}` shows the result at the providers.")
    if settings.is_embedded:
        output.show(descriptions.EMBEDDED_NOTICE)


def _conflicts(database: Database, query: str) -> tuple[str, list[Provider]]:
    with database.read() as session:
        found = descriptions.find_organization(session, query)
        providers = commands.conflicting_providers(session, found.id)
    if not providers:
        message = (
            f"{found.id} is not on hold for a change at a provider: `billing-sync status {found.id}` shows its state"
        )
        raise UsageError(message)
    return found.id, providers


def _close_dispute(database: Database, query: str) -> None:
    with database.write() as session:
        org_id = descriptions.find_organization(session, query).id
        organizations.lock(session, org_id)
        is_closed = payment_problems.close_dispute(session, org_id)
    if not is_closed:
        message = f"{org_id} has no lost dispute: `billing-sync status {org_id}` shows its payment problems"
        raise UsageError(message)
    output.show("The dispute is closed. Nothing was changed at a provider.")


def _keep_ours(database: Database, org_id: str, providers: list[Provider]) -> None:
    for provider in providers:
        try:
            error_code = conflict_resolver.keep_ours(database, utc_now, org_id, provider)
        except CannotResolveError as error:
            raise CommandFailedError(str(error)) from error
        output.show(_what_follows(provider, error_code))


def _what_follows(provider: Provider, error_code: str | None) -> str:
    provider_name = PROVIDER_NAMES[provider]
    if error_code in {OTHER_TERMS, ARRANGED_AT_PROVIDER}:
        return f"{provider_name} will be read again: if nothing changed there, the link is on hold again."
    return f"Our state will be restored at {provider_name}."


def _take_theirs(org_id: str, providers: list[Provider]) -> None:
    with open_worker_runtime() as runtime:
        reconciler = runtime.reconciler
        resolver = ConflictResolver(
            database=runtime.database,
            provider_reader=DriftReader.for_reconciler(reconciler),
            rules=DiffRules(catalog=reconciler.catalog, policy=reconciler.policy, is_remote_check=True),
            clock=utc_now,
        )
        refusals: list[str] = []
        for provider in providers:
            _confirm_account(reconciler.account_guard, provider)
            try:
                taken = resolver.take_theirs(org_id, provider)
            except CannotResolveError as error:
                refusals.append(str(error))
                continue
            result = ", ".join(taken) or "nothing, since both agree"
            output.show(f"Taken over from {PROVIDER_NAMES[provider]}: {result}.")
        with runtime.database.read() as session:
            ends_without_credit = leaving.count_ends_without_credit(session, [org_id], reconciler.catalog)
    if ends_without_credit:
        output.show(leaving.no_credit_notice(ends_without_credit))
    if refusals:
        raise CommandFailedError("\n".join(refusals))


def _confirm_account(guard: AccountGuard, provider: Provider) -> None:
    """Raises ``WrongAccountError``, or the provider's error: with another account's key, nothing there means ours."""
    for error in guard.confirm():
        if error.provider == provider:
            raise error
