"""Commands that hand one organization over to billing-sync, or give it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Final

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from core.adoption import adoption, payer
from core.adoption import release as adoption_release
from core.adoption.adopter import Adopter, AdoptionResult
from core.adoption.guards import NotAdoptedError, for_one
from core.adoption.prices import catalog_text
from core.adoption.proposal import ProposalRules
from core.adoption.release import Release
from core.adoption.row import AdoptionAction, AdoptionRow, AdoptionSide, adopt_command
from core.adoption.single_row import SingleRow
from core.catalog.plans import Catalog, CatalogPlan
from core.common.clock import utc_now
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.events.event_types import ChangeContext
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider
from tasks.base import Runtime
from worker.cli import adopt_table, cause, confirmation, descriptions, output, resources, stored_change
from worker.cli.adopt_table import adopter_of
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.worker_runtime import open_worker_runtime
from worker.config import settings as settings_of

_RELEASE_TEXTS: Final[dict[Release, str]] = {
    "released": "Given back: it is observed, and nothing is written to it.",
    "removes_marks": "It is given back once our metadata is removed in Stripe.",
    "released_before": "It is not adopted, so nothing was given back or changed.",
    "not_adopted": "",
}

_NOT_ADOPTABLE: Final[frozenset[AdoptionAction]] = frozenset({"conflict", "skip"})


def adopt(  # noqa: PLR0913 - its options
    *,
    org: descriptions.OrgArgument,
    keep_price: Annotated[bool, typer.Option("--keep-price", help="It keeps what it pays.")] = False,
    to_catalog: Annotated[bool, typer.Option("--to-catalog", help="It gets the price of plans.toml.")] = False,
    their_plan: Annotated[
        bool, typer.Option("--their-plan", help="It gets the plan that it pays for, also one that is sold no longer.")
    ] = False,
    give_payer: Annotated[
        bool, typer.Option("--give-payer", help="Let Lago charge one that was adopted without a payer.")
    ] = False,
    stripe: Annotated[str | None, typer.Option(metavar="cus_…", help="Its customer in Stripe.")] = None,
    lago: Annotated[str | None, typer.Option(metavar="EXTERNAL_ID", help="Its customer in Lago.")] = None,
    without_marks: Annotated[
        bool,
        typer.Option(
            "--without-marks", help="Add no metadata in Stripe until its first plan change, which needs ours."
        ),
    ] = False,
    yes: confirmation.YesOption = False,
) -> None:
    """Adopt what one organization has at the providers: `billing-sync adopt ORG`. Says what is paid, and both choices.

    Its customers are those that an import or `set-customer-id` brought, or those that --stripe and --lago name. What
    begins to charge or changes in price is confirmed first, and written once it is managed: at once if it is already.
    """
    if keep_price + to_catalog + give_payer > 1 or (give_payer and (stripe or lago or without_marks or their_plan)):
        message = "choose one: --keep-price, --to-catalog, or --give-payer alone"
        raise UsageError(message)
    if give_payer:
        _give_payer(org, yes=yes)
        return
    given: dict[Provider, str | None] = {"stripe": stripe, "lago": lago}
    choice: AdoptionAction | None = "adopt-keep-price" if keep_price else "change-to-catalog" if to_catalog else None
    with open_worker_runtime() as runtime:
        with runtime.database.read() as session:
            org_id = descriptions.find_organization(session, org).id
        adopt_table.confirm_accounts(runtime)
        adopter = _adopter(runtime, org_id, with_marks=not without_marks, takes_their_plan=their_plan)
        named = {provider: each for provider, each in given.items() if each is not None}
        row = _proposed(runtime, adopter, org_id, named)
        if (sentence := _adopted_before(runtime, org_id, row)) is not None:
            output.show(*row_lines(row, is_proposed=False), sentence)
            return
        # The reason of a conflict is the error, which says it once.
        output.show(*row_lines(row, is_proposed=row.action not in _NOT_ADOPTABLE))
        row = _chosen(row, choice, _command(org_id, named, their_plan=their_plan), runtime.catalog)
        is_managed = _show_whether_managed(runtime, org_id)
        result = _applied(runtime, adopter, row, yes=yes)
    _show_result(result, org_id, is_managed=is_managed)


def _adopter(runtime: Runtime, org_id: str, *, with_marks: bool, takes_their_plan: bool) -> Adopter:
    """What is shown from now on is of this version of the organization."""
    with runtime.database.read() as session:
        version = session.get_one(Organization, org_id).version
    adopter = adopter_of(runtime, "adopt", with_marks=with_marks, takes_their_plan=takes_their_plan)
    return replace(adopter, rules=replace(adopter.rules, shown_version=version))


def _applied(runtime: Runtime, adopter: Adopter, row: AdoptionRow, *, yes: bool) -> AdoptionResult:
    confirmed = partial(adopt_table.confirm_charges, runtime, yes=yes)
    results, failure = adopt_table.apply_confirmed(runtime, adopter, [row], None, confirmed)
    if failure is not None:
        raise failure
    return results[0]


def _show_whether_managed(runtime: Runtime, org_id: str) -> bool:
    with runtime.database.read() as session:
        own_mode = session.get_one(Organization, org_id).management
    is_managed = (own_mode or runtime.reconciler.management) == "manage"
    if is_managed:
        output.show("It is managed: what follows from its adoption is written at once.")
    return is_managed


def _proposed(runtime: Runtime, adopter: Adopter, org_id: str, given: dict[Provider, str]) -> AdoptionRow:
    rules = ProposalRules(catalog=runtime.catalog, takes_their_plan=adopter.rules.takes_their_plan)
    try:
        return SingleRow(database=runtime.database, read=adopter.read, rules=rules).propose(org_id, given)
    except NotAdoptedError as error:
        raise CommandFailedError(for_one(error.reason)) from error


def _adopted_before(runtime: Runtime, org_id: str, row: AdoptionRow) -> str | None:
    """What it pays, and what changes that. None: not all of it is adopted."""
    with runtime.database.read() as session:
        if adoption.adopted_before(session, row) != org_id:
            return None
        organization = session.get_one(Organization, org_id)
        plan = runtime.catalog.plans.get(organization.plan_tier)
        its_links = {provider: session.get_one(BillingLink, (org_id, provider)) for provider in PROVIDERS}
    if all(link.ownership != "adopted" for link in its_links.values()):
        return "billing-sync made its customers, so there is nothing to adopt. Nothing was changed."
    before = "It was adopted before. Nothing was changed."
    if plan is None or plan.charged_by not in row.sides:
        return before
    return f"{before} {_price_sentence(its_links[plan.charged_by], row, plan)}"


def _price_sentence(link: BillingLink, row: AdoptionRow, plan: CatalogPlan) -> str:
    side = row.sides[plan.charged_by]
    if side.subscription_id is None:
        return f"It has no subscription at {PROVIDER_NAMES[plan.charged_by]} yet."
    listed = f"the catalog's price of {plan.tier}, {catalog_text(plan)}"
    if (side.amount, side.currency) == (plan.amount * (side.quantity or 1), plan.currency):
        return f"It pays {listed}."
    if link.sold_price_id is None and link.plan_state == "unknown":
        changes_once_managed = f"It pays {price_text(side)}, and gets {listed}, once it is managed."
        return f"{changes_once_managed} {_way_to_adopt_anew(row, '--keep-price', 'leaves its price as it is')}"
    keeps = f"It keeps its price: it pays {price_text(side)}, and {plan.tier} costs {catalog_text(plan)}."
    # Lago changes no price within a plan, and lowers none before the period ends.
    if plan.charged_by == "lago" and (side.price == plan.lago_plan_code or (side.amount or 0) > plan.amount):
        return f"{keeps} No command changes it to the catalog's, because Lago cannot do that: change it in Lago."
    return f"{keeps} {_way_to_adopt_anew(row, '--to-catalog', 'changes it to the one of the catalog')}"


def _way_to_adopt_anew(row: AdoptionRow, option: str, effect: str) -> str:
    org_id = str(row.org_id)
    release_command = f"`billing-sync adopt release {org_id}`"
    if row.action in _NOT_ADOPTABLE:
        return f"{release_command} gives it back; before it could be adopted again: {row.reason}."
    return f"{release_command}, and then {adopt_command(org_id, {}, option)}, {effect}."


def _command(org_id: str, named: Mapping[Provider, str], *, their_plan: bool) -> Callable[[str], str]:
    """The command to type with one of the two options."""
    also = " --their-plan" if their_plan else ""
    return lambda option: adopt_command(org_id, named, f"{option}{also}")


def _chosen(
    row: AdoptionRow, choice: AdoptionAction | None, command: Callable[[str], str], catalog: Catalog
) -> AdoptionRow:
    """With the operator's choice, where there is one to make. Raises ``CommandFailedError`` or ``UsageError``."""
    if row.action in _NOT_ADOPTABLE:
        message = f"it was not adopted: {for_one(row.reason)}"
        raise CommandFailedError(message)
    if row.action == "adopt":
        return row
    if choice is None:
        plan = catalog.plan(row.plan_tier or "")
        paid = price_text(row.sides[plan.charged_by]) if plan.charged_by in row.sides else "another price"
        message = (
            f"it pays {paid}, and {plan.tier} costs {catalog_text(plan)}: {command('--keep-price')} keeps its "
            f"price, {command('--to-catalog')} changes it to the catalog's"
        )
        raise UsageError(message)
    return replace(row, action=choice)


