"""Make one biller hold what one organization should be: claim, read, call, write back.

Level-triggered: the organization is read as it is now, so a late, repeated or reordered message does no harm, and many
messages of one burst cost two rounds. No transaction is open while the network is. Every failure ends in the row: tried
again later, or parked with a sentence for a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from core import links
from core.catalog import Catalog
from core.clock import Clock
from core.database import Database
from core.errors import LeaseLostError, ParkedError, RejectedError, RetryableError
from core.gateways import Biller, Provider, Subscription, SubscriptionSpec
from core.links import Consequences, Made, Turn
from core.wishes import Policy, Wish, digest, wish

WAITING_FOR_PAYER = "waiting"


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

    def run(self, org_id: str, provider: Provider) -> Outcome:
        """One round. Raises nothing of the billers; a database that does not answer is the caller's to see."""
        turn = links.claim(self.database, self.clock, org_id, provider)
        if turn is None:
            return IDLE
        if isinstance(turn, float):
            return Outcome(kind="waiting", again_in=turn)
        try:
            return self._attempt(turn)
        except LeaseLostError:
            if turn.calls:
                links.disturb(turn)
            return IDLE

    def _attempt(self, turn: Turn) -> Outcome:
        try:
            return self._round(turn)
        except RetryableError as error:
            return Outcome(kind="retry", again_in=links.try_later(turn, error), error=str(error))
        except ParkedError as error:
            links.park(turn, error)
            return Outcome(kind="parked", error=str(error))

    def _round(self, turn: Turn) -> Outcome:
        wanted = wish(turn.provider, turn.organization, turn.other, self.catalog, self.policy)
        if wanted.needs_payer and (wait := self._payer_wait(turn)) > 0:
            return Outcome(kind="waiting", again_in=wait)
        biller = self.billers[turn.provider]
        made = _make(biller, turn, wanted) if wanted.alive else _end(biller, turn, wanted)
        done = links.finish(turn, made, _consequences(turn, wanted, made, self.catalog))
        wake: tuple[Provider, ...] = ("lago",) if wanted.announces_payer else ()
        return Outcome(kind="synced", again_in=done.rest if done.behind else None, wake=wake)

    def _payer_wait(self, turn: Turn) -> float:
        """Seconds that this link still waits for the payer's id; from then on it goes ahead without."""
        now = self.clock()
        waiting = turn.link.error_kind == WAITING_FOR_PAYER
        since = turn.link.error_at if waiting and turn.link.error_at is not None else now
        until = since + self.policy.payer_wait
        if until > now and turn.link.payer_id is None:
            links.postpone(turn, until, WAITING_FOR_PAYER, "waits for the Stripe customer that Lago is to charge")
            return (until - now).total_seconds()
        return 0.0


def _make(biller: Biller, turn: Turn, wanted: Wish) -> Made:
    known = turn.known
    mark = digest(wanted.customer)
    customer = None
    if known.customer_id is None or turn.link.applied_customer != mark or turn.intent_is("create_customer"):
        customer = biller.make_customer(wanted.customer, known, turn)
    customer_id = customer.id if customer else known.customer_id
    changed = (wanted.plan_code, wanted.next_plan_code) != (known.plan_code, known.next_plan_code)
    subscription = None
    if customer_id is not None and wanted.plan_code is not None and (changed or turn.intent is not None):
        if customer is not None:
            turn.keep_customer(customer, mark)
        spec = SubscriptionSpec(
            org_id=turn.organization.id,
            customer_id=customer_id,
            plan_code=wanted.plan_code,
            next_plan_code=wanted.next_plan_code,
        )
        subscription = biller.make_subscription(spec, known, turn)
    return Made(
        customer=customer,
        customer_digest=mark if customer else None,
        payer_id=wanted.customer.payer_id if customer else None,
        subscription=subscription,
    )


def _end(biller: Biller, turn: Turn, wanted: Wish) -> Made:
    """End the subscription that we made, if one can be there; the customer stays (money.md 12)."""
    customer = None
    if turn.intent_is("create_customer"):
        # It may exist already: learn its id rather than leave a customer that nobody knows.
        customer = biller.make_customer(wanted.customer, turn.known, turn)
    lago_may_have_one = turn.provider == "lago" and turn.link.applied_customer is not None
    if turn.link.subscription_id is None and not lago_may_have_one and not turn.intent_is("create_subscription"):
        return Made(customer=customer, customer_digest=digest(wanted.customer) if customer else None)
    biller.end_subscription(turn.known, turn.organization.id, turn)
    return Made(ended=True)


def _consequences(turn: Turn, wanted: Wish, made: Made, catalog: Catalog) -> Consequences:
    known_payer = made.customer is not None or turn.link.customer_id is not None
    subscription = made.subscription if wanted.settles else None
    return Consequences(
        downgrade_comes_at=subscription.next_plan_at if subscription else None,
        tier_in_effect=_tier_in_effect(turn.provider, wanted, subscription, catalog) if subscription else None,
        announces_payer=wanted.announces_payer and known_payer,
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
