"""A run that is killed anywhere leaves a row adopted or as it was, and the next run goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from sqlalchemy import Engine, event, func, select

from core.adoption.adopter import Adopter
from core.adoption.row import AdoptionRow
from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.ports.inventory import Inventory
from core.ports.spec import Provider
from sandbox.server import Sandbox
from tests.support.adoption_harness import BY_OPERATOR, AdoptionHarness
from tests.support.sync_world import SyncWorld, WorkerDiedError

ReadT = TypeVar("ReadT")


@pytest.fixture
def theirs(world: SyncWorld, sandbox_server: Sandbox) -> Iterator[AdoptionHarness]:
    harness = AdoptionHarness(world=world, url=sandbox_server.url)
    yield harness
    harness.close()


class Death:
    """Comes at the step with this number. ``steps``: how many there were."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            raise WorkerDiedError


@contextmanager
def at_statement(death: Death) -> Iterator[None]:
    def before_statement(*_: object) -> None:
        death.step()

    event.listen(Engine, "before_cursor_execute", before_statement)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", before_statement)


def run(theirs: AdoptionHarness, rows: list[AdoptionRow], death: Death) -> bool:
    """Whether it came to its end. It may die before each read of a provider and at each statement."""

    def read(provider: Provider, read_inventory: Callable[[Inventory], ReadT]) -> ReadT:
        death.step()
        return theirs.read(provider, read_inventory)

    adopter = Adopter(
        database=theirs.world.database,
        read=read,
        rules=theirs.adopter().rules,
        clock=theirs.world.clock,
        cause=BY_OPERATOR,
    )
    try:
        with at_statement(death):
            list(adopter.apply(rows))
    except WorkerDiedError:
        return False
    return True


def count_organizations(theirs: AdoptionHarness) -> int:
    with theirs.world.database.read() as session:
        return session.scalar(select(func.count(Organization.id))) or 0


def test_a_run_that_is_killed_at_each_step_ends_as_one_that_is_not(theirs: AdoptionHarness) -> None:
    rows = [
        theirs.row(stripe=theirs.stripe_customer(), lago=theirs.lago_customer(plan="professional")),
        theirs.row(stripe=theirs.stripe_customer("cus_second", name="Globex")),
    ]
    kills = 0
    while not run(theirs, rows, Death(at=kills + 1)):
        kills += 1
        # Whatever the step was, a row is adopted as a whole or not at all.
        with theirs.world.database.read() as session:
            types = list(session.scalars(select(Event.type).order_by(Event.seq)))
        assert types == ["organization.created", "organization.adopted"] * count_organizations(theirs)
    assert kills > 20
    assert count_organizations(theirs) == 2
    assert theirs.writes() == []
    assert [each.kind for each in theirs.adopter().apply(rows)] == ["already_adopted", "already_adopted"]
