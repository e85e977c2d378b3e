"""The next step of a sync attempt, decided from plain facts.

``next_step`` is pure: it reads no database and calls no provider, so its whole truth table is a unit test. The
reconciler asks for a step, takes it, notes it in ``Progress``, and asks again until the step is ``complete``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from core.compare.charging_guard import may_end_at_stripe
from core.compare.desired_state import DesiredState
from core.db.models.billing_links import CustomerState, PlanState

IntentState = Literal["none", "create_customer", "create_subscription"]
CheckRequest = Literal["none", "requested", "only"]
"""requested: a provider webhook asked for a remote check. only: it did, and nothing else is left to do."""

MarksRequest = Literal["none", "due", "removal"]
"""due: of adopted objects, which do not have our metadata yet. removal: they are given back, so it is removed."""

Step = Literal[
    "ensure_customer",
    "ensure_subscription",
    "end_subscription",
    "refuse_to_end",
    "write_marks",
    "remove_marks",
    "remove_payer",
    "check",
    "complete",
]
STEPS: Final[tuple[Step, ...]] = (
    "ensure_customer",
    "ensure_subscription",
    "end_subscription",
    "refuse_to_end",
    "write_marks",
    "remove_marks",
    "remove_payer",
    "check",
    "complete",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """What the link's row says. ``fingerprint_matches``: the desired customer is the one that was applied last.

    ``scheduled_date_known``: the organization's row has the date on which its pending plan takes effect.
    """

    customer: CustomerState
    fingerprint_matches: bool
    has_subscription: bool
    plan: PlanState
    plan_code: str | None
    next_plan_code: str | None
    intent: IntentState
    scheduled_date_known: bool
    check: CheckRequest
    marks: MarksRequest = "none"
    sold_plan_code: str | None = None
    """The plan when it was last confirmed, also while ``plan_code`` is not known."""
    is_moved: bool = False
    """An operator said that this provider is to charge no more."""
    has_ended: bool = False
    """It is moved, and the subscription has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What this attempt has done. ``plan_took_effect``: the check found that the scheduled plan is active."""

    customer_written: bool = False
    subscription_written: bool = False
    subscription_ended: bool = False
    marks_written: bool = False
    marks_removed: bool = False
    payer_removed: bool = False
    checked: bool = False
    plan_took_effect: bool = False


def next_step(link: LinkFacts, desired: DesiredState, progress: Progress) -> Step:
    """``refuse_to_end``: only a setting changed, and a lost setting must end nothing (money.md 23)."""
    if link.marks == "removal":
        return _step_to_the_removal(link, desired, progress)
    if not desired.active:
        return _step_to_the_end(link, progress)
    if desired.removes_payer:
        return _step_to_the_other_provider(link, progress)
    return _step_to_the_desired(link, desired, progress)


def _step_to_the_removal(link: LinkFacts, desired: DesiredState, progress: Progress) -> Step:
    """What is given back gets nothing else. Only our metadata says what is paid until a scheduled plan takes effect, so
    it can be removed once that is cancelled.
    """
    is_cancelled = link.next_plan_code is not None and desired.active and desired.next_plan_code is None
    # After a request that failed the plan is not known, and is the one that was last confirmed.
    plan_code = link.plan_code or link.sold_plan_code
    if is_cancelled and desired.plan_code == plan_code is not None and not progress.subscription_written:
        return "ensure_subscription"
    return "complete" if progress.marks_removed else "remove_marks"


def _step_to_the_desired(link: LinkFacts, desired: DesiredState, progress: Progress) -> Step:
    if _needs_customer(link, progress):
        return "ensure_customer"
    if desired.plan_code is None:
        if _may_have_subscription(link, progress):
            may_end = link.is_moved or may_end_at_stripe(
                link.plan_code, desired.uncharged_plan_code, link.plan, link.customer
            )
            return "end_subscription" if may_end else "refuse_to_end"
    elif _needs_subscription(link, desired, progress):
        return "ensure_subscription"
    if link.marks == "due" and not progress.marks_written:
        return "write_marks"
    return "check" if _may_check(link, progress) else "complete"


def _step_to_the_end(link: LinkFacts, progress: Progress) -> Step:
    """End the subscription that we created, if one can exist; the customer stays (money.md 12)."""
    # The customer may exist already. Its id is stored, so that no unknown customer is left behind.
    if link.intent == "create_customer" and not progress.customer_written:
        return "ensure_customer"
    # Also if none is known: a subscription that a late worker created would charge indefinitely.
    may_have_subscription = (
        link.has_subscription or link.customer in {"unknown", "applied"} or link.intent == "create_subscription"
    )
    return "end_subscription" if may_have_subscription and not progress.subscription_ended else "complete"


def _step_to_the_other_provider(link: LinkFacts, progress: Progress) -> Step:
    """What is used is billed to the payer while it is there. Another attempt begins the subscription without one."""
    if not (link.has_ended or progress.subscription_ended):
        return "end_subscription"
    return "complete" if progress.payer_removed else "remove_payer"


def _needs_customer(link: LinkFacts, progress: Progress) -> bool:
    if progress.customer_written:
        return False
    return link.customer == "absent" or not link.fingerprint_matches or link.intent == "create_customer"


def _may_have_subscription(link: LinkFacts, progress: Progress) -> bool:
    if progress.subscription_ended:
        return False
    return link.has_subscription or link.intent == "create_subscription"


def _needs_subscription(link: LinkFacts, desired: DesiredState, progress: Progress) -> bool:
    """Whether the subscription must be created, changed, or read for the time when its scheduled plan takes effect."""
    if progress.subscription_written:
        return False
    if progress.plan_took_effect or link.intent != "none":
        return True
    if (desired.plan_code, desired.next_plan_code) == (link.plan_code, link.next_plan_code):
        return desired.is_charging and desired.next_plan_code is not None and not link.scheduled_date_known
    # If the other provider charges and its period ended first, this one changes to the same plan on its own date.
    is_already_scheduled = link.plan_code is not None and link.next_plan_code == desired.plan_code
    return desired.is_charging or desired.next_plan_code is not None or not is_already_scheduled


def _may_check(link: LinkFacts, progress: Progress) -> bool:
    """A check may fail, and the follow-ups of a subscription that was just created or ended must not wait for it.

    The next attempt does the check then. Writing a known customer a second time does no harm.
    """
    if progress.checked:
        return False
    only_rewrote_customer = (
        link.customer != "absent" and not progress.subscription_written and not progress.subscription_ended
    )
    return link.check == "only" or (link.check == "requested" and only_rewrote_customer)
