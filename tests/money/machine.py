"""The money machine: whatever happens in whatever order, money stays right.

It tells stories: changes, rounds in any order, turns that are overtaken or die, faults, clocks that jump, and people at
the dashboards. After each step both billers are read from outside: one charger, one customer, nothing of others ended
or joined, nothing arranged undone, nobody at another price without a word. At the end all faults are over: the sweep
alone must bring everything home or park it with a sentence, and one plan must name what people did.

What a person arranges matters only if something happens to it next. So each kind has a rule of its own that lets it
happen: a subscription is in sync, somebody does something to it, and then its plan is to change.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core.drift.repairer import ChangedSinceReportError
from core.flow_control.payment_brake import PaymentLimit
from core.ports.errors import ProviderError
from core.ports.spec import ARRANGED_AT_PROVIDER, PROVIDERS, Provider
from core.reconcile import attempt
from tests.money.catalog_moves import MOVES
from tests.money.dashboard_edits import DEEDS
from tests.money.ending import Ending
from tests.money.payments import PaymentBooks
from tests.money.story import BURST_COOLDOWN_SECONDS, TIERS, MoneyStory, Stage, Trouble
from tests.money.tally import Tally, tallied
from tests.money.unpaid_invoices import INVOICE_DEEDS
from tests.support.drift_harness import DriftHarness
from tests.support.sync_world import WorkerDiedError, do_nothing, kill_worker

MOST_ORGANIZATIONS: Final = 4
LAYOUTS: Final = [
    *(("starter", "enterprise"), (), ("professional", "enterprise"), ("founders_friend", "starter")),
    tuple(TIERS),
]
"""The tiers that Stripe charges; Lago charges the others."""

CHANGES: Final = [
    *("Globex", "Initech", "pay@acme.test", "bills@acme.test"),
    *("active", "suspended", "deleted", "retry", "ours", "theirs", "lose the plan"),
]
QUIET_CHANGES: Final = ["Globex", "Initech", "pay@acme.test", "suspended", "retry", "ours", "down and back"]
"""None of them asks for another plan or price."""
THENS: Final = ["nothing", "stripe", "lago", "both", "both, after a day again", *["until nothing is left"] * 3]
REPORTERS: Final[list[tuple[Provider, ...]]] = [(), ("stripe",), ("lago",), PROVIDERS]
DELIVERIES: Final = ["once", "lost", "twice", "again", "shuffled"]
SAME_DAY: Final = timedelta(minutes=4)
SALES: Final = ["sell_beside_in_stripe", "sell_beside_in_lago"]
ARRANGED_IN_STRIPE: Final = {
    "planned end": "plan_an_end_in_stripe",
    "pause": "pause_it_in_stripe",
    "schedule": "attach_a_schedule_in_stripe",
}
OPERATIONS: Final[list[tuple[Provider, str]]] = [
    *(("stripe", "*"), ("stripe", "POST /v1/customers"), ("stripe", "POST /v1/subscriptions")),
    *(("stripe", "POST /v1/subscriptions/{id}"), ("stripe", "DELETE /v1/subscriptions/{id}")),
    *(("stripe", "POST /v1/credit_notes"), ("lago", "*"), ("lago", "POST /api/v1/customers")),
    ("lago", "POST /api/v1/subscriptions"),
]
CREATES: Final[list[tuple[Provider, str]]] = [
    *(("stripe", "POST /v1/customers"), ("stripe", "POST /v1/subscriptions")),
    *(("lago", "POST /api/v1/customers"), ("lago", "POST /api/v1/subscriptions")),
]
# The catalog is changed here as an operator of a managed installation does it.
OF_PRICES: Final = {"POST /v1/products", "POST /v1/prices", "POST /v1/prices/{id}", "POST /api/v1/plans"}
LOST: Final = ["lost_answer", "500_after", "500_stored"]
FAULTS: Final = [*LOST, *LOST, "500_before", "429", "reset", "hang", "html_502", "401"]
MOMENTS: Final = ["before_customer", "after_customer", "before_subscription", "after_subscription", "after_end"]
JUMPS: Final[list[dict[str, float]]] = [{"minutes": 5}, {"hours": 6}, {"hours": 25}, {"days": 32}]
# Lago's billing run is ten minutes after the end of its period: until then it names a day a month later.
TURNS: Final = [-20, 2, 5, 9, 12, 30]
LEASE_SECONDS: Final = attempt.LINK_LEASE.total_seconds() + 1
WATCHED_AFTER_A_PERIOD: Final = timedelta(hours=2)
# Sweeps do then what was left while time jumped.
WATCHED_BEFORE_IT: Final = timedelta(minutes=26)

LIMITS: Final = [None, None, None, 0, 1, 3]
"""Of the payment brake within an hour; None: it stops nothing."""
WORDS_ABOUT_THE_BRAKE: Final = ["release", "release", "drop", "expect"]

numbers = st.sampled_from([0, 0, 0, 1, 1, 2, 3])
troubles = st.none() | st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(FAULTS), st.integers(1, 2)).map(
    lambda drawn: (*drawn[0], *drawn[1:])
)
tiers = st.sampled_from(TIERS)
providers = st.sampled_from(PROVIDERS)
thens = st.sampled_from(THENS)


class MoneyStateMachine(RuleBasedStateMachine):
    stage: ClassVar[Stage]

    def __init__(self) -> None:
        super().__init__()
        self.story = MoneyStory(self.stage)
        self.world, self.history = self.story.world, self.story.history
        self.conflicts: dict[tuple[str, str], tuple[datetime, object, int]] = {}

    @property
    def tally(self) -> Tally:
        return self.stage.tally

    @property
    def org_ids(self) -> list[str]:
        return self.story.org_ids

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                if self.stage.management == "manage":
                    Ending(self.story).check()
                self.tally.stories += 1
        finally:
            self.story.close()

    @initialize(
        charged_by_stripe=st.sampled_from(LAYOUTS),
        costs_nothing_in_lago=st.booleans(),
        first=tiers,
        second=tiers,
        then=thens,
        limit=st.sampled_from(LIMITS),
    )
    def begin(  # noqa: PLR0913 - what a story begins with
        self,
        charged_by_stripe: tuple[str, ...],
        first: str,
        second: str,
        then: str,
        *,
        costs_nothing_in_lago: bool,
        limit: int | None = None,
    ) -> None:
        """The first organization is at home; how the second comes there differs.

        ``costs_nothing_in_lago``: where Stripe charges, Lago has plans of amount 0 from the beginning on.
        """
        self.world.payment_limit = None if limit is None else PaymentLimit(changes=limit)
        self.world.set_charging_provider("stripe")  # people sell every plan there
        charged_by_lago = [tier for tier in TIERS if tier not in charged_by_stripe]
        if charged_by_lago:
            self.world.set_charging_provider("lago", *charged_by_lago)
        if costs_nothing_in_lago:
            self.story.begin_with_plans_of_amount_0()
        self.story.then(self.story.create(first), "until nothing is left")
        self.story.then(self.story.create(second), then)
        if self.stage.management == "observe":
            self.world.management = "observe"
            self.world.sandbox.reset_calls()

    # What is asked of us, what goes wrong at the billers about it, and what workers do next.

    @precondition(lambda self: len(self.org_ids) < MOST_ORGANIZATIONS)
    @rule(tier=tiers, trouble=troubles, then=thens)
    @tallied
    def create(self, tier: str, trouble: Trouble, then: str) -> None:
        self.story.make(trouble)
        self.story.then(self.story.create(tier), then)

    @precondition(lambda self: len(self.org_ids) < MOST_ORGANIZATIONS)
    @rule(
        tier=tiers,
        operation=st.sampled_from(CREATES),
        kind=st.sampled_from(LOST),
        change=st.sampled_from(CHANGES),
        by=st.sampled_from(JUMPS),
        then=thens,
    )
    @tallied
    def lose_a_create(  # noqa: PLR0913, PLR0917 - what is lost, and what comes before it is tried again
        self, tier: str, operation: tuple[Provider, str], kind: str, change: str, by: dict[str, float], then: str
    ) -> None:
        self.story.make((*operation, kind, 1))
        org_id = self.story.create(tier)
        self.story.then(org_id, "both")
        self.story.change(org_id, change)
        self.world.advance_time(**by)
        self.story.then(org_id, then)

    @rule(number=numbers, tier=tiers, trouble=troubles, then=thens)
    @tallied
    def change_plan(self, number: int, tier: str, trouble: Trouble, then: str) -> None:
        """Up, down, or back."""
        self.story.make(trouble)
        self.story.change_plan(self._org(number), tier)
        self.story.then(self._org(number), then)

    @rule(number=numbers, change=st.sampled_from(CHANGES), trouble=troubles, then=thens)
    @tallied
    def change(self, number: int, change: str, trouble: Trouble, then: str) -> None:
        self.story.make(trouble)
        self.story.change(self._org(number), change)
        self.story.then(self._org(number), then)

    @rule(
        number=numbers,
        provider=providers,
        tier=tiers,
        change=st.sampled_from(CHANGES),
        moment=st.sampled_from(MOMENTS),
        happens=st.sampled_from(["die", "stale", "the other biller", "change", "plan"]),
        then=thens,
    )
    @tallied
    def change_during_attempt(  # noqa: PLR0913, PLR0917 - a turn, what it is about, and what comes in between
        self, number: int, provider: Provider, tier: str, change: str, moment: str, happens: str, then: str
    ) -> None:
        org_id = self._org(number)
        other: Provider = "lago" if provider == "stripe" else "stripe"
        meanwhile: dict[str, Callable[[], object]] = {
            "die": kill_worker,
            "stale": lambda: self._make_stale(org_id, provider, change),
            "the other biller": lambda: self.world.run(org_id, other),
            "change": lambda: self.story.change(org_id, change),
            "plan": lambda: self.story.change_plan(org_id, tier),
        }
        if happens == "plan":
            self.story.change(org_id, change)
        else:
            self.story.change_plan(org_id, tier)
        self.world.advance_time(seconds=BURST_COOLDOWN_SECONDS)
        setattr(self.world.providers[provider], moment, meanwhile[happens])
        try:
            self.world.run(org_id, provider)
        except WorkerDiedError:
            self.world.advance_time(seconds=LEASE_SECONDS)
        finally:
            setattr(self.world.providers[provider], moment, do_nothing)
        self.story.then(org_id, then)

    def _make_stale(self, org_id: str, provider: Provider, change: str) -> None:
        """The turn is held up past its lease; there is a change, and another turn has its way meanwhile."""
        self.world.advance_time(seconds=LEASE_SECONDS)
        self.story.change(org_id, change)
        self.world.run(org_id, provider)

    # What time does.

    @rule(by=st.sampled_from(JUMPS), number=numbers, then=thens)
    @tallied
    def pass_time(self, by: dict[str, float], number: int, then: str) -> None:
        self.world.advance_time(**by)
        self.story.sweep()
        self.story.then(self._org(number), then)

    @rule(number=numbers, tier=tiers, then=thens)
    @tallied
    def live_through_a_period_end(self, number: int, tier: str, then: str) -> None:
        """A downgrade is scheduled, the provider carries it out, and sweeps follow each other for two hours."""
        org_id = self._org(number)
        if self._schedule_downgrade(org_id, tier) and (ends_at := self.story.period_end(org_id)) is not None:
            self.tally.hands["live_through_a_period_end : carried out"] += 1
            moment = ends_at - WATCHED_BEFORE_IT
            self.world.advance_time(seconds=(moment - self.world.now).total_seconds())
            self.story.live_until(ends_at + WATCHED_AFTER_A_PERIOD)
        self.story.then(org_id, then)

    @rule(number=numbers, tier=tiers, minutes=st.sampled_from(TURNS), next_tier=tiers, then=thens)
    @tallied
    def change_plan_at_a_period_end(self, number: int, tier: str, minutes: int, next_tier: str, then: str) -> None:
        """Lago's late switch: a scheduled plan is taken back, or another one asked for, around its day."""
        org_id = self._org(number)
        if self._schedule_downgrade(org_id, tier) and (ends_at := self.story.period_end(org_id)) is not None:
            self.tally.hands["change_plan_at_a_period_end : scheduled"] += 1
            moment = ends_at + timedelta(minutes=minutes)
            self.world.advance_time(seconds=(moment - self.world.now).total_seconds())
            self.story.change_plan(org_id, next_tier)
        self.story.then(org_id, then)

    def _schedule_downgrade(self, org_id: str, tier: str) -> bool:
        """Whether there is one, which the provider knows."""
        if not self.story.settle(org_id) or self.world.organization(org_id).status == "deleted":
            return False
        lower = self.story.lower_tier(org_id, tier)
        if lower is not None:
            self.story.change_plan(org_id, lower)
        return self.story.settle(org_id) and self.world.organization(org_id).pending_plan_tier is not None

    # What people do.

    @rule(
        number=numbers,
        deed=st.sampled_from(sorted(DEEDS)),
        tier=tiers,
        reported_by=st.sampled_from(REPORTERS),
        then=thens,
    )
    @tallied
    def edit_by_hand(self, number: int, deed: str, tier: str, reported_by: tuple[Provider, ...], then: str) -> None:
        """``reported_by``: the providers whose webhooks arrive."""
        org_id = self._org(number)
        self.conflicts.clear()
        self.tally.hands[f"edit_by_hand : {deed}"] += 1
        self.story.hands.do(deed, org_id, tier)
        for provider in PROVIDERS:
            self.story.receive_webhook(org_id, provider, "once" if provider in reported_by else "lost")
        self.story.then(org_id, then)

    @rule(number=numbers, provider=providers, delivery=st.sampled_from(DELIVERIES), then=thens)
    @tallied
    def receive_webhook(self, number: int, provider: Provider, delivery: str, then: str) -> None:
        self.tally.hands[f"receive_webhook : {delivery}"] += 1
        self.story.receive_webhook(self._org(number), provider, delivery)
        self.story.then(self._org(number), then)

    @rule(number=numbers, deed=st.sampled_from(SALES), tier=tiers, next_tier=tiers, way=st.booleans(), then=thens)
    @tallied
    def sell_by_hand(  # noqa: PLR0913 - what they sell, and what comes after it
        self, number: int, deed: str, tier: str, next_tier: str, *, way: bool, then: str
    ) -> None:
        """Beside ours, or before there is one of ours. ``way``: they make it for a plan that moves to Stripe."""
        self.conflicts.clear()
        self.story.hands.do(deed, self._org(number), tier)
        self.story.change_plan(self._org(number), next_tier)
        if way:
            self.story.hands.do("have_lago_charge_nobody", self._org(number), tier)
        self.story.then(self._org(number), then)

    @rule(
        number=numbers,
        kind=st.sampled_from(sorted(ARRANGED_IN_STRIPE)),
        tier=tiers,
        delivery=st.sampled_from(DELIVERIES),
        then=thens,
    )
    @tallied
    def arrange_by_hand(self, number: int, kind: str, tier: str, delivery: str, then: str) -> None:
        """For a subscription in sync, whose plan is to change next: it stays, and a hold is shown."""
        org_id = self._org(number)
        provider = self._provider_to_arrange_at(org_id)
        if provider is None:
            return
        deed = ARRANGED_IN_STRIPE[kind] if provider == "stripe" else "plan_an_end_in_lago"
        self.conflicts.clear()
        self.story.hands.do(deed, org_id, tier)
        self.story.receive_webhook(org_id, provider, delivery)
        other = self._other_tier(org_id, tier)
        self.story.change_plan(org_id, other)
        self.story.settle(org_id)
        link = self.world.link(org_id, provider)
        if link.state == "observed":
            problem = self.world.observation(org_id, provider).problem
            assert problem is not None, f"{deed}, then {other} for {org_id}: nothing is planned to be on hold"
            assert problem.code == ARRANGED_AT_PROVIDER, f"{deed}, then {other} for {org_id}: {problem}"
        else:
            # What is arranged is read before a place is taken.
            assert (link.state, link.error_code) == ("on_hold", ARRANGED_AT_PROVIDER), (
                f"{deed}, then {other} for {org_id}: {link.state} {link.error_code} {link.error_message}"
            )
        self.tally.hands[f"arrange_by_hand : {deed} : held"] += 1
        self.story.then(org_id, then)

    def _provider_to_arrange_at(self, org_id: str) -> Provider | None:
        """The one that charges a subscription in sync, which nobody arranged anything for; None if there is none."""
        is_settled = self.story.settle(org_id)
        organization, books = self.world.organization(org_id), self.story.books()
        if not is_settled or organization.status == "deleted" or organization.pending_plan_tier is not None:
            return None
        in_stripe, in_lago = books.stripe_subscriptions(org_id), books.lago_subscriptions(org_id)
        sold = [books.tier_of_price(each["items"]["data"][0]["price"]["id"]) for each in in_stripe]
        if self.world.catalog.plan(organization.plan_tier).charged_by == "stripe":
            is_free_now = in_stripe and in_stripe[0]["items"]["data"][0]["quantity"] == 0
            return "stripe" if sold == [organization.plan_tier] and not is_free_now else None
        plans = [(self.world.catalog.tier_of("lago", each["plan_code"]), each["ending_at"]) for each in in_lago]
        return "lago" if plans == [(organization.plan_tier, None)] else None

    def _other_tier(self, org_id: str, tier: str) -> str:
        """Another one than the organization's, which the same provider charges if there is one."""
        plans, current = self.world.catalog.plans, self.world.organization(org_id).plan_tier
        others = [each for each in (tier, *TIERS) if each != current]
        same = [each for each in others if plans[each].charged_by == plans[current].charged_by]
        return (same or others)[0]

    @rule(number=numbers, change=st.sampled_from(QUIET_CHANGES), tier=tiers, then=thens)
    @tallied
    def give_it_a_price_of_its_own(self, number: int, change: str, tier: str, then: str) -> None:
        """An override in Lago: it stays through whatever asks for no other plan."""
        org_id = self._org(number)
        if self._provider_to_arrange_at(org_id) != "lago":
            return
        self.conflicts.clear()
        self.story.hands.do("give_it_a_price_of_its_own_in_lago", org_id, tier)
        given = self.story.amounts_in_lago(org_id)
        self._change_quietly(org_id, change, tier)
        assert self.story.amounts_in_lago(org_id) == given, f"{org_id} lost its own price by {change}"
        self.tally.hands["give_it_a_price_of_its_own : kept"] += 1
        self.story.then(org_id, then)

    @rule(number=numbers, move=st.sampled_from(sorted(MOVES)), change=st.sampled_from(QUIET_CHANGES), tier=tiers)
    @tallied
    def move_a_price(self, number: int, move: str, change: str, tier: str) -> None:
        """Grandfathered prices: the organization's plan gets another price, and then something quiet happens to it."""
        org_id = self._org(number)
        is_settled = self.story.settle(org_id)
        current = self.world.organization(org_id).plan_tier
        self.tally.hands[f"move_a_price : {move}"] += 1
        self.story.catalog_moves.make(move, current if current in TIERS else tier)
        self.story.check()
        if is_settled:
            self._change_quietly(org_id, change, tier)

    def _change_quietly(self, org_id: str, change: str, tier: str) -> None:
        if change != "down and back":
            self.story.change(org_id, change)
        elif (lower := self.story.lower_tier(org_id, tier)) is not None:
            current = self.world.organization(org_id).plan_tier
            self.story.change_plan(org_id, lower)
            self.story.settle(org_id)
            self.story.check()
            self.story.change_plan(org_id, current)
        self.story.settle(org_id)

    @rule(
        number=numbers,
        deeds=st.lists(st.sampled_from(sorted(INVOICE_DEEDS)), min_size=1, max_size=3),
        by=st.sampled_from(JUMPS),
        leaves=st.booleans(),
        trouble=troubles,
        then=thens,
    )
    @tallied
    def leave_invoices_unpaid(  # noqa: PLR0913 - what becomes of them, and who leaves meanwhile
        self,
        number: int,
        deeds: list[str],
        by: dict[str, float],
        trouble: Trouble,
        then: str,
        *,
        leaves: bool,
    ) -> None:
        org_id = self._org(number)
        self.story.settle(org_id)
        self.world.advance_time(**by)
        for deed in deeds[:-1]:
            self.story.invoices.do(deed, org_id)
        self.tally.hands.update(f"leave_invoices_unpaid : {deed}" for deed in deeds)
        if leaves and self.world.organization(org_id).status != "deleted":
            self.story.make(trouble)
            self.story.change(org_id, "deleted")
            self.story.then(org_id, "until nothing is left")
            self.story.settle(org_id)
            if self.world.link(org_id, "stripe").state == "active":
                PaymentBooks(books=self.story.books()).check_that_it_left(org_id)
                self.tally.hands["leave_invoices_unpaid : left"] += 1
        self.story.invoices.do(deeds[-1], org_id)
        self.story.then(org_id, then)

    @precondition(lambda self: self.world.payment_limit is not None)
    @rule(number=numbers, word=st.sampled_from(WORDS_ABOUT_THE_BRAKE), count=st.integers(1, 2), then=thens)
    @tallied
    def say_a_word_about_the_brake(self, number: int, word: str, count: int, then: str) -> None:
        org_id = self._org(number)
        self.tally.hands[f"say_a_word_about_the_brake : {word}"] += 1
        if word == "expect":
            self.story.expect(count)
        elif self.story.decide(org_id, word):
            self.tally.hands[f"say_a_word_about_the_brake : {word} : something waited"] += 1
        self.story.then(org_id, then)

    @rule(apply=st.booleans())
    @tallied
    def check_drift(self, *, apply: bool) -> None:
        harness = DriftHarness(self.world)
        try:
            report = harness.check()
            if apply:
                self.history.words.update(self.history.touched)
                harness.repair(report)
        except (ProviderError, ChangedSinceReportError):
            return

    @invariant()
    def money_is_right(self) -> None:
        self.tally.steps += 1
        self.story.check()

    @invariant()
    def nothing_is_written_while_it_is_observed(self) -> None:
        if self.world.management == "observe":
            counters = self.world.sandbox.counters()
            operations = {*counters.stripe.operations, *counters.lago.operations}
            written = {name for name in operations if not name.startswith("GET ")} - OF_PRICES
            assert written == set(), f"written while observed: {written}"

    @invariant()
    def what_is_on_hold_is_as_somebody_left_it(self) -> None:
        """While a link is on hold for a conflict, nothing of it changes at its provider, whatever else happens."""
        on_hold = {(link.org_id, link.provider) for link in self.story.links() if link.state == "on_hold"}
        known, self.conflicts = self.conflicts, {}
        for org_id, provider in sorted(on_hold):
            objects = self.story.objects_at(org_id, provider)
            decisions = self.history.decisions[org_id]
            since, before, decided = known.get((org_id, provider), (self.world.now, objects, decisions))
            # A scheduled change of the provider may have happened, or it is another hold.
            if self.world.now - since > SAME_DAY or decided != decisions:
                since, before = self.world.now, objects
            assert objects == before, f"{org_id} at {provider} is on hold, and was changed"
            self.conflicts[org_id, provider] = since, before, decisions

    def _org(self, number: int) -> str:
        return self.org_ids[number % len(self.org_ids)]


def staged(at: Stage) -> type[MoneyStateMachine]:
    """The machine for one run: hypothesis makes one of it for each story."""

    class StagedStateMachine(MoneyStateMachine):
        stage = at

    return StagedStateMachine
