"""What is planned for an observed link is what one reconcile of it then does, for some seeded states."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.catalog.plans import Catalog
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.money.story import Stage
from tests.money.tally import Tally
from tests.observing.run import StateFigures, compare, empty_database


def compare_states(stage: Stage, numbers: range) -> StateFigures:
    lines: list[str] = []
    figures = StateFigures()
    for number in numbers:
        compare(stage, number, figures, lines.append)
    assert not figures.differences, "\n".join(lines)
    assert figures.writes == 0
    return figures


@pytest.fixture
def stage(sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog, tmp_path: Path) -> Stage:
    return Stage(empty_database(tmp_path), sandbox, sandbox_server.url, plans, Tally())


def test_what_is_planned_is_what_a_reconcile_does(stage: Stage) -> None:
    assert compare_states(stage, range(1, 13)).compared > 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_planned_is_what_a_reconcile_does_in_many_states(stage: Stage) -> None:
    figures = compare_states(stage, range(100, 220))
    assert set(figures.kinds) >= {"create_customer", "update_customer", "create_subscription", "schedule_plan"}
