"""The states of a billing link, and the one table of their transitions.

A link has three states. ``state`` says whether it is reconciled, ``customer_state`` and ``plan_state`` what is known of
the provider. ``TRANSITIONS`` has every event that changes one of them. The statements take their values from it, each
row is run against both databases by a test, and ``docs/architecture/link-states.md`` is written from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, TypeVar

from sqlalchemy import ColumnElement, case

from core.db.models.billing_links import BillingLink, CustomerState, LinkState, PlanState
from core.ports.errors import ErrorKind, ParkedError

LinkEvent = Literal[
    # Of a sync attempt
    "customer_write_started",
    "customer_written",
    "subscription_write_started",
    "subscription_written",
    "subscription_end_started",
    "subscription_ended",
    "scheduled_plan_found",
    "completed",
    "parked",
    "conflict_found",
    "lease_lost",
    "observed",
    "payment_on_hold",
    # Of the organization and of operators
    "changed",
    "deleted",
    "retried",
    "retried_keeping_customer",
    "payment_released",
    "charging_moved",
    "conflict_ended",
    "conflict_ended_keeping_customer",
    "payer_decided",
    "downgrade_due",
    "customer_repaired",
    "plan_repaired",
    "customer_id_set",
    "customer_id_contested",
    "adopted",
    "adopted_with_subscription",
    "released",
    "older_customer_found",
    "check_requested",
    "mode_of_installation_changed",
]
StateT = TypeVar("StateT", LinkState, CustomerState, PlanState)

_ALL_CUSTOMER_STATES: Final[tuple[CustomerState, ...]] = ("absent", "unconfirmed", "unknown", "applied")
_ALL_PLAN_STATES: Final[tuple[PlanState, ...]] = ("unknown", "ending", "applied")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """From each state in which the event can happen to the state afterwards; ``None``: the state does not change.

    ``written_by``: the function that writes it.
    """

    meaning: str
    written_by: str
    link: Mapping[LinkState, LinkState] | None = None
    customer: Mapping[CustomerState, CustomerState] | None = None
    plan: Mapping[PlanState, PlanState] | None = None


class UndefinedTransitionError(ParkedError):
    """The table has no such transition. The link is parked, because going on would rest on a wrong assumption."""

    kind: ClassVar[ErrorKind] = "rejected"

    def __init__(self, provider: str, event: LinkEvent, state: str) -> None:
        super().__init__(provider, f"{event} cannot follow the state {state}: report this bug", "undefined_transition")


_ANY_CUSTOMER_UNCONFIRMED: Final[Mapping[CustomerState, CustomerState]] = {
    "absent": "absent",
    "unconfirmed": "unconfirmed",
    "unknown": "unconfirmed",
    "applied": "unconfirmed",
}
_KNOWN_CUSTOMER_UNKNOWN: Final[Mapping[CustomerState, CustomerState]] = {
    "absent": "absent",
    "unconfirmed": "unconfirmed",
    "unknown": "unknown",
    "applied": "unknown",
}
_EXISTING_CUSTOMER_UNKNOWN: Final[Mapping[CustomerState, CustomerState]] = {
    "absent": "absent",
    "unconfirmed": "unknown",
    "unknown": "unknown",
    "applied": "unknown",
}
_APPLIED_PLAN_UNKNOWN: Final[Mapping[PlanState, PlanState]] = {
    "unknown": "unknown",
    "ending": "ending",
    "applied": "unknown",
}

TRANSITIONS: Final[Mapping[LinkEvent, Transition]] = {
    "customer_write_started": Transition(
        meaning="The customer is about to be written. A crash or a lost response leaves its state unknown.",
        written_by="core.reconcile.attempt:SyncAttempt.prepare_customer_write",
        customer=_KNOWN_CUSTOMER_UNKNOWN,
    ),
    "customer_written": Transition(
        meaning="The provider has the customer as we want it.",
        written_by="core.reconcile.attempt:SyncAttempt.save_customer",
        customer=dict.fromkeys(_ALL_CUSTOMER_STATES, "applied"),
    ),
    "subscription_write_started": Transition(
        meaning="The subscription is about to be written.",
        written_by="core.reconcile.attempt:SyncAttempt.prepare_subscription_write",
        plan=_APPLIED_PLAN_UNKNOWN,
    ),
    "subscription_written": Transition(
        meaning="The provider has the subscription as we want it.",
        written_by="core.reconcile.outcomes:complete",
        plan=dict.fromkeys(_ALL_PLAN_STATES, "applied"),
    ),
    "subscription_end_started": Transition(
        meaning="The subscription is about to be ended. If it is found ended later, we ended it.",
        written_by="core.reconcile.attempt:SyncAttempt.prepare_subscription_end",
        plan=dict.fromkeys(_ALL_PLAN_STATES, "ending"),
    ),
    "subscription_ended": Transition(
        meaning="The provider has no subscription of ours.",
        written_by="core.reconcile.outcomes:complete",
        plan={"ending": "unknown"},
    ),
    "scheduled_plan_found": Transition(
        meaning="A remote check found that the scheduled plan is active: the subscription is read again.",
        written_by="core.reconcile.attempt:SyncAttempt.invalidate_plan",
        plan={"unknown": "unknown", "applied": "unknown"},
    ),
    "completed": Transition(
        meaning="The attempt applied its version.",
        written_by="core.reconcile.outcomes:complete",
        link={"active": "active"},
    ),
    "parked": Transition(
        meaning="The attempt failed, and repeating cannot help. It stays active if the organization changed meanwhile.",
        written_by="core.reconcile.outcomes:park",
        link={"active": "parked"},
    ),
    "conflict_found": Transition(
        meaning="A remote check, or a response, showed that somebody changed the provider.",
        written_by="core.reconcile.outcomes:put_on_hold",
        link={"active": "on_hold"},
        customer=_KNOWN_CUSTOMER_UNKNOWN,
    ),
    "observed": Transition(
        meaning="The organization is observed: what an attempt would do is stored, and nothing was sent.",
        written_by="core.reconcile.outcomes:observe",
        link={"active": "observed"},
    ),
    "payment_on_hold": Transition(
        meaning="The payment brake holds a change of what is paid. Nothing of it was sent.",
        written_by="core.reconcile.outcomes:put_change_on_hold",
        link={"active": "on_hold"},
    ),
    "lease_lost": Transition(
        meaning="An attempt lost its lease after it had sent a write. What it wrote last is unknown.",
        written_by="core.reconcile.outcomes:invalidate_after_lost_lease",
        customer=_KNOWN_CUSTOMER_UNKNOWN,
        plan=_APPLIED_PLAN_UNKNOWN,
    ),
    "changed": Transition(
        meaning="The organization changed in a way that a provider must see.",
        written_by="core.organizations.links:mark_for_sync",
        link={"active": "active", "parked": "active", "on_hold": "on_hold", "observed": "active"},
    ),
    "deleted": Transition(
        meaning=(
            "The organization was deleted, so billing ends: also a hold for a conflict or of the payment brake, not "
            "one since an import."
        ),
        written_by="core.organizations.links:release_deleted",
        link={"active": "active", "parked": "active", "on_hold": "active", "observed": "active"},
    ),
    "retried": Transition(
        meaning="An operator's retry: everything is read before it is written. A conflict stays on hold.",
        written_by="core.reconcile.commands:retry",
        link={"active": "active", "parked": "active", "on_hold": "active", "observed": "active"},
        customer=_ANY_CUSTOMER_UNCONFIRMED,
        plan=_APPLIED_PLAN_UNKNOWN,
    ),
    "retried_keeping_customer": Transition(
        meaning=(
            "The same at Lago if no subscription is stored. One may exist whose create was never answered, and the "
            "customer stays ours, so that it can be ended."
        ),
        written_by="core.reconcile.commands:retry",
        link={"active": "active", "parked": "active", "on_hold": "active", "observed": "active"},
        customer=_KNOWN_CUSTOMER_UNKNOWN,
        plan=_APPLIED_PLAN_UNKNOWN,
    ),
    "payment_released": Transition(
        meaning="An operator let a change go that the payment brake had stopped.",
        written_by="core.reconcile.payment_holds:release",
        link={"on_hold": "active"},
    ),
    "charging_moved": Transition(
        meaning="An operator said that this provider is to charge no more, because the other one is to.",
        written_by="core.reconcile.charging_moves:begin",
        link={"active": "active", "parked": "active"},
    ),
    "conflict_ended": Transition(
        meaning="An operator decided a conflict: everything is read before it is written.",
        written_by="core.reconcile.commands:end_conflict",
        link={"on_hold": "active"},
        customer=_ANY_CUSTOMER_UNCONFIRMED,
        plan=_APPLIED_PLAN_UNKNOWN,
    ),
    "conflict_ended_keeping_customer": Transition(
        meaning=(
            "The same, if Lago may have an unknown subscription: the customer stays ours, so that it can be ended."
        ),
        written_by="core.reconcile.commands:end_conflict",
        link={"on_hold": "active"},
        customer=_KNOWN_CUSTOMER_UNKNOWN,
        plan=_APPLIED_PLAN_UNKNOWN,
    ),
    "payer_decided": Transition(
        meaning=(
            "The same, if the conflict is about the payer in Lago. A customer that is read first keeps its payer, or "
            "stays without one, so it is written at once. The conflict showed that it is ours."
        ),
        written_by="core.reconcile.commands:end_conflict",
        link={"on_hold": "active"},
        customer=_EXISTING_CUSTOMER_UNKNOWN,
        plan=_APPLIED_PLAN_UNKNOWN,
    ),
    "downgrade_due": Transition(
        meaning="A scheduled downgrade is due: the subscription is read. A link that is not active keeps its plan.",
        written_by="core.reconcile.due_links:recheck_due_downgrades",
        plan=_APPLIED_PLAN_UNKNOWN,
    ),
    "customer_repaired": Transition(
        meaning="A drift repair writes the customer again.",
        written_by="core.reconcile.commands:repair",
        customer=_EXISTING_CUSTOMER_UNKNOWN,
    ),
    "plan_repaired": Transition(
        meaning="A drift repair reads the subscription and corrects it.",
        written_by="core.reconcile.commands:repair",
        plan=dict.fromkeys(_ALL_PLAN_STATES, "unknown"),
    ),
    "customer_id_set": Transition(
        meaning="The link got another customer id. Nothing is known of that customer.",
        written_by="core.organizations.provider_ids:set_customer_ids",
        link={"active": "active", "parked": "active", "on_hold": "active", "observed": "active"},
        customer=dict.fromkeys(_ALL_CUSTOMER_STATES, "unconfirmed"),
        plan=dict.fromkeys(_ALL_PLAN_STATES, "unknown"),
    ),
    "customer_id_contested": Transition(
        meaning="An import has the same customer id for another organization. A conflict stays as it is.",
        written_by="core.predecessor.import_organizations:OrganizationImport",
        link={"active": "on_hold", "parked": "on_hold", "on_hold": "on_hold", "observed": "on_hold"},
    ),
    "adopted": Transition(
        meaning="An operator handed the customer over to billing-sync. What it is there counts as what we want.",
        written_by="core.adoption.adoption:adopt",
        link={"active": "active", "parked": "active", "on_hold": "active", "observed": "active"},
        customer=dict.fromkeys(_ALL_CUSTOMER_STATES, "applied"),
        plan=dict.fromkeys(_ALL_PLAN_STATES, "unknown"),
    ),
    "adopted_with_subscription": Transition(
        meaning="The same, and the same of its subscription, unless that is to get the catalog's price.",
        written_by="core.adoption.adoption:adopt",
        link={"active": "active", "parked": "active", "on_hold": "active", "observed": "active"},
        customer=dict.fromkeys(_ALL_CUSTOMER_STATES, "applied"),
        plan=dict.fromkeys(_ALL_PLAN_STATES, "applied"),
    ),
    "released": Transition(
        meaning="An operator gave the customer back: it is observed, and nothing is written to it.",
        written_by="core.organizations.management:give_back",
        link={"active": "active", "parked": "active", "on_hold": "active", "observed": "active"},
        customer=_ANY_CUSTOMER_UNCONFIRMED,
        plan=dict.fromkeys(_ALL_PLAN_STATES, "unknown"),
    ),
    "older_customer_found": Transition(
        meaning=(
            "Lago has a customer under the organization's id, which came from outside. We did not make it, so it is "
            "observed."
        ),
        written_by="core.reconcile.attempt:SyncAttempt.record_older_customer",
        customer={"absent": "unconfirmed"},
    ),
    "check_requested": Transition(
        meaning="A webhook, or the time since the last check, asks for a remote check. An observed link is read again.",
        written_by="core.inbox.provider_webhooks:process",
        link={"active": "active", "parked": "parked", "on_hold": "on_hold", "observed": "active"},
    ),
    "mode_of_installation_changed": Transition(
        meaning="The installation is managed now, and the organization has no other mode: it is reconciled.",
        written_by="core.reconcile.due_links:resume_managed",
        link={"observed": "active"},
    ),
}


def customer_after(provider: str, event: LinkEvent, state: CustomerState) -> CustomerState:
    """Raises ``UndefinedTransitionError``."""
    return _after(provider, event, TRANSITIONS[event].customer, state)


def plan_after(provider: str, event: LinkEvent, state: PlanState) -> PlanState:
    """Raises ``UndefinedTransitionError``."""
    return _after(provider, event, TRANSITIONS[event].plan, state)


def _after(provider: str, event: LinkEvent, moves: Mapping[StateT, StateT] | None, state: StateT) -> StateT:
    if moves is None:
        return state
    if state not in moves:
        raise UndefinedTransitionError(provider, event, state)
    return moves[state]


def values_after(event: LinkEvent) -> dict[str, Any]:
    """The values with which a statement makes the transition, whatever state each row is in.

    A digest and a plan code are stored only while they are ``applied``.
    """
    transition = TRANSITIONS[event]
    values: dict[str, Any] = {}
    if transition.link is not None:
        values["state"] = _case(BillingLink.state, transition.link)
    if transition.customer is not None:
        values["customer_state"] = _case(BillingLink.customer_state, transition.customer)
        values["customer_fingerprint"] = None
    if transition.plan is not None:
        values["plan_state"] = _case(BillingLink.plan_state, transition.plan)
        values["applied_plan"] = None
    return values


def _case(column: Any, moves: Mapping[StateT, StateT]) -> ColumnElement[str]:  # noqa: ANN401 - a mapped column
    """Only rows whose state changes are named, so the statement stays short. An undefined state stays as it is."""
    changes = {before: after for before, after in moves.items() if before != after}
    return case(changes, value=column, else_=column)
