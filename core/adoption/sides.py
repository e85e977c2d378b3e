"""What is there at one provider, as a row of the adoption table shows it. Pure."""

from __future__ import annotations

from core.adoption.matching import AccountCustomer
from core.adoption.provider_objects import ProviderObjects, side_of
from core.adoption.row import AdoptionSide
from core.ports.inventory import InventorySubscription


def adoption_side(each: AccountCustomer) -> AdoptionSide:
    """With several subscriptions it shows the oldest; such a row is a conflict."""
    subscription = min(each.subscriptions, key=_age_key, default=None)
    return side_of(ProviderObjects(customer=each.customer, subscription=subscription))


def _age_key(subscription: InventorySubscription) -> tuple[float, str]:
    return (subscription.created_at.timestamp() if subscription.created_at is not None else 0.0, subscription.id)
