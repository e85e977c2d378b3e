"""Make one biller hold what one organization should be: claim, read, call, write back.

Level-triggered: the organization is read as it is now, so a late, repeated or reordered message does no harm, and many
messages of one burst cost two rounds. No transaction is open while the network is. Every failure ends in the row: tried
again later, or parked with a sentence for a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from core.catalog.plans import Catalog
from core.common.clock import Clock
from core.compare.desired_state import SECOND_PAYER, Policy, Wish, digest, wish
from core.db.database import Database
from core.flow_control.rate_limiter import Urgency
from core.flow_control.request_gate import Gates
from core.ports.errors import LeaseLostError, MustWaitError, ParkedError, RejectedError, RetryableError, ThrottledError
from core.ports.provider import Biller, Subscription
from core.ports.spec import Known, Provider, SubscriptionSpec
from core.reconcile import backoff, lease, outcomes, remote_check
from core.reconcile.account_guard import Accounts, WrongAccountError
from core.reconcile.attempt import Made, Turn
from core.reconcile.link_status import WAITING_FOR_PAYER
from core.reconcile.outcomes import Consequences
from core.reconcile.remote_check import Seen

# Failures of a call that was made: whoever failed so has waited long enough, or did not have to.
_GONE_AHEAD = frozenset({"unavailable", "throttled", "misconfigured"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``again_in``: seconds after which this biller should be tried once more. ``wake``: billers with new work now."""

    kind: Literal["synced", "idle", "waiting", "retry", "parked"]
    again_in: float | None = None
    wake: tuple[Provider, ...] = ()
    error: str | None = None