def _show_result(result: AdoptionResult, org_id: str, *, is_managed: bool) -> None:
    if result.kind == "already_adopted":  # by another command, since this one read it
        output.show("It was adopted before. Nothing was changed.")
    elif result.kind == "adopted":
        written = (
            "It is managed, so our metadata in Stripe, and what else it needs, is written now."
            if is_managed
            else "Nothing was written at a provider."
        )
        output.show(f"Adopted. {written}", *map(_indented, result.remarks))
        output.show(*stored_change.lines(settings_of.read(), org_id))
    else:
        message = f"{org_id} was not adopted: {for_one(result.reason or '')}"
        raise CommandFailedError(message)


def row_lines(row: AdoptionRow, *, is_proposed: bool = True) -> Iterator[RenderableType]:
    """What is there, in short lines, and what is proposed for it."""
    yield Text.assemble((row.our_name or row.org_id or "", "bold"), f"  {row.org_id or ''}")
    for provider, side in row.sides.items():
        external = f" ({side.external_customer_id})" if side.external_customer_id else ""
        yield _indented(f"{PROVIDER_NAMES[provider]}: customer {side.customer_id}{external}, {side.name or 'no name'}")
        if side.subscription_id is not None:
            yield _indented(f"subscription {side.subscription_id}: {price_text(side)}", 4)
        details = {"discount": side.coupon, "planned": side.planned, "payer": side.payer_id}
        yield from (_indented(f"{name}: {text}", 4) for name, text in details.items() if text)
    if is_proposed:
        yield _indented(f"→ {row.action}: {row.reason}")


