"""A short form of ``make generated``: three hundred messages and three hundred requests to a whole system."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.catalog.plans import Catalog
from sandbox.server import Sandbox
from tests.generated import run, system

pytestmark = [pytest.mark.slow, pytest.mark.processes, pytest.mark.timeout(300)]

SEED = 1
SECONDS = 200.0  # half a minute where nothing else runs


def test_whatever_is_sent_no_process_ends_nothing_is_lost_and_no_answer_is_a_server_error(
    postgres_url: str, redis_url: str, plans: Catalog, tmp_path: Path
) -> None:
    lines: list[str] = []
    with (
        Sandbox(limits=False) as sandbox,
        system.running(postgres_url, redis_url, sandbox, plans, tmp_path) as under_test,
    ):
        report = run.play(under_test, SEED, messages=300, requests=300, seconds=SECONDS)
    run.tell(report, lines.append)
    assert not report.problems, "\n".join(lines)
    assert (report.account.messages, report.answers.sent) == (300, 300)
