"""The end of a story: without faults the sweep brings everything home, and one report tells what people did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.compare.findings import DriftItem
from core.ports.spec import PROVIDERS
from tests.money.payments import PaymentBooks
from tests.money.story import SWEEP_INTERVAL_SECONDS, MoneyStory
from tests.support.drift_harness import DriftHarness

MOST_SWEEPS: Final = 30
# Why a link may wait for a person though nobody touched anything at the dashboards.
OUR_OWN_REASONS: Final = (
    *(
        "charging move --to stripe",
        "that subscription has ended",
        "neither provider can schedule",
        "is not in the catalog",
    ),
)


@dataclass(frozen=True)
class Ending:
    story: MoneyStory

    def check(self) -> None:
        story = self.story
        story.world.sandbox.clear_faults()
        story.world.payment_limit = None
        for org_id in story.org_ids:
            story.decide(org_id, "release")
        for _ in range(MOST_SWEEPS):
            story.world.advance_time(seconds=SWEEP_INTERVAL_SECONDS)
            story.sweep()
            story.check()
            if not story.behind():
                break
        assert not story.behind(), f"not settled after {MOST_SWEEPS} sweeps: {story.behind()}"
        for link in story.links():
            assert link.state == "active" or (link.error_message or "").strip(), f"{link.org_id} is parked, not why"
        self._nobody_is_billed_for_nothing()
        harness = DriftHarness(story.world)
        report = harness.check()
        assert (report.counts.in_flux, report.counts.excluded_providers) == (0, [])
        drifts = harness.drifts(report)
        self._all_rogues_are_found(drifts)
        for org_id in story.org_ids:
            found = next((each for each in drifts if each.org_id == org_id), None)
            self._what_is_not_found_is_right(org_id, found)
            if story.world.link(org_id, "stripe").state == "active":
                PaymentBooks(books=story.books()).check_that_it_left(org_id)
        story.history.words.update(story.org_ids)
        harness.repair(report)
        story.check()
        assert harness.check().counts.repairable == 0, "what was repaired is not right yet"

    def _nobody_is_billed_for_nothing(self) -> None:
        """Where Stripe charges for each tier, Lago makes no invoice with an amount, because nobody would pay it."""
        story = self.story
        plans = story.world.catalog.plans.values()
        if not story.bills_nothing_in_lago or any(plan.charged_by == "lago" for plan in plans):
            return
        for each in story.books().state["charges"]:
            is_theirs = each["customer"] in story.history.touched
            assert each["provider"] == "stripe" or is_theirs or each["price"] == 0, f"nobody pays {each}"

    def _all_rogues_are_found(self, drifts: list[DriftItem]) -> None:
        found = {finding.object_id for drift in drifts for finding in drift.findings}
        assert found >= set(self.story.books().rogues_alive()), "a subscription that people made is not told"

    def _what_is_not_found_is_right(self, org_id: str, drift: DriftItem | None) -> None:
        story = self.story
        organization = story.world.organization(org_id)
        stripe, lago = (story.world.link(org_id, provider) for provider in PROVIDERS)
        parked = [link for link in (stripe, lago) if link.state != "active"]
        if org_id not in story.history.touched and not (drift and all(each.is_on_hold for each in drift.findings)):
            assert drift is None, f"nobody touched {org_id}: {drift}"
            for link in parked:
                assert any(each in str(link.error_message) for each in OUR_OWN_REASONS), link.error_message
        if drift is not None or parked:
            return
        books = story.books()
        ours, theirs = books.stripe_customer(stripe.customer_id), books.lago_customer(org_id)
        if organization.status == "deleted":
            assert (books.stripe_subscriptions(org_id), books.lago_subscriptions(org_id)) == ([], [])
            return
        assert ours is not None
        assert theirs is not None
        assert ours["metadata"].get("billing_sync_org_id") == theirs["external_id"] == org_id
        assert ours["name"] == theirs["name"] == organization.name
        assert organization.billing_email in {None, ours["email"]}
        assert organization.billing_email in {None, theirs["email"]}
        plan = story.world.catalog.plan(organization.plan_tier)
        assert books.payer(org_id) == (stripe.customer_id if plan.charged_by == "lago" else None)
        assert len(books.stripe_subscriptions(org_id)) == (1 if plan.charged_by == "stripe" else 0)
        (active,) = [each for each in books.lago_subscriptions(org_id) if each["status"] == "active"]
        if story.bills_nothing_in_lago and plan.has_unpaid_plan and org_id not in story.history.touched:
            assert plan.is_usage_code(active["plan_code"] or ""), f"{org_id} is on {active['plan_code']} in Lago"
        if plan.charged_by == "lago":
            assert plan.may_keep_code("lago", active["plan_code"]), f"{org_id} pays nothing for {active['plan_code']}"
            found = [
                story.world.catalog.tier_of("lago", active[each] or "") for each in ("plan_code", "next_plan_code")
            ]
            assert found == [organization.plan_tier, organization.pending_plan_tier]
