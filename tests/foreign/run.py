"""``make foreign``: the whole story against stand-ins for Stripe that are not ours, with each charging provider.

Nobody else has written a stand-in for Lago that keeps state; our sandbox is Lago's side, and what it does is checked
against recordings of a real Lago (tests/recordings). The exit code is 0 if every step that a stand-in can carry out
holds, and if two stand-ins carried out the story.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.foreign import figures
from tests.foreign.differences import differences
from tests.foreign.product import StoryFailedError
from tests.foreign.stage import Providers, Telling, serving, tell_story
from tests.foreign.story import ChargingSide, StepResult
from tests.foreign.table import OWN_SANDBOX, STAND_INS, StandIn

LEAST_STAND_INS: Final = 2
AT_ONCE: Final = 3  # most of a story is waiting
PREFIX: Final = "foreign_run"
Job = tuple[StandIn, ChargingSide]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make foreign", description=__doc__)
    parser.add_argument("--only", help="the name of one stand-in")
    parser.add_argument("--differences", action="store_true", help="list each difference from our sandbox")
    options = parser.parse_args()
    chosen = [each for each in STAND_INS if options.only in {None, each.name}]
    write(*figures.table_lines(chosen), "")
    installed = [each for each in chosen if each.is_installed]
    jobs: list[Job] = [(each, side) for each in (OWN_SANDBOX, *installed) for side in each.charges]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tellings = list(pool.map(_tell, jobs))
    sandbox = {side: telling for (each, side), telling in zip(jobs, tellings, strict=True) if each is OWN_SANDBOX}
    rows = [list(figures.HEAD)]
    for (stand_in, side), telling in zip(jobs, tellings, strict=True):
        write(f"{stand_in.name}, where {side.title()} charges:", *figures.step_lines(telling), "")
        found = None if stand_in is OWN_SANDBOX else differences(sandbox[side].stripe, telling.stripe)
        if options.differences:
            write(*(f"  {each.place}: {each.sandbox} in the sandbox, {each.other} here" for each in found or ()))
        rows.append(figures.figures_row(stand_in.name, side, telling, found))
    write(*figures.aligned(rows), "", "sent and refused: requests of the product to Stripe's side.")
    failed = sum(telling.failed is not None for telling in tellings)
    too_few = options.only is None and len(installed) < LEAST_STAND_INS
    if too_few:
        write(f"Only {len(installed)} stand-ins are installed; {LEAST_STAND_INS} are needed.")
    write(f"{len(tellings) - failed} of {len(tellings)} stories hold, with {len(installed)} stand-ins of others.")
    return 1 if failed or too_few else 0


def _tell(job: Job) -> Telling:
    stand_in, side = job
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="billing-sync-foreign-")))
        try:
            stripe = stack.enter_context(serving(stand_in, folder))
            # One process is both providers of our sandbox; beside another Stripe it is only Lago.
            lago = stripe if stand_in is OWN_SANDBOX else stack.enter_context(serving(OWN_SANDBOX, folder))
        except StoryFailedError as error:
            failed = StepResult(title="start the stand-in", status="failed", problem=str(error))
            return Telling(steps=[failed], stripe=[], lago=[], seconds=0.0, left=[])
        providers = Providers(
            stripe_url=stripe + stand_in.path,
            stripe_key="sk_test_story",
            lago_url=lago,
            lago_key="story",
            # Lago would write to the Stripe of its own process, which is another one.
            settings={"LAGO_MANUAL_PAYMENTS": "true"},
            adapted=stand_in.adapted,
            left_out=stand_in.left_out,
            lacks=stand_in.lacks,
        )
        return tell_story(providers, side, PREFIX, folder)


def write(*lines: str | Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