def price_text(side: AdoptionSide) -> str:
    amount = amount_text(side.amount, side.currency or "") if side.amount is not None else "an unknown amount"
    times = f" for {side.quantity}" if side.quantity not in {None, 1} else ""
    return f"{amount}{times} a {side.interval or 'period'} on {side.price}"


def _indented(text: str, by: int = 2) -> Padding:
    return Padding(Text(text), (0, 0, 0, by), expand=False)


def _give_payer(org: str, *, yes: bool) -> None:
    settings = settings_of.read()
    with resources.open_database(settings) as database:
        with database.read() as session:
            found = descriptions.find_organization(session, org)
            stripe, lago = (session.get_one(BillingLink, (found.id, provider)) for provider in PROVIDERS)
        if not lago.without_payer:
            message = f"{found.id} was not adopted without a payer: `billing-sync status {found.id}` shows its links"
            raise UsageError(message)
        payer_name = stripe.customer_id or "the customer that is created for it"
        lines = [
            f"{found.name}  {found.id}",
            f"  once it is managed, Lago charges {payer_name} in Stripe for its subscription and for open invoices",
        ]
        confirmation.confirm(lines, yes=yes)
        with database.write() as session:
            organization = descriptions.lock_organization(session, found.id)
            change = ChangeContext(session, utc_now(), cause.of_command("adopt --give-payer"))
            is_given = payer.give_payer(change, organization)
    output.show("Stored." if is_given else "Nothing was changed.", *stored_change.lines(settings, found.id))


def release(*, org: descriptions.OrgArgument, yes: confirmation.YesOption = False) -> None:
    """Give an adopted organization back: our metadata in Stripe is removed, and nothing else is written to it.

    Its customers, subscriptions and prices stay as they are. It is observed from then on, and can be adopted again. Its
    own mode `manage` ends with it.
    """
    settings = settings_of.read()
    with resources.open_database(settings) as database:
        with database.read() as session:
            found = descriptions.find_organization(session, org)
            links = [session.get_one(BillingLink, (found.id, provider)) for provider in PROVIDERS]
            lines = [f"{found.name}  {found.id}", *_release_lines(links)]
        confirmation.confirm(lines, yes=yes)
        with database.write() as session:
            organization = descriptions.lock_organization(session, found.id)
            change = ChangeContext(session, utc_now(), cause.of_command("adopt release"))
            released = adoption_release.release(change, organization)
    if released == "not_adopted":
        message = f"{found.id} was not adopted: billing-sync made its customers, so there is nobody to give it back to"
        raise UsageError(message)
    output.show(_RELEASE_TEXTS[released], *stored_change.lines(settings, found.id))


def _release_lines(links: Sequence[BillingLink]) -> Iterator[str]:
    for provider, link in zip(PROVIDERS, links, strict=True):
        if link.ownership == "adopted":
            yield f"  {PROVIDER_NAMES[provider]} customer {link.customer_id} stays as it is, and is given back"
