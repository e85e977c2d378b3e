"""A proposed plan catalog as the text of ``plans.toml``, which our own loader reads.

It contains codes, ids of prices and names of plans. No customer is in it, and no key.
"""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from datetime import date
from typing import Final

from core.adoption.plans_in_use import PriceInUse
from core.adoption.proposed_catalog import LeftOut, ProposedCatalog, ProposedTier, terms_of
from core.common.names import without_refused
from core.ports.minor_units import amount_text
from core.ports.spec import PROVIDER_NAMES

MAX_PLAN_NAME_LENGTH: Final = 200
RANK_STEP: Final = 10  # so that a plan fits between two others
PRICES_NAMED: Final = 10  # of those that are left out for the same reason
_WIDTH: Final = 100
_COMMAND: Final = "    "
_HEADER: Final = """\
A proposal for plans.toml, made on {today} from what is sold at Stripe and Lago. Nothing was changed at either.
Read it, correct what is wrong, and run `billing-sync plans check`, which compares it with both.

Each table below is one tier. Its name, after "plans.", is what your services and the API call it: change it now if you
like, and not once organizations have it. `amount` is in the currency's minor unit: 1900 is 19.00 USD. A change to a
higher `rank` applies at once, one to a lower rank at the end of the period. `charged_by` is who charges for the tier.
`former_codes` are codes under which it was sold: whoever was sold one stays on it. `offered = false`: it is sold no
longer; whoever has it keeps it, and nobody else gets it. New users get the lowest tier that is on sale. A code that is
called new is not at that provider yet: `billing-sync plans push` creates it."""
_ENDING: Final = """\
[ending] # how our subscription ends when its organization is deleted
lago_invoice = "generate"    # generate | skip: the final invoice
lago_credit_note = "credit"  # credit | refund | offset | skip: what was paid in advance
stripe_invoice_now = true    # bill what waits for an invoice, such as the difference of an upgrade
stripe_prorate = true        # credit unused time: to the balance if it was paid, else on the open invoice"""


def plans_file(catalog: ProposedCatalog, today: date) -> str:
    """``catalog`` has a tier that is offered."""
    blocks = [
        "\n#\n".join(_comment(part) for part in _HEADER.format(today=today).split("\n\n")),
        f'charged_by = "{catalog.charged_by}" # for tiers that do not say it themselves',
        _ENDING,
        *(_table(tier, rank * RANK_STEP, catalog) for rank, tier in enumerate(catalog.tiers)),
        *_rest(catalog),
    ]
    return "\n\n".join(blocks) + "\n"


def _table(tier: ProposedTier, rank: int, catalog: ProposedCatalog) -> str:
    terms, price = tier.terms, tier.charging.price
    lines = [
        *(_comment(note) for note in (*_notes(tier), *_rank_notes(tier, catalog))),
        f"[plans.{tier.tier}]",
        f"rank = {rank}",
        f"name = {_string(_name(price.name) or tier.tier)}",
        f"amount = {terms.amount}",
        f'currency = "{terms.currency}"',
        f'interval = "{terms.interval}"',
        f'lago_plan_code = "{tier.codes["lago"]}"{_new_code(tier, "lago" in tier.sold)}',
        f'stripe_lookup_key = "{tier.codes["stripe"]}"{_new_code(tier, "stripe" in tier.sold)}',
    ]
    if tier.charged_by != catalog.charged_by:
        lines.append(f'charged_by = "{tier.charged_by}"')
    if tier.former:
        codes = ", ".join(f'"{each.price.code}"' for each in tier.former)
        lines.append(f"former_codes = {{ stripe = [{codes}] }}")
    if not tier.offered:
        lines.append("offered = false")
    return "\n".join(lines)


def _new_code(tier: ProposedTier, is_sold: bool) -> str:  # noqa: FBT001 - of one provider
    return "" if is_sold else " # new; needed only if Stripe charges" if tier.charged_by == "lago" else " # new"


def _notes(tier: ProposedTier) -> Iterator[str]:
    yield "; ".join(_use_text(each) for each in tier.sold.values()) + "."
    yield from _match_notes(tier)
    yield from _charging_notes(tier)
    price = tier.sold.get("stripe")
    if price is not None and price.price.code is None and tier.charged_by == "stripe":
        yield (
            f"{_text(price.price.id)} has no lookup key, and the catalog finds a price by it. Set this one in Stripe "
            "before `billing-sync plans push`, which would create a second price:"
            f"\n{_COMMAND}stripe prices update {_text(price.price.id)} --lookup-key={tier.codes['stripe']}"
        )
    if "stripe" not in tier.sold and tier.terms.amount == 0:
        yield (
            "It costs nothing. If Stripe charges its customers for another tier, remove this one and name its code in "
            "`lago_usage_plan_code` of that tier: docs/how-to/usage-plans.md."
        )
    if not tier.offered:
        yield "It is archived in Stripe, so it is sold no longer."
    yield from _former_notes(tier)
    for other in tier.same_product:
        yield (
            f"plans.{other} has the same name. If one of the two is sold no longer, give it `offered=false`, or "
            "remove it and list its code in `former_codes` of the other."
        )
    for remark in tier.charging.price.remarks:
        yield f"Beside its amount: {_text(remark)}."


def _rank_notes(tier: ProposedTier, catalog: ProposedCatalog) -> Iterator[str]:
    """What `plans check` says of two neighbours in one currency."""
    below = [each for each in catalog.tiers if each.terms.currency == tier.terms.currency]
    below = below[: below.index(tier)]
    if below and below[-1].terms.yearly_amount == tier.terms.yearly_amount:
        yield (
            f"It costs the same per year as plans.{below[-1].tier}, so Lago would apply a downgrade between the two at "
            "once. `plans check` says so, too. Remove one of them, or sell it no longer, if that matters."
        )