IDLE = Outcome(kind="idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    database: Database
    billers: Mapping[Provider, Biller]
    catalog: Catalog
    policy: Policy
    clock: Clock
    accounts: Accounts
    gates: Gates = field(default_factory=Gates)

    def run(self, org_id: str, provider: Provider, *, bulk: bool = False) -> Outcome:
        """One round. Raises nothing of the billers; a database that does not answer is the caller's to see.

        ``bulk``: nobody waits for it, so it lets fresh changes go first.
        """
        turn = lease.claim(self.database, self.clock, org_id, provider)
        if turn is None:
            return IDLE
        if isinstance(turn, float):
            return Outcome(kind="waiting", again_in=turn)
        # A probe of a stopped biller must not be kept from asking.
        urgency: Urgency = "started" if turn.probing else "bulk" if bulk else "fresh"
        turn.gate = gate = self.gates.to(provider, org_id, urgency)
        try:
            return self._attempt(turn)
        except LeaseLostError:
            if not turn.calls:
                outcomes.let_go(turn)
                return IDLE
            outcomes.disturb(turn)
            return Outcome(kind="waiting", again_in=backoff.REST.total_seconds())
        finally:
            gate.leave()

    def _attempt(self, turn: Turn) -> Outcome:
        try:
            return self._round(turn)
        except MustWaitError as wait:
            return Outcome(kind="waiting", again_in=outcomes.stand_in_line(turn, wait.seconds, rung=wait.in_line))
        except WrongAccountError as error:
            outcomes.stop_biller(turn, error.message)
            return Outcome(kind="waiting", error=str(error))
        except RetryableError as error:
            if isinstance(error, ThrottledError) and turn.gate is not None:
                turn.gate.throttled(error)
            return Outcome(kind="retry", again_in=outcomes.try_later(turn, error), error=str(error))
        except ParkedError as error:
            again_in = outcomes.park(turn, error)
            kind: Literal["parked", "retry"] = "parked" if again_in is None else "retry"
            return Outcome(kind=kind, again_in=again_in, error=str(error))

    def _round(self, turn: Turn) -> Outcome:
        wanted = wish(turn.provider, turn.organization, turn.other, self.catalog, self.policy)
        if wanted.needs_payer and (wait := self._payer_wait(turn)) is not None:
            return Outcome(kind="waiting", again_in=wait)
        turn.account = self.accounts.check(turn)
        biller = self.billers[turn.provider]
        made = _make(biller, turn, wanted) if wanted.alive else _end(biller, turn, wanted)
        looks = wanted.alive and _may_look(turn, made)
        seen = self._look(biller, turn, wanted) if looks else None
        if seen is not None and seen.came:
            turn.forget_plan()
            made = _make(biller, turn, wanted)
        consequences = _consequences(turn, wanted, made, self.catalog)
        owes = seen.owes if seen is not None else None
        done = outcomes.finish(turn, made, replace(consequences, looked=looks or not wanted.alive, owes=owes))
        others: tuple[Provider, ...] = ("lago",) if turn.provider == "stripe" else ("stripe",)
        return Outcome(
            kind="synced", again_in=done.rest if done.behind else None, wake=others if done.wakes_other else ()
        )

    def _look(self, biller: Biller, turn: Turn, wanted: Wish) -> Seen | None:
        """After what was to be made: then all that differs there is somebody else's doing."""
        try:
            return remote_check.look(biller.audit, turn, wanted, self.catalog, self.policy)
        except RejectedError:
            turn.disbelieve()
            raise

    def _payer_wait(self, turn: Turn) -> float | None:
        """Seconds that this link still waits for the payer's id; ``None``: it goes ahead without."""
        now = self.clock()
        waiting = turn.link.error_kind == WAITING_FOR_PAYER
        since = turn.link.error_at if waiting and turn.link.error_at is not None else now
        until = since + self.policy.payer_wait
        if until <= now or turn.link.payer_id is not None or turn.link.error_kind in _GONE_AHEAD:
            return None
        return outcomes.postpone(turn, until, WAITING_FOR_PAYER, "waits for the Stripe customer that Lago is to charge")


def _make(biller: Biller, turn: Turn, wanted: Wish) -> Made:
    known = turn.known
    mark = digest(wanted.customer)
    customer = None
    if known.customer_id is None or turn.link.applied_customer != mark or turn.intent_is("create_customer"):
        turn.doubt_customer(wanted.customer.payer_id)
        customer = biller.make_customer(wanted.customer, known, turn)
    customer_id = customer.id if customer else known.customer_id
    made = Made(
        customer=customer,
        customer_digest=mark if customer else None,
        payer_id=wanted.customer.payer_id if customer else None,
    )
    if customer_id is None:
        return made
    if wanted.plan_code is None:
        return _give_way(biller, turn, wanted, known, made)
    if not _plan_is_open(turn, wanted, known):
        return made
    turn.keep_customer(made)
    turn.doubt_plan(wanted.next_plan_code)
    spec = SubscriptionSpec(
        org_id=turn.organization.id,
        customer_id=customer_id,
        plan_code=wanted.plan_code,
        next_plan_code=wanted.next_plan_code,
    )
    return replace(made, subscription=biller.make_subscription(spec, known, turn))


def _may_look(turn: Turn, made: Made) -> bool:
    """A look may fail, so what follows of a subscription that was made or ended does not wait for it: the next turn
    looks. A customer that is known is written again as well as once.
    """
    told_again = turn.link.customer_id is not None and made.subscription is None and not made.ended
    return turn.only_looks or (turn.is_hinted and told_again)


def _plan_is_open(turn: Turn, wanted: Wish, known: Known) -> bool:
    """Whether the subscription must be made, changed, or asked when its scheduled plan comes."""
    if turn.intent is not None:
        return True
    if (wanted.plan_code, wanted.next_plan_code) == (known.plan_code, known.next_plan_code):
        return wanted.settles and wanted.next_plan_code is not None and turn.organization.plan_effective_at is None
    # Where the other biller charges and its period ended first, this one comes to the same plan on its own day.
    on_its_way = known.plan_code is not None and known.next_plan_code == wanted.plan_code
    return wanted.settles or wanted.next_plan_code is not None or not on_its_way


def _give_way(biller: Biller, turn: Turn, wanted: Wish, known: Known, made: Made) -> Made:
    """No subscription of ours may live here: one that does is ended when the plan changed, by the declared policy.

    When only a setting changed, a person must have said so with a retry: a setting that was lost ends nothing
    (money.md 23).
    """
    if known.subscription_id is None and not turn.intent_is("create_subscription"):
        return made
    asked_for = not known.verified
    turn.keep_customer(made)
    if known.plan_code in {None, wanted.unsold_code} and not known.ended_by_us and not asked_for:
        raise RejectedError(
            turn.provider,
            f"the settings say now that Lago charges this plan, but Stripe has the subscription "
            f"{known.subscription_id or 'in the making'}: set charged_by back, or retry to have it ended",
            SECOND_PAYER,
        )
    turn.leave_plan()
    biller.end_subscription(known, turn.organization.id, turn)
    return replace(made, ended=True)


def _end(biller: Biller, turn: Turn, wanted: Wish) -> Made:
    """End the subscription that we made, if one can be there; the customer stays (money.md 12)."""
    made = Made()
    if turn.intent_is("create_customer"):
        # It may exist already: learn its id rather than leave a customer that nobody knows.
        customer = biller.make_customer(wanted.customer, turn.known, turn)
        made = Made(customer=customer, customer_digest=digest(wanted.customer))
    # Also where none is known: one that a late worker made would charge for ever.
    may_have_one = turn.link.applied_customer is not None
    if turn.link.subscription_id is None and not may_have_one and not turn.intent_is("create_subscription"):
        return made
    turn.leave_plan()
    biller.end_subscription(turn.known, turn.organization.id, turn)
    return replace(made, ended=True)


def _consequences(turn: Turn, wanted: Wish, made: Made, catalog: Catalog) -> Consequences:
    customer_id = made.customer.id if made.customer else turn.link.customer_id
    subscription = made.subscription if wanted.settles else None
    return Consequences(
        downgrade_comes_at=subscription.next_plan_at if subscription else None,
        tier_in_effect=_tier_in_effect(turn.provider, wanted, subscription, catalog) if subscription else None,
        payer_id=customer_id if wanted.announces_payer else None,
    )


def _tier_in_effect(provider: Provider, wanted: Wish, made: Subscription, catalog: Catalog) -> str | None:
    """A downgrade that came: the one that still waits here, or one that was replaced before its coming was known."""
    if made.plan_code == wanted.plan_code:
        return None
    tier = catalog.tier_of(provider, made.plan_code)
    if tier is None:
        message = f"subscription {made.id} is on {made.plan_code}, which no plan of the catalog has as its code"
        raise RejectedError(provider, message, "unknown_plan")
    return tier
