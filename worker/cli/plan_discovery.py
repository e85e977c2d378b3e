"""`plans discover`: a proposal for the plan catalog, from what is sold. It writes one new file and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from core.adoption.plans_in_use import read_plans_in_use
from core.adoption.proposed_catalog import ProposedCatalog, ProposedTier, propose
from core.adoption.proposed_file import plans_file
from core.common.clock import utc_now
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES, Provider
from worker.cli import output, resources
from worker.cli.descriptions import plural
from worker.cli.exit_codes import CommandFailedError, UsageError
from worker.cli.output import Column
from worker.cli.progress import progress_bar
from worker.wiring.runtime import open_inventory_reader

REASONS_NAMED: Final = 5
OutOption = Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write; it must not exist.")]


def discover(*, out: OutOption) -> None:
    """Propose a plans.toml from the prices and plans that are in use at Lago and Stripe.

    It reads both accounts and writes only the file. Read the file: its comments say what was matched, who charges, what
    is sold no longer, and what cannot be a tier.
    """
    _refuse_existing(out)
    settings = resources.settings_with_providers()
    with open_inventory_reader(settings, "plans discover") as reader, progress_bar() as on_progress:
        found = read_plans_in_use(
            reader,
            lambda provider, object_type, listed: on_progress(
                f"{object_type} at {PROVIDER_NAMES[provider]}", listed, None
            ),
        )
    proposed = propose(found)
    if not proposed.is_usable:
        raise CommandFailedError(_nothing_usable(proposed))
    _write_new(out, plans_file(proposed, utc_now().date()))
    output.show(output.table(proposed.tiers, _tier_columns()), *_summary(proposed, out))


def _refuse_existing(file: Path) -> None:
    """Before both accounts are read."""
    if file.exists():
        message = f"{file} is there already, and it is not overwritten: name another file, and compare the two"
        raise UsageError(message)
    if not file.parent.is_dir():
        message = f"{file}: there is no folder {file.parent}; make it, or name another file"
        raise UsageError(message)


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        _refuse_existing(file)
    except OSError as error:
        message = f"{file} cannot be written ({error.strerror}): name a file in another folder"
        raise CommandFailedError(message) from error


def _nothing_usable(proposed: ProposedCatalog) -> str:
    """Why nothing was written."""
    if not (proposed.tiers or proposed.left_out or proposed.several_items):
        return (
            "neither Stripe nor Lago has a plan yet, so nothing was written: write plans.toml yourself (docs: Define "
            "plans), and create the plans with `billing-sync plans push`"
        )
    reasons = Counter(reason for each in proposed.left_out for reason in each.reasons)
    reasons.update({"it is archived": len(proposed.tiers)} if proposed.tiers else {})
    named = "; ".join(f"{reason} ({count})" for reason, count in reasons.most_common(REASONS_NAMED))
    several = sum(proposed.several_items.values())
    with_several = f"; {several} subscriptions have several prices" if several else ""
    return (
        f"no price and no plan can be a tier, so nothing was written: {named}{with_several}. Create prices with a flat "
        "amount and a lookup key, and run this again, or write plans.toml yourself (docs: Define plans)"
    )


def _summary(proposed: ProposedCatalog, out: Path) -> Iterator[str]:
    yield ""
    former = sum(len(each.former) for each in proposed.tiers)
    sold_no_longer = sum(not each.offered for each in proposed.tiers)
    parts = [plural(len(proposed.tiers), "tier")]
    parts += [f"{sold_no_longer} of them sold no longer"] if sold_no_longer else []
    parts += [plural(former, "former code")] if former else []
    yield f"Wrote {out}: {', '.join(parts)}."
    if proposed.left_out or proposed.several_items:
        left_out = plural(len(proposed.left_out), "price")
        yield f"{left_out} cannot be a tier; the end of the file says why, and how many customers are on them."
    yield "Nothing was changed at Stripe or Lago."
    yield f"Next: read {out} and correct it. Then `billing-sync plans check`."


def _tier_columns() -> list[Column[ProposedTier]]:
    def price_text(tier: ProposedTier) -> str:
        return f"{amount_text(tier.terms.amount, tier.terms.currency)} {tier.terms.interval}"

    def count(tier: ProposedTier, provider: Provider) -> str | None:
        return str(tier.sold[provider].subscriptions) if provider in tier.sold else None

    return [
        Column("tier", lambda tier: tier.tier, kind="fold"),
        Column("price", price_text),
        Column("charged by", lambda tier: PROVIDER_NAMES[tier.charged_by]),
        Column("in Stripe", lambda tier: count(tier, "stripe"), justify="right"),
        Column("in Lago", lambda tier: count(tier, "lago"), justify="right"),
        Column("on sale", lambda tier: "yes" if tier.offered else "no longer"),
    ]
