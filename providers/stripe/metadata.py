"""Our marks: what we write into the metadata of the customers, subscriptions and credit notes in Stripe.

Each key has the prefix ``billing_sync_``, because a merchant's own objects may well have an ``org_id``. Two marks say
whose an object is: ``org_id`` is the organization, ``database_id`` the database that wrote it.

The keys of earlier versions had no prefix. On a subscription they count where ``org_id`` and ``plan`` stand side by
side and none has the prefix. A customer had ``org_id`` alone, so there it counts only if our database has the
customer's id. Such keys are never written or removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

PREFIX: Final = "billing_sync_"
ORG_ID_KEY: Final = f"{PREFIX}org_id"
DATABASE_ID_KEY: Final = f"{PREFIX}database_id"
ENDED_SUBSCRIPTION_KEY: Final = f"{PREFIX}ended_subscription"
FORMER_ORG_ID_KEY: Final = "org_id"
FORMER_ENDED_SUBSCRIPTION_KEY: Final = "ended_subscription"
# The Stripe metadata keys that say on which plan a subscription of an earlier version is.
_FORMER_KEYS: Final = ("org_id", "plan", "next_plan", "next_plan_at", "plan_price", "seats", "collection_method")


def read_marks(metadata: Mapping[str, str]) -> dict[str, str]:
    """The marks of a subscription without their prefix; empty if we did not write it."""
    marks = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
    if marks or not (metadata.get("org_id") and metadata.get("plan")):
        return marks
    return {key: metadata[key] for key in _FORMER_KEYS if key in metadata}


def only_ours(metadata: Mapping[str, str]) -> dict[str, str]:
    """The keys that we write, with their prefix."""
    return {key: value for key, value in metadata.items() if key.startswith(PREFIX)}


def to_metadata(marks: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a request. An empty value removes the mark."""
    return {f"{PREFIX}{name}": value for name, value in marks.items()}
