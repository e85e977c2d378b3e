"""A short form of ``make chaos``: each server and process fails once while changes are sent."""

from __future__ import annotations

import pytest

from tests.chaos import run

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

SEED = 1


@pytest.mark.parametrize("name", ["sqlite", "postgres-redis"])
def test_changes_that_flow_through_outages_are_in_sync_soon_after_and_once_each(name: run.Name) -> None:
    lines: list[str] = []
    report = run.play(name, SEED, lines.append, changes=60)
    assert not report.problems, "\n".join(lines)


def test_nothing_is_written_through_outages_while_it_is_observed() -> None:
    lines: list[str] = []
    report = run.play("postgres-redis", SEED, lines.append, changes=60, management="observe")
    assert not report.problems, "\n".join(lines)
