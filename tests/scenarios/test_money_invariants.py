"""Whatever happens in whatever order, money stays right: one charger, one customer, nothing of others ended or joined.

The machine is ``tests/money/machine.py``. A longer run, with what was drawn and found: ``make money SEED=1``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from core.catalog.plans import Catalog
from core.db.database import Database
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.money.machine import staged
from tests.money.story import Stage
from tests.money.tally import Tally

pytestmark = pytest.mark.slow

# From its eleventh on hypothesis varies the stories it has; ten of several seeds each are forty different ones.
SEEDS: Final = [1, 2, 3, 4]
SHORT: Final = settings(
    max_examples=10,
    stateful_step_count=25,
    database=None,
    phases=[Phase.generate],  # a story can be read as it is; to shorten one takes minutes
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    file = tmp_path / "empty.db"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", SEEDS)
def test_money_is_right_after_each_step_of_any_story(
    number: int, empty: Path, sandbox: SandboxClient, plans: Catalog, sandbox_server: Sandbox
) -> None:
    stage = Stage(empty, sandbox, sandbox_server.url, plans, Tally())
    run_state_machine_as_test(seed(number)(staged(stage)), settings=SHORT)
