"""The columns of the adoption table: which value of a row each one has, and how its cell is written and read.

An operator may change five of the first six. The others say what was found, and come back as they were written. The
second one, ``row``, ties the first ones to the others: who sorts the first ones alone is refused. So is who sorts
``org_id`` alone, by ``proposed_org_id`` (``table``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from core.adoption import cells
from core.adoption.row import ADOPTION_ACTIONS, AdoptionAction, AdoptionRow, AdoptionSide, ValueSource
from core.ports.spec import PROVIDERS, Provider

ValueT = TypeVar("ValueT")

OPERATOR_COLUMNS: Final = ("action", "org_id", "plan_tier", "name_source", "email_source")
ROW_COLUMN: Final = "row"
CHECK_COLUMN: Final = "check"
VALUE_SOURCES: Final[tuple[ValueSource, ...]] = ("stripe", "lago", "ours")


class UnreadableCellError(ValueError):
    """``column``: the header of the cell. The message completes "column X: "."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(column, message)
        self.column = column
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class SideColumn:
    """``only``: the provider that has such a value; None: both."""

    name: str
    cell: Callable[[AdoptionSide], str]
    only: Provider | None = None


_ROW_COLUMNS: Final[Mapping[str, Callable[[AdoptionRow], str]]] = {
    "action": lambda row: row.action,
    "org_id": lambda row: row.org_id or "",
    "plan_tier": lambda row: row.plan_tier or "",
    "name_source": lambda row: row.name_source,
    "email_source": lambda row: row.email_source,
    "reason": lambda row: row.reason,
    "suggestion": lambda row: row.suggestion or "",
    "proposed_org_id": lambda row: row.proposed_org_id or "",
    "matched_by": lambda row: row.matched_by or "",
    "difference": lambda row: cells.difference_cell(row.difference, row.currency),
    "our_name": lambda row: row.our_name or "",
    "our_email": lambda row: row.our_email or "",
}
_SIDE_COLUMNS: Final = (
    SideColumn(name="customer_id", cell=lambda side: side.customer_id),
    SideColumn(name="external_customer_id", cell=lambda side: side.external_customer_id or "", only="lago"),
    SideColumn(name="name", cell=lambda side: side.name or ""),
    SideColumn(name="email", cell=lambda side: side.email or ""),
    SideColumn(name="subscription_id", cell=lambda side: side.subscription_id or ""),
    SideColumn(name="external_subscription_id", cell=lambda side: side.external_subscription_id or "", only="lago"),
    SideColumn(name="price", cell=lambda side: side.price or ""),
    SideColumn(name="amount", cell=lambda side: cells.money_cell(side.amount, side.currency)),
    SideColumn(name="interval", cell=lambda side: side.interval or ""),
    SideColumn(name="quantity", cell=lambda side: "" if side.quantity is None else str(side.quantity)),
    SideColumn(name="coupon", cell=lambda side: side.coupon or ""),
    SideColumn(name="trial_ends_at", cell=lambda side: cells.moment_cell(side.trial_ends_at)),
    SideColumn(name="planned", cell=lambda side: side.planned or ""),
    SideColumn(name="next_at", cell=lambda side: cells.moment_cell(side.next_at)),
    SideColumn(name="has_payment_method", cell=lambda side: cells.yes_or_no_cell(side.has_payment_method)),
    SideColumn(name="payer_id", cell=lambda side: side.payer_id or "", only="lago"),
)
# Written as they are: a spreadsheet leaves a small whole number alone.
_NUMBER_COLUMNS: Final = frozenset(f"{provider}_quantity" for provider in PROVIDERS)


def side_columns(provider: Provider) -> list[SideColumn]:
    return [each for each in _SIDE_COLUMNS if each.only in {None, provider}]


