"""A sample of ``make crash-matrix``: after a kill and a restart the result is the same, and no call is left out."""

from __future__ import annotations

import ast
import random

import pytest

from core.db.database import Database
from sandbox.client import SandboxClient
from tests.crash import elsewhere, matrix
from tests.crash.matrix import Matrix
from tests.crash.operations import OPERATIONS
from tests.crash.outcome import difference, outcome
from tests.crash.points import (
    BEFORE_COMMIT,
    BEFORE_PUBLISH,
    BEFORE_SENDING,
    NOT_ANSWERED,
    Point,
)
from tests.crash.sites import ROOT, Site, sites

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

SEED = 20261123
KIND = {BEFORE_COMMIT: "commit", BEFORE_SENDING: "send", BEFORE_PUBLISH: "publish"}
# The most dangerous points: a create that was done and whose response was not sent.
DEADLIEST = {
    Point(NOT_ANSWERED, "POST /v1/customers"),
    Point(NOT_ANSWERED, "POST /v1/subscriptions"),
    Point(NOT_ANSWERED, "POST /api/v1/customers"),
}


@pytest.fixture(scope="module")
def embedded() -> Matrix:
    """Every operation once undisturbed, then kills at the most dangerous points and at eight random ones."""
    return matrix.run("embedded", OPERATIONS, 4, _quietly, _sample(random.Random(SEED), 8))  # noqa: S311 - a sample


def _quietly(_: str) -> None:
    return


def _sample(chance: random.Random, others: int) -> matrix.Choice:
    def choose(points: list[tuple[str, Point]]) -> list[tuple[str, Point]]:
        deadliest = [(name, point) for name, point in points if name.endswith(": create") and point in DEADLIEST]
        return deadliest + chance.sample([each for each in points if each not in deadliest], others)

    return choose


def test_whatever_is_killed_ends_as_if_nothing_had_been(embedded: Matrix) -> None:
    assert not embedded.problems, "\n".join(
        f"{cell.operation}, {cell.point}: {cell.problem}" for cell in embedded.problems
    )
    assert sum(cell.reached for cell in embedded.cells) >= len(DEADLIEST)


def test_the_same_on_postgres_and_redis() -> None:
    ran = matrix.run("deployed", OPERATIONS[:1], 3, _quietly, _sample(random.Random(SEED), 4))  # noqa: S311 - a sample
    assert not ran.problems, "\n".join(f"{cell.operation}, {cell.point}: {cell.problem}" for cell in ran.problems)
    assert sum(cell.reached for cell in ran.cells) >= 3


def test_no_commit_no_request_and_no_publish_is_forgotten(embedded: Matrix) -> None:
    passed = _passed(embedded)
    written = {site.name for site in sites()}
    forgotten = [
        f"{site.kind}: {site.name}" for site in sorted(sites()) if site.name not in passed and not _excused(site)
    ]
    assert not forgotten, f"{forgotten}: add an operation to operations.py that does it, or a reason to elsewhere.py"
    unknown = sorted(passed - written)
    assert not unknown, f"{unknown}: passed, but not found in the code; see CARRIERS in points.py"


def test_each_reason_names_a_test_and_a_place_in_the_code() -> None:
    spots = {site.spot for site in sites()}
    for spot, test in elsewhere.SITES.items():
        path, _, name = test.partition("::")
        names = {
            node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert name in names, f"{spot}: {test} does not exist"
        assert spot in spots, f"{spot} is no longer in the code"
    for module, tests in elsewhere.WHOLE.items():
        assert (ROOT / tests).exists(), f"{module}: {tests} does not exist"


def test_an_effect_that_happened_twice_is_seen(sandbox: SandboxClient, sqlite_url: str) -> None:
    database = Database(sqlite_url)
    database.upgrade()
    sandbox.preload_stripe_customers([{"name": "Acme", "metadata": {"billing_sync_org_id": "org_1"}}])
    once = outcome(sandbox, database)
    assert difference(once, outcome(sandbox, database)) == []
    sandbox.preload_stripe_customers([{"name": "Acme", "metadata": {"billing_sync_org_id": "org_1"}}])
    assert difference(once, outcome(sandbox, database)) != []
    database.close()


def _passed(ran: Matrix) -> set[str]:
    """The sites that any run passed, undisturbed or after a crash."""
    points = [point for each in ran.recorded.values() for point in each.points]
    points += [point for cell in ran.cells for point in cell.points]
    return {point.site for point in points if point.moment in KIND}


def _excused(site: Site) -> bool:
    return site.spot in elsewhere.SITES or any(
        site.name.startswith((f"{each}:", f"{each}.")) for each in elsewhere.WHOLE
    )
