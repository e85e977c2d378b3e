"""What tests of charging moves share."""

from __future__ import annotations

from core.catalog.plans import Catalog


def refunding(catalog: Catalog) -> Catalog:
    """Nobody without a usage plan moves to Stripe while Lago credits what was paid."""
    ending = catalog.ending.model_copy(update={"lago_credit_note": "refund"})
    return catalog.model_copy(update={"ending": ending})
