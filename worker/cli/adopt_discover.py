"""The command that finds what is at the providers, and writes the table of what is proposed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.padding import Padding
from rich.text import Text
from sqlalchemy import func, select

from core.adoption import table
from core.adoption.begun_charge import begun_charge
from core.adoption.discovery import DISCOVERY_PURPOSE, Discovery
from core.adoption.discovery_store import DiscoveryStage, DiscoveryTakenOverError
from core.adoption.proposal import ProposalRules
from core.adoption.row import ADOPTION_ACTIONS, AdoptionAction, AdoptionRow
from core.adoption.table_errors import AdoptionTableError
from core.catalog.plans import Catalog
from core.db.database import Database
from core.db.models.organizations import Organization
from core.ports.spec import PROVIDER_NAMES
from core.reconcile.low_priority_reader import LowPriorityReader
from tasks.base import Runtime
from worker.cli import cause, descriptions, output
from worker.cli.adopt_table import show_interruption
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.output import Column
from worker.cli.progress import OnProgress, progress_bar
from worker.cli.worker_runtime import open_worker_runtime

CONFLICTS_SHOWN: Final = 5
OBSERVED_SHOWN: Final = 20

_DISCOVERY_STAGE_LABELS: Final[dict[DiscoveryStage, str]] = {
    "organizations": "organizations",
    "stripe_customers": "customers at Stripe",
    "stripe_subscriptions": "subscriptions at Stripe",
    "lago_customers": "customers at Lago",
    "lago_subscriptions": "subscriptions at Lago",
    "lago_discounts": "coupons at Lago",
    "matching": "customers matched",
    "missing": "organizations without a customer",
}
_ACTION_MEANINGS: Final[dict[AdoptionAction, str]] = {
    "adopt": "at the catalog's price, or without a subscription",
    "adopt-keep-price": "at another price, which it keeps",
    "change-to-catalog": "gets the catalog's price",
    "skip": "stays outside of billing-sync",
    "conflict": "cannot be adopted as it is; the reason says what to do",
}


def discover(
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the table is written: a .csv or .json file.")
    ],
    as_json: output.JsonOption = False,
) -> None:
    """Find who is who at Stripe and Lago, and write a table of what is proposed. Writes nothing to them.

    A run that was interrupted goes on where it was. The table is for its owner only, and never replaces a file. An
    organization without a customer that may be the one of a customer in a conflict is observed from then on, also where
    MANAGEMENT is manage: new customers would charge whoever pays already.

    JSON: {"file", "rows", "actions": {action: count}, "begins", "managed", "observed": [org_id]}. "begins": rows that
    would be adopted and are not charged yet, and are once managed. "managed": organizations that have nothing left to
    adopt.
    """
    with failures_as_messages_of(out), open_worker_runtime() as runtime:
        discovery = _discovery(runtime)
        with progress_bar() as on_progress:
            run = discovery.run(_on_stage(runtime.database, on_progress))
        found = _FoundRows(runtime.catalog)
        count = table.write_table(out, found.noting(discovery.rows(run)))
        actions = discovery.counts(run)
        discovery.end(run)
        names = _names(runtime.database, run.observed[:OBSERVED_SHOWN])
    if as_json:
        document = {"file": str(out), "rows": count, "actions": actions, "begins": found.starting}
        output.show_json({**document, "managed": run.managed, "observed": run.observed})
        return
    _show_summary(out, count, actions, run.managed)
    _show_begun(found.starting)
    _show_conflicts(found.conflicts, actions["conflict"])
    _show_observed(names, len(run.observed))
    if any(actions[action] for action in table.APPLIED_ACTIONS):
        command = f"`billing-sync adopt apply {out} --dry-run`"
        output.show("", "Read the table, correct what is not right, and then:", command)


def _discovery(runtime: Runtime) -> Discovery:
    reconciler = runtime.reconciler
    return Discovery(
        database=runtime.database,
        reader=LowPriorityReader(
            readers=runtime.inventories, purpose=DISCOVERY_PURPOSE, gates=reconciler.request_gates
        ),
        account_guard=reconciler.account_guard,
        rules=ProposalRules(catalog=runtime.catalog),
        clock=runtime.clock,
        cause=cause.of_command("adopt discover"),
    )


@contextmanager
def failures_as_messages_of(out: Path) -> Iterator[None]:
    try:
        table.refuse_unwritable(out)
        yield
    except AdoptionTableError as error:
        raise UsageError(str(error)) from error
    except DiscoveryTakenOverError as error:
        raise CommandFailedError(str(error)) from error
    except KeyboardInterrupt:
        show_interruption("No table is written")
        raise


def _on_stage(database: Database, on_progress: OnProgress) -> Callable[[DiscoveryStage, int], None]:
    with database.read() as session:
        organizations = session.scalar(select(func.count(Organization.id))) or 0

    def on_step(stage: DiscoveryStage, done: int) -> None:
        total = max(organizations, done) if stage == "organizations" else None
        on_progress(_DISCOVERY_STAGE_LABELS[stage], done, total)

    return on_step


@dataclass(slots=True)
class _FoundRows:
    """What the summary says about the rows, without all of them. ``starting``: how many begin to be charged."""

    catalog: Catalog
    conflicts: list[AdoptionRow] = field(default_factory=list)
    starting: int = 0

    def noting(self, rows: Iterable[AdoptionRow]) -> Iterator[AdoptionRow]:
        """The same rows."""
        for row in rows:
            if row.action == "conflict" and len(self.conflicts) < CONFLICTS_SHOWN:
                self.conflicts.append(row)
            self.starting += begun_charge(row, self.catalog) is not None
            yield row


def _show_begun(begun: int) -> None:
    if begun == 1:
        output.show("", "One of those to adopt has no subscription: one begins, and is charged, once it is managed.")
    elif begun:
        output.show("", f"{begun} of those to adopt have no subscription: one begins, and is charged, once managed.")


def _show_summary(out: Path, count: int, actions: dict[AdoptionAction, int], managed: int) -> None:
    if managed:
        have = "has" if managed == 1 else "have"
        output.show(f"{descriptions.plural(managed, 'organization')} {have} nothing left to adopt.")
    output.show(f"{out} has {descriptions.plural(count, 'row')}; only you can read it.")
    shown = [action for action in ADOPTION_ACTIONS if actions[action]]
    if shown:
        columns: list[Column[AdoptionAction]] = [
            Column("action", lambda action: action),
            Column("rows", lambda action: str(actions[action]), justify="right"),
            Column("meaning", lambda action: _ACTION_MEANINGS[action], kind="fold"),
        ]
        output.show("", output.table(shown, columns))


def _names(database: Database, org_ids: Sequence[str]) -> dict[str, str]:
    with database.read() as session:
        return {org_id: session.get_one(Organization, org_id).name for org_id in org_ids}


def _show_observed(names: Mapping[str, str], total: int) -> None:
    if not names:
        return
    output.show(
        "",
        f"A customer in a conflict may belong to {descriptions.plural(total, 'organization')} without a customer. So "
        "that nobody is charged twice, nothing is written for these until you decide, whatever MANAGEMENT is:",
    )
    for org_id, name in names.items():
        output.show(Padding(Text.assemble((name, "bold"), f"  {org_id}"), (0, 0, 0, 2), expand=False))
    if total > len(names):
        output.show(f"and {total - len(names)} more; `billing-sync management report` has them")
    output.show(
        "Write the organization's id into org_id of the conflict if the customer is its own; if it has none, "
        "`billing-sync management inherit ORG` gives it the mode of all others, which makes new customers once it is "
        "managed."
    )


def _show_conflicts(conflicts: list[AdoptionRow], total: int) -> None:
    if not conflicts:
        return
    output.show("", "The first conflicts:" if total > len(conflicts) else "The conflicts:")
    for row in conflicts:
        ids = [
            f"{side.external_customer_id or side.customer_id} at {PROVIDER_NAMES[provider]}"
            for provider, side in row.sides.items()
        ]
        output.show(
            Padding(Text(" and ".join(ids), style="bold"), (0, 0, 0, 2), expand=False),
            Padding(Text(row.reason), (0, 0, 0, 4), expand=False),
        )
    if total > len(conflicts):
        output.show(f"and {total - len(conflicts)} more; the table has each reason")
