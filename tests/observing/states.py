"""States that an organization can be in when it is observed, from one seed: new, behind, changed here or at a provider.

The hands at the dashboards are those of the money machine.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Final

from sqlalchemy import update

from core.common.validation import InvalidChangeError
from core.compare.desired_state import PayerPolicy
from core.db.models.billing_links import BillingLink
from tests.money.dashboard_edits import DEEDS
from tests.money.story import TIERS, MoneyStory

LAYOUTS: Final[list[tuple[str, ...]]] = [(), tuple(TIERS), ("starter", "enterprise"), ("professional", "enterprise")]
"""The tiers that Stripe charges; Lago charges the others."""
CREATES: Final = [
    *(("stripe", "POST /v1/customers"), ("stripe", "POST /v1/subscriptions")),
    *(("lago", "POST /api/v1/customers"), ("lago", "POST /api/v1/subscriptions")),
]
CHANGES: Final = ["plan", "plan", "plan", "Globex", "pay@acme.test", "suspended", "deleted", "retry"]
MAX_CHANGES: Final = 3


@dataclass
class SeededState:
    """``words``: how it came about."""

    story: MoneyStory
    chance: Random
    words: list[str] = field(default_factory=list)
    org_id: str = ""

    def build(self) -> None:
        world = self.story.world
        charged_by_stripe = self.chance.choice(LAYOUTS)
        world.set_charging_provider("stripe")  # every price exists there
        if charged_by_lago := [tier for tier in TIERS if tier not in charged_by_stripe]:
            world.set_charging_provider("lago", *charged_by_lago)
        if self.chance.random() < 0.15:
            world.policy = PayerPolicy(sends_payer_to_lago=False)
            self._say("without payers")
        tier = self.chance.choice(TIERS)
        self.org_id = self.story.create(tier)
        self._say(f"Stripe charges {', '.join(charged_by_stripe) or 'nothing'}; {tier}")
        self._begin()
        if self.chance.random() < 0.4:
            deed, of_tier = self.chance.choice(sorted(DEEDS)), self.chance.choice(TIERS)
            self._say(f"{deed} {of_tier}")
            self.story.hands.do(deed, self.org_id, of_tier)
        for _ in range(self.chance.choice([0, 1, 1, 1, 2, 2, 3])):
            self._change()
        if self.chance.random() < 0.1:
            self._adopt(self.chance.choice(["due", "removal"]))

    def _begin(self) -> None:
        draw = self.chance.random()
        if draw < 0.15:
            self._say("new")
            return
        if draw < 0.25:
            provider, operation = self.chance.choice(CREATES)
            self._say(f"the answer to {operation} is lost")
            self.story.make(("stripe" if provider == "stripe" else "lago", operation, "lost_answer", 3))
            self.story.then(self.org_id, "both")
            self.story.world.sandbox.clear_faults()
            return
        self.story.then(self.org_id, "until nothing is left")
        for _ in range(self.chance.randint(0, MAX_CHANGES)):
            self._change()
            if self.chance.random() < 0.8:
                self._say("reconciled")
                self.story.then(self.org_id, "until nothing is left")
            if self.chance.random() < 0.25:
                self._say("a month later")
                self.story.world.advance_time(days=32)

    def _change(self) -> None:
        change = self.chance.choice(CHANGES)
        with suppress(InvalidChangeError):
            if change == "plan":
                tier = self.chance.choice(TIERS)
                self._say(f"to {tier}")
                self.story.change_plan(self.org_id, tier)
            else:
                self._say(change)
                self.story.change(self.org_id, change)

    def _adopt(self, marks: str) -> None:
        """As if the objects had been somebody else's."""
        self._say(f"adopted, marks {marks}")
        if marks == "due":
            self.story.hands.do("clear_the_mark_in_stripe", self.org_id, "starter")
        with self.story.world.database.write() as session:
            session.execute(
                update(BillingLink)
                .where(BillingLink.provider == "stripe", BillingLink.customer_id.is_not(None))
                .values(ownership="adopted", marks=marks)
            )

    def _say(self, words: str) -> None:
        self.words.append(words)
