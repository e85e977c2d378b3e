"""The story: what a year with the product brings, as steps. After each step both providers are read by plain HTTP.

A step that the provider cannot carry out is skipped, and one of which it cannot do a part is reduced. Either is
reported with the reason from the table of stand-ins; a step that fails ends the story.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final, Literal

import httpx

from core.predecessor.files import FilePosition, OldOrganization, write_members, write_organizations
from tests.foreign.accounts import LagoDashboard, StripeDashboard
from tests.foreign.forwarder import Forwarder
from tests.foreign.product import Document, Product, StoryFailedError

ChargingSide = Literal["lago", "stripe"]

TIERS: Final[Mapping[str, int]] = {"founders_friend": 0, "starter": 1900, "professional": 4900, "enterprise": 9900}
DRIFT_FOUND: Final = 2


class Ability(StrEnum):
    """What a step needs from a Stripe that is not ours."""

    NEW_NAME = "store the name of a new customer"
    MERGED_METADATA = "keep metadata that an update does not name"
    REPLAY = "answer a repeated create with the first customer"
    CHOSEN_PRODUCT = "create a product with an id of our choice"
    PRICES = "create and find prices by lookup key"
    FREE_PLANS = "begin a free plan without a payment method"
    NEW_SUBSCRIPTIONS = "create a subscription that is paid by invoice"
    CHANGED_SUBSCRIPTIONS = "move a subscription to another price"
    ENDED_SUBSCRIPTIONS = "end a subscription"
    DRIFT_LISTS = "give the lists that a drift check reads"
    ADOPTION = "show a customer as an adoption reads it"


@dataclass
class Expected:
    """What must be at both providers for one organization."""

    name: str
    email: str
    tier: str
    pending: str | None = None
    deleted: bool = False


@dataclass(kw_only=True)
class ForeignStory:
    product: Product
    stripe: StripeDashboard
    lago: LagoDashboard
    to_stripe: Forwarder
    to_lago: Forwarder
    charged_by: ChargingSide
    prefix: str
    """Of the ids of organizations and of the codes of plans, with the id of the run."""
    lacks: Mapping[Ability, str]
    expected: dict[str, Expected] = field(default_factory=dict)
    reduced: list[str] = field(default_factory=list)
    """The reasons for which the step that runs was reduced."""

    def org_id(self, word: str) -> str:
        return f"org_{self.prefix}_{word}"

    def name(self, word: str) -> str:
        return f"{word} {self.prefix}"

    def code(self, tier: str) -> str:
        return f"{self.prefix}_{tier}"

    def can(self, ability: Ability) -> bool:
        """Whether to check what needs this; if not, the step counts as reduced."""
        reason = self.lacks.get(ability)
        if reason is not None and (sentence := f"cannot {ability}: {reason}") not in self.reduced:
            self.reduced.append(sentence)
        return reason is None

    # ---------------------------------------------------------------------------------------------- changes

    def create(self, word: str, tier: str, display_name: str | None = None) -> str:
        org_id = self.org_id(word)
        new = Expected(self.name(display_name or word.title()), f"{word}@billing-sync.example.com", tier)
        self.expected[org_id] = new
        self.product.send("created", org_id, name=new.name, plan_tier=tier, billing_email=new.email)
        return org_id

    def rename(self, org_id: str, name: str) -> None:
        self.expected[org_id].name = name
        self.product.send("renamed", org_id, name=name)

    def change_email(self, org_id: str, email: str) -> None:
        self.expected[org_id].email = email
        self.product.send("billing_details_changed", org_id, billing_email=email)

    def raise_plan(self, org_id: str, tier: str) -> None:
        """To a higher plan, or back to the present one: at once."""
        self.expected[org_id].tier, self.expected[org_id].pending = tier, None
        self.product.send("plan_changed", org_id, plan_tier=tier)

    def lower_plan(self, org_id: str, tier: str) -> None:
        self.expected[org_id].pending = tier
        self.product.send("plan_changed", org_id, plan_tier=tier)

    def delete(self, org_id: str) -> None:
        self.expected[org_id].deleted = True
        self.product.send("status_changed", org_id, status="deleted")

    # ------------------------------------------------------------------------------------- what must hold

    def check(self, *org_ids: str) -> None:
        """Wait until the organizations are in sync; then read them here, in Stripe and in Lago."""
        for org_id in org_ids:
            self.product.wait_until_in_sync(org_id)
        for org_id in org_ids:
            expected = self.expected[org_id]
            if not expected.deleted:
                found = self.product.organization(org_id)
                _require_equal(org_id, "plan here", found["plan_tier"], expected.tier)
                _require_equal(org_id, "pending plan here", found["pending_plan_tier"], expected.pending)
            self._check_stripe(org_id, expected)
            self._check_lago(org_id, expected)

    def stripe_customer(self, org_id: str) -> Document:
        customers = self.stripe.customers_of(org_id)
        _require_equal(org_id, "customers in Stripe", len(customers), 1)
        return customers[0]

    def _check_stripe(self, org_id: str, expected: Expected) -> None:
        customer = self.stripe_customer(org_id)
        _require_equal(org_id, "deleted in Stripe", customer.get("deleted", False), expected=False)
        if customer["name"] is not None or self.can(Ability.NEW_NAME):
            _require_equal(org_id, "name in Stripe", customer["name"], expected.name)
        _require_equal(org_id, "email in Stripe", customer["email"], expected.email)
        if self.charged_by != "stripe":
            return
        live = self.stripe.live_subscriptions(customer["id"])
        _require_equal(org_id, "live subscriptions in Stripe", len(live), 0 if expected.deleted else 1)
        for each in live:
            items = each["items"]["data"]
            _require_equal(org_id, "items of the subscription in Stripe", len(items), 1)
            # The next invoice is at the lower price; the paid period stays paid (decision 0003).
            price = self.stripe.price(self.code(expected.pending or expected.tier))
            _require_equal(org_id, "price in Stripe", items[0]["price"]["id"], price["id"])

    def _check_lago(self, org_id: str, expected: Expected) -> None:
        _require_equal(org_id, "name in Lago", self.lago.customer(org_id)["name"], expected.name)
        active = [each for each in self.lago.live_subscriptions(org_id) if each["status"] == "active"]
        has_one = self.charged_by == "lago" and not expected.deleted
        if has_one or self.charged_by == "lago":
            _require_equal(org_id, "active subscriptions in Lago", len(active), 1 if has_one else 0)
        if has_one:
            next_code = self.code(expected.pending) if expected.pending else None
            _require_equal(org_id, "plan in Lago", active[0]["plan_code"], self.code(expected.tier))
            _require_equal(org_id, "next plan in Lago", active[0].get("next_plan_code"), next_code)


def _require_equal(org_id: str, what: str, found: object, expected: object) -> None:
    if found != expected:
        message = f"{org_id}: {what} is {found!r}, expected {expected!r}"
        raise StoryFailedError(message)


# ------------------------------------------------------------------------------------------------------------ steps


@dataclass(frozen=True, kw_only=True)
class Step:
    """``needs``: without one of these the step is skipped; ``where_stripe_charges``: needed only if Stripe charges."""

    title: str
    run: Callable[[ForeignStory], None]
    needs: tuple[Ability, ...] = ()
    where_stripe_charges: tuple[Ability, ...] = ()

    def needed(self, charged_by: ChargingSide) -> tuple[Ability, ...]:
        return (*self.needs, *(self.where_stripe_charges if charged_by == "stripe" else ()))


def create_five(story: ForeignStory) -> None:
    names = {"acme": "Ácme & Söhne", "globex": None, "initech": None, "umbrella": "傘 Umbrella", "hooli": 'Hooli "XYZ"'}
    is_free = story.charged_by == "lago" or story.can(Ability.FREE_PLANS)
    tiers = ("starter", "professional", "enterprise", "founders_friend" if is_free else "starter", "starter")
    created = [story.create(word, tier, name) for (word, name), tier in zip(names.items(), tiers, strict=True)]
    story.check(*created)


def rename(story: ForeignStory) -> None:
    acme = story.org_id("acme")
    story.rename(acme, story.name("Acme Worldwide"))
    story.change_email(acme, "accounts@billing-sync.example.com")
    story.check(acme)


def go_up(story: ForeignStory) -> None:
    acme, umbrella = story.org_id("acme"), story.org_id("umbrella")
    story.raise_plan(acme, "enterprise")
    story.raise_plan(umbrella, "professional")
    story.check(acme, umbrella)


def go_down(story: ForeignStory) -> None:
    acme, globex = story.org_id("acme"), story.org_id("globex")
    story.lower_plan(acme, "professional")
    story.lower_plan(globex, "starter")
    story.check(acme, globex)


def take_back(story: ForeignStory) -> None:
    acme = story.org_id("acme")
    story.raise_plan(acme, "enterprise")
    story.check(acme)


def suspend(story: ForeignStory) -> None:
    """Blocks the use of the organization and changes nothing at a provider."""
    hooli = story.org_id("hooli")
    story.product.send("status_changed", hooli, status="suspended")
    story.check(hooli)
    _require_equal(hooli, "status here", story.product.organization(hooli)["status"], "suspended")


def delete(story: ForeignStory) -> None:
    initech = story.org_id("initech")
    story.delete(initech)
    story.check(initech)


def import_files(story: ForeignStory) -> None:
    """Two organizations of the predecessor, one of which has customers at both providers already and is adopted."""
    known, new = story.org_id("known"), story.org_id("imported")
    if not story.can(Ability.ADOPTION):
        _import(story, {new: (None, None)})
        story.check(new)
        return
    lago_id = str(story.lago.write_customer(known, story.name("Known"))["lago_id"])
    stripe_id = str(
        story.stripe.create_customer(name=story.name("Known"), email="known@billing-sync.example.com")["id"]
    )
    _import(story, {known: (lago_id, stripe_id), new: (None, None)})
    _adopt(story, known)
    story.check(known, new)
    _require_equal(known, "customer in Stripe", story.stripe_customer(known)["id"], stripe_id)


def _adopt(story: ForeignStory, org_id: str) -> None:
    """Again while a worker has it, as the command says."""
    for _ in range(MAX_ADOPTION_TRIES):
        adopted = story.product.run("adopt", org_id, "--keep-price", "--yes")
        if "is being synced now" not in adopted.stderr:
            break
        time.sleep(SECONDS_BETWEEN_TRIES)
    if adopted.returncode:
        message = f"{org_id} was not adopted: {adopted.stdout}{adopted.stderr}"
        raise StoryFailedError(message)


def _import(story: ForeignStory, ids: Mapping[str, tuple[str | None, str | None]]) -> None:
    records = [
        OldOrganization(
            id=org_id,
            name=story.name("Known" if lago_customer else "Imported"),
            created_at=None,
            plan_tier="starter",
            lago_customer_id=lago_customer,
            stripe_customer_id=stripe_customer,
            status="active",
            position=FilePosition("story", number, 0),
        )
        for number, (org_id, (lago_customer, stripe_customer)) in enumerate(ids.items())
    ]
    organizations, users = (Path(story.product.folder) / name for name in ("organizations.json", "org_users.json"))
    write_organizations(organizations, records)
    write_members(users, ())
    story.product.document("import", str(organizations), str(users))
    for org_id, (lago_customer, _) in ids.items():
        word = "known" if lago_customer else "imported"
        story.expected[org_id] = Expected(story.name(word.title()), f"{word}@billing-sync.example.com", "starter")
        story.change_email(org_id, story.expected[org_id].email)


def edit_by_hand(story: ForeignStory) -> None:
    """Somebody renames a customer in each dashboard. The drift check finds both, and its repair undoes them."""
    at_stripe, at_lago = story.org_id("globex"), story.org_id("umbrella")
    story.stripe.post(f"/v1/customers/{story.stripe_customer(at_stripe)['id']}", name="Edited by hand")
    story.lago.write_customer(at_lago, "Edited by hand")
    # A write that is minutes old may still be one of ours in flight; the check leaves such an organization out.
    report = story.product.document("drift", "check", allowed=(0, DRIFT_FOUND))
    for org_id in (at_stripe, at_lago):
        kinds = [each["kind"] for item in report["items"] if item["org_id"] == org_id for each in item["findings"]]
        _require_equal(org_id, "findings of the drift check", kinds, ["renamed"])
    story.product.document("drift", "repair", report["id"])
    story.check(at_stripe, at_lago)


def find_nothing_else(story: ForeignStory) -> None:
    """A drift check with no drift: what we sent is what the lists of both providers show."""
    report = story.product.document("drift", "check", allowed=(0, DRIFT_FOUND))
    ours = [item for item in report["items"] if item["org_id"] in story.expected]
    findings = [(item["org_id"], each["kind"], each["advice"]) for item in ours for each in item["findings"]]
    _require_equal("every organization", "findings of the drift check", findings, [])


def lose_new_customers(story: ForeignStory) -> None:
    with lost(story.to_stripe, "POST /v1/customers"), lost(story.to_lago, "POST /api/v1/customers"):
        org_id = story.create("lost", "starter")
        story.check(org_id)


def lose_new_subscription(story: ForeignStory) -> None:
    forwarder = story.to_stripe if story.charged_by == "stripe" else story.to_lago
    path = "/v1/subscriptions" if story.charged_by == "stripe" else "/api/v1/subscriptions"
    with lost(forwarder, f"POST {path}"):
        org_id = story.create("lostplan", "professional")
        story.check(org_id)


def lose_rename(story: ForeignStory) -> None:
    org_id = story.org_id("hooli")
    with lost(story.to_stripe, "POST /v1/customers/{id}"):
        story.rename(org_id, story.name("Hooli Renamed"))
        story.check(org_id)


def lose_plan_changes(story: ForeignStory) -> None:
    org_id = story.org_id("hooli")
    forwarder = story.to_stripe if story.charged_by == "stripe" else story.to_lago
    path = "/v1/subscriptions/{id}" if story.charged_by == "stripe" else "/api/v1/subscriptions"
    with lost(forwarder, f"POST {path}"):
        story.raise_plan(org_id, "enterprise")
        story.check(org_id)
    with lost(forwarder, f"POST {path}"):
        story.lower_plan(org_id, "starter")
        story.check(org_id)


def lose_end(story: ForeignStory) -> None:
    org_id = story.org_id("globex")
    forwarder = story.to_stripe if story.charged_by == "stripe" else story.to_lago
    path = "/v1/subscriptions/{id}" if story.charged_by == "stripe" else "/api/v1/subscriptions/{id}"
    with lost(forwarder, f"DELETE {path}"):
        story.delete(org_id)
        story.check(org_id)


def end_all(story: ForeignStory) -> None:
    """Every subscription is ended; every customer stays, since only its owner may delete it."""
    rest = [org_id for org_id, expected in story.expected.items() if not expected.deleted]
    for org_id in rest:
        story.delete(org_id)
    story.check(*rest)


class lost:  # noqa: N801 - used as a word in a `with`
    """Within the block the answer to one such request is lost. Raises if none was sent."""

    def __init__(self, forwarder: Forwarder, operation: str) -> None:
        self._forwarder = forwarder
        self._operation = operation

    def __enter__(self) -> None:
        self._loss = self._forwarder.lose_answer(self._operation)

    def __exit__(self, *error: object) -> None:
        self._forwarder.stop_losing()
        if error[0] is None and self._loss.times:
            message = f"no {self._operation} was sent, so no answer was lost"
            raise StoryFailedError(message)


MAX_ADOPTION_TRIES: Final = 20
SECONDS_BETWEEN_TRIES: Final = 3.0
_SUBSCRIBED: Final = (Ability.PRICES, Ability.NEW_SUBSCRIPTIONS)
_CHANGED: Final = (*_SUBSCRIBED, Ability.CHANGED_SUBSCRIPTIONS)
_ENDED: Final = (*_SUBSCRIBED, Ability.ENDED_SUBSCRIPTIONS)

STEPS: Final[tuple[Step, ...]] = (
    Step(title="create five organizations", run=create_five, where_stripe_charges=_SUBSCRIBED),
    Step(title="rename one and change its email", run=rename, where_stripe_charges=_SUBSCRIBED),
    Step(title="two go up to a higher plan", run=go_up, where_stripe_charges=_CHANGED),
    Step(title="two go down to a lower plan", run=go_down, where_stripe_charges=_CHANGED),
    Step(title="one takes the lower plan back", run=take_back, where_stripe_charges=_CHANGED),
    Step(title="suspend one", run=suspend, where_stripe_charges=_SUBSCRIBED),
    Step(title="delete one", run=delete, where_stripe_charges=_ENDED),
    Step(title="import two of the predecessor", run=import_files, where_stripe_charges=_SUBSCRIBED),
    Step(
        title="undo edits by hand after a drift check",
        run=edit_by_hand,
        needs=(Ability.DRIFT_LISTS,),
        where_stripe_charges=_SUBSCRIBED,
    ),
    Step(
        title="find no other drift",
        run=find_nothing_else,
        needs=(Ability.DRIFT_LISTS, Ability.NEW_NAME),
        where_stripe_charges=_SUBSCRIBED,
    ),
    Step(
        title="lose the answers to new customers",
        run=lose_new_customers,
        needs=(Ability.REPLAY,),
        where_stripe_charges=_SUBSCRIBED,
    ),
    Step(title="lose the answer to a new subscription", run=lose_new_subscription, where_stripe_charges=_SUBSCRIBED),
    Step(title="lose the answer to a rename", run=lose_rename, where_stripe_charges=_SUBSCRIBED),
    Step(title="lose the answers to plan changes", run=lose_plan_changes, where_stripe_charges=_CHANGED),
    Step(title="lose the answer to an end", run=lose_end, where_stripe_charges=_ENDED),
    Step(title="end every subscription", run=end_all, where_stripe_charges=_ENDED),
)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """``reasons``: why it was skipped or reduced. ``problem``: what did not hold; the story ends there."""

    title: str
    status: Literal["done", "reduced", "cannot", "failed"]
    reasons: tuple[str, ...] = ()
    problem: str | None = None
    seconds: float = 0.0


def tell(story: ForeignStory) -> Iterator[StepResult]:
    """Run the steps in their order, until one fails; then only the last, which ends everything."""
    for step in STEPS:
        missing = [each for each in step.needed(story.charged_by) if each in story.lacks]
        if missing:
            reasons = tuple(f"cannot {each}: {story.lacks[each]}" for each in missing)
            yield StepResult(title=step.title, status="cannot", reasons=reasons)
            continue
        story.reduced.clear()
        result = _run(step, story)
        yield result
        if result.status == "failed":
            # Whatever was made is ended all the same, so that nothing of it is left alive in an account.
            if step is not STEPS[-1]:
                yield _run(STEPS[-1], story)
            return


def _run(step: Step, story: ForeignStory) -> StepResult:
    started = time.monotonic()
    problem = None
    try:
        step.run(story)
    except (StoryFailedError, httpx.HTTPError) as error:
        problem = str(error) or type(error).__name__
    status: Literal["done", "reduced", "failed"] = "failed" if problem else "reduced" if story.reduced else "done"
    return StepResult(
        title=step.title,
        status=status,
        reasons=tuple(story.reduced),
        problem=problem,
        seconds=time.monotonic() - started,
    )
