"""The whole story that was recorded at a real Lago, told again: our requests are those that it understood.

Each step is repeated with its lost answers, and the requests to Lago are compared in order: method, path, names in the
query and names in the body. What differs is listed with its reason, and a difference that is gone fails. Left out are
the recorder's own reads, which no reader of ours sends, and the remote checks: these came whenever a webhook arrived,
so one of them is compared by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from urllib.parse import parse_qsl

import pytest

from core.catalog import publishing
from core.organizations import commands
from core.ports.quotes import PlanChangeQuery
from core.ports.spec import PROVIDERS, SubscriptionSpec
from core.reconcile.account_guard import AccountGuard
from providers.lago.provider import LagoProvider
from sandbox.server import Sandbox
from tests.support.lago_recordings import WHOLE_STORY, RecordedCall, calls
from tests.support.provider_webhooks import check_after_webhook
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, SyncWorld, kill_worker

POST_CUSTOMER, POST_SUBSCRIPTION = "POST /api/v1/customers", "POST /api/v1/subscriptions"
DELETE_SUBSCRIPTION = "DELETE /api/v1/subscriptions/{id}"

IN_ANY_ORDER = {
    "plans": "several commands were typed one after the other, with the same requests",
    "create": "workers had several of the five organizations at once",
}
PAYER_IS_NOT_SENT_AGAIN = "a payer that Lago has already is not sent again (lago.md 3.5)"
READ_FIRST = "a subscription is read before its plan is changed (lago.md 5.1, B12)"
DIFFERENCES = {
    "upgrade": READ_FIRST,
    "downgrade": READ_FIRST,
    "take back": READ_FIRST,
    "downgrade to free": READ_FIRST,
    "upgrade over a waiting downgrade": READ_FIRST,
    "free to paid": READ_FIRST,
    "lost upgrade": READ_FIRST,
    "lost take back": READ_FIRST,
    "rename": PAYER_IS_NOT_SENT_AGAIN,
    "email": PAYER_IS_NOT_SENT_AGAIN,
    "preview": "the price of another plan is read in Lago (lago.md 6)",
    "usage": "usage is read without taxes, which a tax integration would be asked for (lago.md 6)",
}
# The story's faults by what the sandbox has: half a body and no body are both no answer.
LOST = {
    "lost drop_after": "lost_answer",
    "lost half": "lost_answer",
    "lost drop_before": "reset",
    "lost 500_after": "500_after",
}


FIVE = {
    "alpha": "starter",
    "beta": "professional",
    "gamma": "enterprise",
    "delta": "founders_friend",
    "epsilon": "starter",
}
PLAN_CHANGES = {
    "upgrade": ("alpha", "professional"),
    "downgrade": ("alpha", "starter"),
    "take back": ("alpha", "professional"),
    "downgrade to free": ("beta", "founders_friend"),
    "second downgrade over it": ("beta", "starter"),
    "upgrade over a waiting downgrade": ("beta", "enterprise"),
    "free to paid": ("delta", "starter"),
    "lost upgrade": ("lost half", "professional"),
}


@dataclass
class Story:
    """Plays one step after the other. ``organizations``: the ids here of those that the steps name."""

    world: SyncWorld
    lago: LagoProvider
    organizations: dict[str, str] = field(default_factory=dict)

    def play(self, step: str) -> None:
        if step in LOST:
            for operation in (POST_CUSTOMER, POST_SUBSCRIPTION):
                self.world.sandbox.add_fault("lago", operation, LOST[step])
            self._create(step, "starter")
        elif step in PLAN_CHANGES:
            if step == "downgrade":  # the recorder typed a preview first, which counts to this step
                self.preview()
            if step == "lost upgrade":
                self.world.sandbox.add_fault("lago", POST_SUBSCRIPTION, "lost_answer")
            self._change_plan(*PLAN_CHANGES[step])
        else:
            actions: dict[str, Callable[[], None]] = {
                "plans": self._push_plans,
                "create": self.create_five,
                "rename": self._rename,
                "email": self._change_email,
                "preview": self.preview,
                "suspend and back": self._suspend_and_back,
                "usage": self._usage,
                "lost take back": self._lose_a_take_back,
                "kill -9 in the middle": self._kill_in_the_middle,
            }
            actions[step]()

    def create_five(self) -> None:
        for name, tier in FIVE.items():
            self._create(name, tier)

    def preview(self) -> None:
        spec = SubscriptionSpec(org_id=self.organizations["alpha"], customer_id="", plan_code="professional")
        query = PlanChangeQuery(spec=spec, subscription_id=None, list_price=4900, currency="USD")
        self.lago.usage_and_preview.quote(query)

    def _push_plans(self) -> None:
        publishing.publish(self.world.catalog, self.world.providers.values())
        self._confirm_account()

    def _rename(self) -> None:
        self.world.rename(self.organizations["alpha"], 'Alpha & Söhne "GmbH" 株式会社')
        self._reconcile("alpha")

    def _change_email(self) -> None:
        self.world.change(
            self.organizations["alpha"],
            lambda change, organization: commands.change_billing_details(
                change, organization, self.world.catalog, billing_email="billing+new@example.org"
            ),
        )
        self._reconcile("alpha")

    def _suspend_and_back(self) -> None:
        for status in ("suspended", "active"):
            self.world.change_status(self.organizations["beta"], status)
            self._reconcile("beta")

    def _usage(self) -> None:
        self.lago.usage_and_preview.usage(self.organizations["alpha"])

    def _lose_a_take_back(self) -> None:
        self._change_plan("lost half", "starter")
        self.world.sandbox.add_fault("lago", DELETE_SUBSCRIPTION, "lost_answer")
        self._change_plan("lost half", "professional")

    def _kill_in_the_middle(self) -> None:
        """The process that starts next first makes sure whose key it has."""
        org_id = self.organizations["killed"] = self.world.create("killed", "professional", "k@example.com")
        self.world.run(org_id, "stripe")
        is_observed = self.world.management == "observe"  # its attempts end where they would write
        setattr(self.world.providers["lago"], "before_customer" if is_observed else "after_customer", kill_worker)
        self.world.run_until_killed(org_id, "lago")
        self.world.expire_lease()
        self._confirm_account()
        self._reconcile("killed")

    def _confirm_account(self) -> None:
        AccountGuard(database=self.world.database, providers=self.world.providers, clock=self.world.clock).confirm()

    def _change_plan(self, name: str, tier: str) -> None:
        self.world.change_plan(self.organizations[name], tier)
        self._reconcile(name)

    def _create(self, name: str, tier: str) -> None:
        self.organizations[name] = self.world.create(name, tier, "mail@example.com")
        self._reconcile(name)

    def _reconcile(self, name: str) -> None:
        org_id = self.organizations[name]
        self.world.reconcile_until_idle(org_id)
        if self.world.management == "observe":
            assert {self.world.link(org_id, provider).state for provider in PROVIDERS} == {"observed"}
        else:
            assert self.world.is_in_sync(org_id)


@pytest.fixture
def story(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[Story]:
    lago = LagoProvider(
        sandbox_server.url, "sandbox", payment_provider_code=PAYMENT_PROVIDER_CODE, ending=world.catalog.ending
    )
    yield Story(world, lago)
    lago.close()


def test_our_requests_are_those_of_the_recorded_story(story: Story) -> None:
    differing = {}
    for step, recorded in _recorded_steps():
        story.world.sandbox.reset_calls()
        story.play(step)
        sent = _sent(story.world)
        is_equal = set(sent) == set(recorded) if step in IN_ANY_ORDER else sent == recorded
        if not is_equal:
            differing[step] = f"{sent} instead of {recorded}"
    assert differing.keys() == DIFFERENCES.keys(), differing


def test_while_it_is_observed_the_whole_story_writes_nothing(story: Story) -> None:
    story.world.management = "observe"
    before = story.world.sandbox.state()
    for step, _ in _recorded_steps():
        if step != "plans":  # they are there already, and an observed installation creates none
            story.play(step)
    counters = story.world.sandbox.counters()
    operations = {*counters.stripe.operations, *counters.lago.operations}
    assert {name for name in operations if not name.startswith("GET ")} == set()
    assert operations
    assert story.world.sandbox.state() == before


def test_a_remote_check_asks_what_the_recorded_one_asked(story: Story) -> None:
    story.create_five()
    world, org_id = story.world, story.organizations["alpha"]
    world.wait(10)
    world.sandbox.reset_calls()
    check_after_webhook(world, org_id, "lago")
    recorded = [_shape(each) for each in calls(WHOLE_STORY) if each.step == "upgrade"][1:4]
    # Invoices whose dispute was lost were not asked for when the story was recorded.
    assert _sent(world) == [*recorded, "GET invoices external_customer_id payment_dispute_lost per_page statuses[]"]


def _recorded_steps() -> Iterator[tuple[str, list[str]]]:
    for step, of_step in groupby(calls(WHOLE_STORY), key=lambda call: call.step):
        yield step, [_shape(call) for call in of_step if not _is_left_out(call)]


def _is_left_out(call: RecordedCall) -> bool:
    """A read of the recorder, or of a remote check."""
    is_list = call.operation in {"GET subscriptions", "GET invoices"}
    return is_list or call.operation == "GET customers/{id}"


def _sent(world: SyncWorld) -> list[str]:
    return [
        _shape(
            RecordedCall(
                place="",
                step="",
                method=call.method,
                path=call.path,
                query=call.query,
                request=json.loads(call.body) if call.body else None,
                status=call.status,
                response=None,
                caller_saw=None,
            )
        )
        for call in world.sandbox.calls("lago")
    ]


def _shape(call: RecordedCall) -> str:
    names = [*sorted({name for name, _ in parse_qsl(call.query)}), *sorted(_names(call.request, ""))]
    return " ".join([call.operation, *names])


def _names(document: object, prefix: str) -> Iterator[str]:
    if not isinstance(document, dict):
        return
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