FOUND_COLUMNS: Final = (
    *(name for name in _ROW_COLUMNS if name not in OPERATOR_COLUMNS),
    *(f"{provider}_{column.name}" for provider in PROVIDERS for column in side_columns(provider)),
)
"""What was found: nobody may change it."""
# Second, so that whoever sorts some of the first columns alone takes it along.
HEADER: Final = (OPERATOR_COLUMNS[0], ROW_COLUMN, *OPERATOR_COLUMNS[1:], *FOUND_COLUMNS, CHECK_COLUMN)


def texts_of(row: AdoptionRow) -> dict[str, str]:
    """The cells of the row by column, before they are guarded, without its check."""
    texts = {name: cell(row) for name, cell in _ROW_COLUMNS.items()}
    for provider in PROVIDERS:
        side = row.sides.get(provider)
        for column in side_columns(provider):
            texts[f"{provider}_{column.name}"] = "" if side is None else column.cell(side)
    return {name: texts[name] for name in (*OPERATOR_COLUMNS, *FOUND_COLUMNS)}


def to_cell(name: str, text: str) -> str:
    return text if name in _NUMBER_COLUMNS else cells.guarded(text)


def row_of(texts: Mapping[str, str]) -> AdoptionRow:
    """Raises ``UnreadableCellError``."""
    difference, currency = _read(texts, "difference", cells.difference_of, "a difference such as 10.00 USD more")
    return AdoptionRow(
        org_id=texts["org_id"].strip() or None,
        sides={provider: side for provider in PROVIDERS if (side := _side_of(texts, provider)) is not None},
        matched_by=texts["matched_by"] or None,
        plan_tier=texts["plan_tier"].strip() or None,
        difference=difference,
        currency=currency,
        name_source=_source(texts, "name_source"),
        email_source=_source(texts, "email_source"),
        our_name=texts["our_name"] or None,
        our_email=texts["our_email"] or None,
        action=_action(texts["action"]),
        reason=texts["reason"],
        suggestion=texts["suggestion"] or None,
        proposed_org_id=texts["proposed_org_id"] or None,
    )


def _side_of(texts: Mapping[str, str], provider: Provider) -> AdoptionSide | None:
    def text(name: str) -> str | None:
        return texts.get(f"{provider}_{name}") or None

    customer_id = text("customer_id")
    if customer_id is None:
        return None
    amount, currency = _read(texts, f"{provider}_amount", cells.money_of, "an amount such as 49.00 USD")
    moment = "a time such as 2026-12-31 00:00:00 UTC"
    return AdoptionSide(
        customer_id=customer_id,
        external_customer_id=text("external_customer_id"),
        subscription_id=text("subscription_id"),
        external_subscription_id=text("external_subscription_id"),
        name=text("name"),
        email=text("email"),
        price=text("price"),
        amount=amount,
        currency=currency,
        interval=text("interval"),
        quantity=_read(texts, f"{provider}_quantity", cells.whole_number_of, "a whole number"),
        coupon=text("coupon"),
        trial_ends_at=_read(texts, f"{provider}_trial_ends_at", cells.moment_of, moment),
        planned=text("planned"),
        next_at=_read(texts, f"{provider}_next_at", cells.moment_of, moment),
        has_payment_method=_read(texts, f"{provider}_has_payment_method", cells.yes_or_no_of, "yes or no"),
        payer_id=text("payer_id"),
    )


def _read(texts: Mapping[str, str], name: str, parse: Callable[[str], ValueT], expected: str) -> ValueT:
    try:
        return parse(texts[name])
    except ValueError:
        message = f"{texts[name]!r} is not {expected}"
        raise UnreadableCellError(name, message) from None


def _action(text: str) -> AdoptionAction:
    for action in ADOPTION_ACTIONS:
        if action == text.strip().lower():
            return action
    message = f"{text!r} is no action; write {', '.join(ADOPTION_ACTIONS[:-1])} or {ADOPTION_ACTIONS[-1]}"
    raise UnreadableCellError("action", message)


def _source(texts: Mapping[str, str], name: str) -> ValueSource:
    for source in VALUE_SOURCES:
        if source == texts[name].strip():
            return source
    message = f"{texts[name]!r} is not stripe, lago or ours"
    raise UnreadableCellError(name, message)
