"""All plans of a Lago account are listed, with what each is to a catalog."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from core.common.json_types import Json
from core.ports.inventory import InventoryPrice
from providers.lago import plan_inventory
from providers.lago.client import LagoClient
from providers.transport.permits import READ_ONLY
from sandbox.server import Sandbox
from tests.support.scripted_lago import NO_ID, Reply, ScriptedLago

PLAN: dict[str, Json] = {
    "lago_id": NO_ID,
    "code": "starter",
    "name": "Starter",
    "amount_cents": 1900,
    "amount_currency": "USD",
    "interval": "monthly",
    "pay_in_advance": True,
    "charges": [],
}
STORAGE: dict[str, Json] = {"lago_id": NO_ID, "billable_metric_code": "storage"}


@pytest.fixture
def script() -> Iterator[ScriptedLago]:
    script = ScriptedLago()
    yield script
    script.close()


def read(script: ScriptedLago, **changed: Json) -> InventoryPrice:
    script.respond_with(Reply(200, {"plan": {**PLAN, **changed}}))
    client = LagoClient(script.url, "key", 10.0)
    try:
        found = plan_inventory.read_plan(client, READ_ONLY, "starter")
    finally:
        client.close()
    assert found is not None
    return found


def test_all_pages_are_listed() -> None:
    codes = {f"plan_{number}" for number in range(103)}
    with Sandbox(limits=False) as sandbox:
        for code in codes:
            body = {"plan": {**PLAN, "code": code}}
            httpx.post(
                f"{sandbox.url}/api/v1/plans", json=body, headers={"Authorization": "Bearer key"}
            ).raise_for_status()
        client = LagoClient(sandbox.url, "key", 10.0)
        first = plan_inventory.list_plans(client, READ_ONLY, None)
        second = plan_inventory.list_plans(client, READ_ONLY, first.next_cursor)
        client.close()
    assert second.next_cursor is None
    assert {each.code for each in (*first.rows, *second.rows)} == codes


def test_a_plan_on_our_terms_has_nothing_unusual(script: ScriptedLago) -> None:
    assert read(script) == InventoryPrice(
        id="starter", code="starter", name="Starter", amount=1900, currency="USD", interval="month"
    )


def test_usage_beside_an_amount_is_a_remark_and_usage_alone_has_no_amount(script: ScriptedLago) -> None:
    beside = read(script, charges=[STORAGE])
    assert (beside.amount, beside.unusual, beside.remarks) == (1900, (), ("it bills usage, too: storage",))
    alone = read(script, charges=[STORAGE], amount_cents=0)
    assert (alone.amount, alone.unusual) == (None, ("it has no flat amount",))


def test_the_plan_alone_shows_its_fixed_charges(script: ScriptedLago) -> None:
    charge: Json = {"lago_id": NO_ID, "add_on_code": "setup", "invoice_display_name": None}
    assert read(script, fixed_charges=[charge]).unusual == ("it has a fixed charge beside its amount: setup",)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ("weekly", ("week", 1)),
        ("monthly", ("month", 1)),
        ("quarterly", ("month", 3)),
        ("semiannual", ("month", 6)),
        ("yearly", ("year", 1)),
        ("hourly", (None, 1)),
    ],
)
def test_the_intervals_of_lago(script: ScriptedLago, interval: str, expected: tuple[str | None, int]) -> None:
    price = read(script, interval=interval)
    assert (price.interval, price.interval_count) == expected


def test_a_plan_that_lago_is_deleting_is_sold_no_longer(script: ScriptedLago) -> None:
    assert not read(script, pending_deletion=True).active
