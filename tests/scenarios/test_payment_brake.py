"""Five hundred organizations are re-priced at once by mistake: the limit's number is sent, and the rest waits.

It happens through the API, by a script, by a wrong catalog with a script, and by an import whose organizations are then
adopted. An import alone changes nobody who is known already.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from api.context import ApiContext
from api.rate_limit import LocalClientRateLimiter
from api.server import ApiServer
from core.access import api_keys, service_accounts
from core.access.api_keys import SCOPES
from core.catalog import publishing
from core.catalog.plans import FormerCodes
from core.common.clock import utc_now
from core.flow_control.payment_brake import PaymentLimit
from core.reconcile import payment_holds
from tests.support import console
from tests.support.adoption_harness import AdoptionHarness
from tests.support.former_codes import NEW, give_new_code
from tests.support.importer import Importer
from tests.support.predecessor_files import organization as record
from tests.support.price_moves import PriceMoves
from tests.support.sync_world import SyncWorld

ORGANIZATIONS = 500
LIMIT = PaymentLimit(changes=10, percent=2)
SENT = ORGANIZATIONS * 2 * LIMIT.percent // 100
REST = ORGANIZATIONS - SENT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


class Mistake(Protocol):
    """``before``, ``after``: what each organization pays, as ``paid`` counts it."""

    before: str
    after: str

    def begin(self, world: SyncWorld, folder: Path) -> list[str]:
        """Five hundred organizations that pay what they should; their ids."""

    def make(self, world: SyncWorld, org_ids: list[str]) -> None: ...

    def paid(self, world: SyncWorld) -> Counter[str]: ...


@dataclass
class AtLago:
    """Lago charges, and the mistake is a change of the tier."""

    before: str = "professional"
    after: str = "enterprise"

    def begin(self, world: SyncWorld, folder: Path) -> list[str]:  # noqa: ARG002 - of the other mistakes
        org_ids = [world.create(f"Org {number}", email=f"{number}@acme.test") for number in range(ORGANIZATIONS)]
        settle(world, org_ids)
        return org_ids

    def paid(self, world: SyncWorld) -> Counter[str]:
        subscriptions = world.lago_objects("subscriptions")
        return Counter(str(each["plan_code"]) for each in subscriptions if each["status"] == "active")


@dataclass
class ByScript(AtLago):
    def make(self, world: SyncWorld, org_ids: list[str]) -> None:
        for org_id in org_ids:
            world.change_plan(org_id, "enterprise")


@dataclass
class ThroughApi(AtLago):
    def make(self, world: SyncWorld, org_ids: list[str]) -> None:
        with service(world) as http:
            for org_id in org_ids:
                changed = http.patch(f"/api/organizations/{org_id}/plan", json={"plan_tier": "enterprise"})
                assert changed.json()["status"] == "updated", changed.text


@dataclass
class ByCatalogAndScript(AtLago):
    """The tier has a new code, at ten times the price, and a script sets it."""

    after: str = "enterprise_2027"

    def make(self, world: SyncWorld, org_ids: list[str]) -> None:
        sold = world.catalog.plan("enterprise")
        new = {
            "amount": sold.amount * 10,
            "lago_plan_code": self.after,
            "stripe_lookup_key": f"{self.after}_usd",
            "former_codes": FormerCodes(lago=[sold.code("lago")], stripe=[sold.code("stripe")]),
        }
        plans = world.catalog.plans | {"enterprise": sold.model_copy(update=new)}
        world.catalog = world.catalog.model_copy(update={"plans": plans})
        publishing.publish(world.catalog, world.providers.values())
        for org_id in org_ids:
            world.change_plan(org_id, "enterprise")


@dataclass
class ByImportAndAdoption:
    """Stripe charges a price of its own, and a table says ``change-to-catalog`` for everybody who was imported."""

    before: str = "4000"
    after: str = "4900"

    def begin(self, world: SyncWorld, folder: Path) -> list[str]:
        world.set_charging_provider("stripe")
        world.management = "observe"
        numbers = range(ORGANIZATIONS)
        records = [
            record(number, name=f"Org {number}", plan_tier="professional", stripe_customer_id=f"cus_{number}")
            for number in numbers
        ]
        customers = [
            {"id": f"cus_{number}", "name": f"Org {number}", "email": f"{number}@acme.test"} for number in numbers
        ]
        world.sandbox.preload_stripe_customers(customers)
        product = world.sandbox.create("stripe", "products", name="Old")
        price = {"product": product["id"], "unit_amount": 4000, "currency": "usd", "recurring": {"interval": "month"}}
        (old,) = world.sandbox.preload_stripe_prices([price])
        for number in numbers:
            world.sandbox.preload_stripe_subscription(f"cus_{number}", str(old["id"]))
        Importer(world.database, world.catalog, world.clock, folder).bring(records)
        return [str(each["id"]) for each in records]

    def make(self, world: SyncWorld, org_ids: list[str]) -> None:
        harness = AdoptionHarness(world=world, url=world.url)
        rows = [
            harness.row(org_id=org_id, action="change-to-catalog", stripe=f"cus_{number}", resets_calls=False)
            for number, org_id in enumerate(org_ids)
        ]
        results = harness.adopter().apply([replace(row, currency="USD") for row in rows])
        assert {each.kind for each in results} == {"adopted"}
        harness.close()
        world.management = "manage"
        for org_id in org_ids:
            world.rename(org_id, f"{org_id} is managed")

    def paid(self, world: SyncWorld) -> Counter[str]:
        found: Counter[str] = Counter()
        for subscription in world.stripe_objects("subscriptions"):
            items: Any = subscription["items"]
            found.update(str(each["price"]["unit_amount"]) for each in items["data"])
        return found


@dataclass
class ByPriceMove(AtLago):
    """`plans move --apply` of all who were sold the former code, without the word that it is meant."""

    after: str = NEW
    is_expected: bool = False

    def make(self, world: SyncWorld, org_ids: list[str]) -> None:
        give_new_code(world)
        harness = AdoptionHarness(world=world, url=world.url)
        moves = PriceMoves(world=world, provider="lago", harness=harness)
        applied = moves.apply(moves.rows(), is_expected=self.is_expected)
        assert [each.row.org_id for each in applied if each.kind == "applied"] == sorted(org_ids)
        moves.sweep()  # the notices, and the starts
        harness.close()


MISTAKES: list[Mistake] = [ByScript(), ByCatalogAndScript(), ByImportAndAdoption(), ByPriceMove()]


@contextmanager
def service(world: SyncWorld) -> Iterator[httpx.Client]:
    """A service that calls the API over HTTP."""
    with world.database.write() as session:
        account = service_accounts.create(session, "a script", utc_now())
        _, key = api_keys.create(session, "its key", SCOPES, utc_now(), account_id=account.id)
    context = ApiContext(
        database=world.database,
        catalog=world.catalog,
        clock=world.clock,
        rate_limiter=LocalClientRateLimiter(1_000_000),
    )
    with (
        ApiServer(context, "127.0.0.1", 0, version="test") as server,
        httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=60
        ) as http,
    ):
        yield http


def settle(world: SyncWorld, org_ids: list[str]) -> None:
    for org_id in org_ids:
        world.run(org_id, "stripe")
    world.wait(5)
    for org_id in org_ids:
        world.run(org_id, "lago")
    world.wait(60)


def waiting(world: SyncWorld) -> list[str]:
    with world.database.read() as session:
        return [each.org_id for each in payment_holds.list_on_hold(session, ORGANIZATIONS)]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: type(mistake).__name__)
def test_exactly_the_limit_is_sent_dropped_nothing_and_released_exactly_the_rest(
    world: SyncWorld, tmp_path: Path, mistake: Mistake
) -> None:
    org_ids, on_hold = make(mistake, world, tmp_path)
    drop_and_release(mistake, world, org_ids, on_hold)


def test_all_of_an_expected_move_are_sent(world: SyncWorld, tmp_path: Path) -> None:
    move = ByPriceMove(is_expected=True)
    world.payment_limit = LIMIT
    org_ids = move.begin(world, tmp_path)
    move.make(world, org_ids)
    settle(world, org_ids)
    assert move.paid(world) == {move.after: ORGANIZATIONS}
    assert waiting(world) == []


def test_the_api_says_that_a_change_waits_and_an_import_changes_nobody(world: SyncWorld, tmp_path: Path) -> None:
    mistake = ThroughApi()
    org_ids, on_hold = make(mistake, world, tmp_path)
    with service(world) as http:
        found = http.get(f"/api/organizations/{on_hold[0]}/sync").json()
    assert found["in_sync"] is False
    lago = found["providers"]["lago"]
    assert (lago["status"], lago["error"]["kind"]) == ("on_hold", "payment_brake")
    assert lago["reason"] == "Too many changes of what organizations pay came at once, so this one waits at Lago."
    assert lago["next_step"] == "An operator must let it go. Nothing is sent before."
    files = (tmp_path / "organizations.json", tmp_path / "org_users.json")
    said = command(world, tmp_path, "export", *map(str, files))
    assert said == f"500 organizations to {files[0]}, 0 members to {files[1]}."
    exported = json.loads(files[0].read_text())
    files[0].write_text(json.dumps({org_id: each | {"plan_tier": "starter"} for org_id, each in exported.items()}))
    said = command(world, tmp_path, "import", *map(str, files))
    assert "kept the database's version: plan_tier changed since the import" in said
    drop_and_release(mistake, world, org_ids, on_hold)


def make(mistake: Mistake, world: SyncWorld, folder: Path) -> tuple[list[str], list[str]]:
    """All of them, and those that wait after the workers have done what they may."""
    world.payment_limit = LIMIT
    org_ids = mistake.begin(world, folder)
    assert mistake.paid(world) == {mistake.before: ORGANIZATIONS}
    mistake.make(world, org_ids)
    settle(world, org_ids)
    assert mistake.paid(world) == {mistake.after: SENT, mistake.before: REST}
    on_hold = waiting(world)
    assert len(on_hold) == REST
    return org_ids, on_hold


def drop_and_release(mistake: Mistake, world: SyncWorld, org_ids: list[str], on_hold: list[str]) -> None:
    plans = {org_id: world.organization(org_id).plan_tier for org_id in on_hold}
    for org_id in on_hold:
        world.change(org_id, lambda change, found: payment_holds.drop(change, found, "a wrong script"))
    world.advance_time(hours=2)
    settle(world, org_ids)
    assert mistake.paid(world) == {mistake.after: SENT, mistake.before: REST}
    assert {org_id: world.organization(org_id).plan_tier for org_id in on_hold} == plans
    for org_id in on_hold:
        world.change(org_id, lambda change, found: payment_holds.release(change, found, world.catalog, "it is meant"))
    settle(world, org_ids)
    assert mistake.paid(world) == {mistake.after: ORGANIZATIONS}
    assert waiting(world) == []


def command(world: SyncWorld, folder: Path, *words: str) -> str:
    settings = {"DATABASE_URL": world.database.url.render_as_string(hide_password=False), "COLUMNS": "400"}
    ended = console.run(console.prepare(folder), *words, settings=settings)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
