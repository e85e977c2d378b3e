"""Which credit a customer has on its balance at Stripe, as it was last seen. It delays nothing, and nothing moves it.

Stripe's next invoice uses the credit. Where no subscription of ours is left at Stripe, no invoice will come: the credit
is shown and listed until it is seen gone, because only an operator can refund or grant it.

No request is made for it. It is seen in the responses that an attempt and a remote check read anyway, and in the
listings of a drift check (``core.drift.listed_credit``), which also show the customers of deleted organizations.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from core.db.models.billing_links import BillingLink
from core.ports.observed import ObservedCredit


def values_after_attempt(link: BillingLink, credit: ObservedCredit | None, now: datetime) -> dict[str, Any]:
    """``credit`` None: no response showed the balance. ``link``: as the attempt read it."""
    if credit is None or (credit.amount == 0 and link.credit_amount is None):
        return {}
    return credit_values(credit, now if is_news(link, credit) else link.credit_since or now)


def is_news(link: BillingLink, credit: ObservedCredit) -> bool:
    if credit.amount == 0:
        return bool(link.credit_amount)
    return (credit.amount, credit.currency) != (link.credit_amount, link.credit_currency)


def credit_values(credit: ObservedCredit, since: datetime) -> dict[str, Any]:
    return {"credit_amount": credit.amount, "credit_currency": credit.currency, "credit_since": since}