def _use_text(found: PriceInUse) -> str:
    """Such as ``Stripe: price_1 (lookup key pro), 3 subscriptions``."""
    counted = "subscription" if found.subscriptions == 1 else "subscriptions"
    text = f"{_name_text(found)}, {found.subscriptions} {counted}"
    if found.provider == "lago" and found.charged != found.subscriptions:
        text += f", {found.charged} of them with a payer"
    return text


def _name_text(found: PriceInUse) -> str:
    price = found.price
    key = f" (lookup key {_text(price.code)})" if found.provider == "stripe" and price.code else ""
    return f"{PROVIDER_NAMES[found.provider]}: {_text(price.id)}{key}"


def _match_notes(tier: ProposedTier) -> Iterator[str]:
    if tier.matched_by == "code":
        yield "The two were matched by their codes."
        amounts = {terms_of(each).amount for each in tier.sold.values()}
        if len(amounts) > 1:
            plan, price = terms_of(tier.sold["lago"]), terms_of(tier.sold["stripe"])
            yield (
                f"They differ: {amount_text(plan.amount, plan.currency)} in Lago, "
                f"{amount_text(price.amount, price.currency)} in Stripe. The amount below is of the one that charges."
            )
    if tier.matched_by == "amount":
        yield "The two were matched because they cost the same. If they are not the same plan, part them."
    if tier.same_terms:
        yield (
            f"{tier.same_terms} at the other provider cost the same, so none was matched. If one of them is this plan, "
            "put its code below and remove its own table."
        )


def _charging_notes(tier: ProposedTier) -> Iterator[str]:
    stripe, lago = tier.sold.get("stripe"), tier.sold.get("lago")
    if stripe is not None and lago is not None and stripe.charged and lago.charged:
        yield (
            f"Stripe charges {stripe.charged} and Lago charges {lago.charged}. A tier is charged by one of the two, "
            f"here by {PROVIDER_NAMES[tier.charged_by]}, so the others cannot be adopted before they are moved."
        )
    if tier.charged_by == "lago" and lago is not None and lago.subscriptions and not lago.charged:
        yield "None of its customers has a payer in Lago, so Lago makes invoices and charges nobody."
    if lago is not None and lago.own_amounts:
        yield f"In Lago, {lago.own_amounts} pay an amount of their own. They can be adopted at it."


def _former_notes(tier: ProposedTier) -> Iterator[str]:
    for each in tier.former:
        yield f"Sold under it before: {_use_text(each)}, {_price_text(each)}."
    for each in tier.former_without_code:
        yield (
            f"Sold before: {_use_text(each)}, {_price_text(each)}. It has no lookup key, so it is no code. Its "
            "customers can be adopted at their price."
        )


def _rest(catalog: ProposedCatalog) -> Iterator[str]:
    if catalog.unused:
        lines = [_comment("On sale, and nobody is on it. Add what you sell:")]
        lines += [f"#   {_name_text(each)}, {_price_text(each)}" for each in catalog.unused[:PRICES_NAMED]]
        lines += _more(len(catalog.unused))
        yield "\n".join(lines)
    if catalog.left_out or catalog.several_items:
        yield "\n".join(_left_out_lines(catalog))


def _left_out_lines(catalog: ProposedCatalog) -> Iterator[str]:
    yield _comment(
        "What is sold and cannot be a tier. These customers stay as they are; `billing-sync adopt discover` lists them."
    )
    by_reasons: dict[tuple[str, ...], list[LeftOut]] = defaultdict(list)
    for each in catalog.left_out:
        by_reasons[each.reasons].append(each)
    for reasons, rows in by_reasons.items():
        sentence = _text("; ".join(reasons))
        yield _comment(f"{sentence[:1].upper()}{sentence[1:]}:")
        yield from (f"#   {_use_text(each.found)}" for each in rows[:PRICES_NAMED])
        yield from _more(len(rows))
        if "it has no lookup key" in reasons:
            yield _comment("Give each a lookup key in Stripe, and make the proposal again.")
    for provider, count in catalog.several_items.items():
        yield _comment(f"{PROVIDER_NAMES[provider]}: {count} subscriptions have several prices, and a tier has one.")


def _more(total: int) -> list[str]:
    return [f"#   and {total - PRICES_NAMED} more"] if total > PRICES_NAMED else []


def _price_text(found: PriceInUse) -> str:
    terms = terms_of(found)
    return f"{amount_text(terms.amount, terms.currency)} {terms.interval}"


def _comment(text: str) -> str:
    """A command, which is indented, is not wrapped."""
    lines: list[str] = []
    for line in text.replace("\n" + _COMMAND, "\0" + _COMMAND).split("\0"):
        wrapped = textwrap.wrap(line, _WIDTH, break_long_words=False, break_on_hyphens=False)
        lines += [line] if line.startswith(_COMMAND) else wrapped
    return "\n".join(f"# {line}" for line in lines)


def _name(name: str) -> str:
    return without_refused(without_refused(name)[:MAX_PLAN_NAME_LENGTH]).strip()


def _text(value: str) -> str:
    """On one line, whatever somebody gave a code or a plan as its name."""
    return " ".join(without_refused(value).split())


def _string(text: str) -> str:
    """TOML's basic strings are written as JSON's, once no control character is in them."""
    return json.dumps(text, ensure_ascii=False)
