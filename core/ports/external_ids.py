"""The ids under which Lago has an organization's customer and subscription, and which ids Lago's API can address.

What billing-sync creates has the organization's id. What was adopted keeps the ids that it had before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_EXTERNAL_ID_LENGTH: Final = 255  # of our columns; Lago sets no limit (lago.md 3.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalIds:
    """Lago only. None: the organization's id."""

    customer_id: str | None = None
    subscription_id: str | None = None

    def customer_of(self, org_id: str) -> str:
        return self.customer_id or org_id

    def subscription_of(self, org_id: str) -> str:
        return self.subscription_id or org_id


OWN_IDS: Final = ExternalIds()


def unaddressable_reason(external_id: str) -> str | None:
    """Why a request cannot name this id for certain, as the end of a sentence; None if it can.

    Lago's routes of customers, and before August 2026 those of subscriptions, say nothing of what an id is, so Rails
    ends it at a dot and takes the rest for a format: ``GET /customers/acme.com`` is customer ``acme``, and so is a
    DELETE. Written as ``%2E`` Rails reads the whole id. But by RFC 3986 both are the same address, and a proxy may turn
    one into the other (lago-api config/routes.rb; the recording of a real server found such a customer by no GET).
    ``POST /subscriptions`` strips blanks at both ends of an id, and ``POST /customers`` does not.
    """
    if "." in external_id:
        return "it has a dot, at which Lago may end it"
    if external_id != external_id.strip() or not external_id.isprintable():
        return "it begins or ends with a blank, or has a character that cannot be printed"
    if not 0 < len(external_id) <= MAX_EXTERNAL_ID_LENGTH:
        return f"it is not 1 to {MAX_EXTERNAL_ID_LENGTH} characters long"
    return None
