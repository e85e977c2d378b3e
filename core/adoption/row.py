"""One row of the adoption table: an organization, what it has at each provider, and what is proposed.

The table is written by ``discover``, read and changed by an operator, and applied row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from core.ports.spec import Provider

AdoptionAction = Literal["adopt", "adopt-keep-price", "change-to-catalog", "skip", "conflict"]
"""adopt: it pays the catalog's price, and nothing changes. adopt-keep-price: it pays another price, and keeps it.
change-to-catalog: it gets the catalog's price. skip: it stays as it is, outside of billing-sync. conflict: it cannot be
adopted as it is; ``reason`` says why."""
ValueSource = Literal["stripe", "lago", "ours"]
"""Whose name or address the organization has afterwards."""
ADOPTION_ACTIONS: Final[tuple[AdoptionAction, ...]] = (
    "adopt",
    "adopt-keep-price",
    "change-to-catalog",
    "skip",
    "conflict",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionSide:
    """What is there at one provider. ``external_*``: Lago only. ``price``: Stripe's price id or Lago's plan code.

    ``amount``: of the whole subscription for one period, before discounts, in ISO minor units; None: it has no flat
    amount. ``interval`` such as "month" or "3 months". ``planned``: a planned end, a pause, a schedule, in words.
    """

    customer_id: str
    external_customer_id: str | None = None
    subscription_id: str | None = None
    external_subscription_id: str | None = None
    name: str | None = None
    email: str | None = None
    price: str | None = None
    amount: int | None = None
    currency: str | None = None
    interval: str | None = None
    quantity: int | None = None
    coupon: str | None = None
    trial_ends_at: datetime | None = None
    planned: str | None = None
    next_at: datetime | None = None
    has_payment_method: bool | None = None
    payer_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptionRow:
    """``org_id`` None: a new organization is made. ``matched_by``: the strong key; None: names or addresses only.

    ``plan_tier``: ours. ``difference``: what the catalog's price is above theirs for one period, in ISO minor units of
    ``currency``; negative if it is lower; None if it is not known. Only ``change-to-catalog`` changes that. Where
    nobody is charged yet it is the whole price, which begins. ``suggestion``: what an operator may confirm.
    ``proposed_org_id``: what ``org_id`` was when the table was written.
    """

    org_id: str | None
    sides: dict[Provider, AdoptionSide]
    matched_by: str | None
    plan_tier: str | None
    difference: int | None
    currency: str | None
    name_source: ValueSource
    email_source: ValueSource
    our_name: str | None = None
    our_email: str | None = None
    action: AdoptionAction
    reason: str
    suggestion: str | None = None
    proposed_org_id: str | None = None


def adopt_command(org_id: str, ids: Mapping[Provider, str], option: str = "") -> str:
    """What an operator types to adopt one organization. ``ids``: its customers, as the command names them."""
    given = "".join(f" --{provider} {key}" for provider, key in ids.items())
    return f"`billing-sync adopt {org_id}{option and f' {option}'}{given}`"


def side_ids(row: AdoptionRow) -> dict[Provider, str]:
    """The customers of a row, as ``adopt_command`` names them."""
    return {provider: side.external_customer_id or side.customer_id for provider, side in row.sides.items()}
