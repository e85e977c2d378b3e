"""``make money SEED=1``: the money machine for 10,000 steps, and at the end what it did and found in one line.

    python -m tests.money.run [--seed 1] [--steps 10000] [--steps-each 40] [--observe]

Ten stories are told for each seed, from the given one on, until the steps are reached. A failed story is printed and
counted, and the next seed follows. Exit code 1 if there was one. With ``--observe`` the installation is observed once
the first organizations are at home: from then on nothing may be written at a provider.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from core.catalog import plans as plan_catalog
from core.db.database import Database
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.money.machine import staged
from tests.money.story import Stage
from tests.money.tally import Tally

STEPS: Final = 10_000
STEPS_EACH: Final = 40
# From its eleventh on hypothesis varies the stories it has.
STORIES_OF_A_SEED: Final = 10

Say = Callable[[str], None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.money.run", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--steps", type=int, default=STEPS, help="how many steps at least")
    parser.add_argument("--steps-each", type=int, default=STEPS_EACH, help="how many steps a story has")
    parser.add_argument("--observe", action="store_true", help="the installation is observed")
    asked = parser.parse_args()
    # The stories print what they did; the log would hide it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, Sandbox(limits=False) as server, SandboxClient(server.url) as sandbox:
        stage = Stage(
            _empty_database(Path(folder)),
            sandbox,
            server.url,
            plan_catalog.load(),
            tally,
            management="observe" if asked.observe else "manage",
        )
        number = asked.seed
        while tally.steps < asked.steps:
            tell(stage, number, asked.steps_each, _say)
            _say(f"seed {number}: {tally.line}")
            number += 1
    _say(f"\nHow often each hand was drawn:\n{tally.drawn()}\n\n{tally.line}")
    return 1 if tally.found else 0


def tell(stage: Stage, number: int, steps_each: int, say: Say) -> None:
    """The stories of one seed, or those up to the first that fails, which is told in full."""
    told = settings(
        max_examples=STORIES_OF_A_SEED,
        stateful_step_count=steps_each,
        database=None,
        phases=[Phase.generate],
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(seed(number)(staged(stage)), settings=told)
    except AssertionError as error:
        stage.tally.record(error)
        say("".join(traceback.format_exception(error)))
    except Flaky as error:
        # Identifiers are random, and so is the minute at which a downgrade is checked.
        stage.tally.record(AssertionError(str(error)))
        say("".join(traceback.format_exception(error)))


def _empty_database(folder: Path) -> Path:
    file = folder / "empty.db"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
