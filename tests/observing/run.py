"""``make observed STATES=1000``: what is planned for an observed link is what one reconcile of it then does.

    python -m tests.observing.run [--seed 1] [--states 1000]

Each state has a number, which is its seed. In each, both links are observed, and then one of them is managed: what it
did is read at the provider from outside. A difference is printed with how the state came about. Exit code 1 if there
was one.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import structlog
from sqlalchemy import update

from core.catalog import plans as plan_catalog
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.ports.spec import PROVIDERS, Provider
from core.reconcile import observation
from core.reconcile.observation import Observation
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.money.story import MoneyStory, Stage
from tests.money.tally import Tally
from tests.observing import terms
from tests.observing.judge import Expectation
from tests.observing.states import SeededState
from tests.observing.terms import ProviderTerms

STATES: Final = 1_000
STATES_PER_LINE: Final = 20
MAX_TRIES: Final = 4

Say = Callable[[str], None]


@dataclass(kw_only=True)
class StateFigures:
    """``writes``: requests that changed something while a link was observed. ``kinds``: of the steps."""

    states: int = 0
    compared: int = 0
    writes: int = 0
    differences: int = 0
    problems: int = 0
    on_hold: int = 0
    kinds: Counter[str] = field(default_factory=Counter)

    @property
    def line(self) -> str:
        return (
            f"{self.states} states, {self.compared} compared, {sum(self.kinds.values())} steps, "
            f"{self.problems} problems, {self.on_hold} on hold; {self.writes} writes while observed, "
            f"{self.differences} differences"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.observing.run", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1, help="the first state")
    parser.add_argument("--states", type=int, default=STATES, help="how many states")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    figures = StateFigures()
    with tempfile.TemporaryDirectory() as folder, Sandbox(limits=False) as server, SandboxClient(server.url) as sandbox:
        stage = Stage(empty_database(Path(folder)), sandbox, server.url, plan_catalog.load(), Tally())
        for number in range(asked.seed, asked.seed + asked.states):
            compare(stage, number, figures, _say)
            if figures.states % STATES_PER_LINE == 0:
                _say(figures.line)
    _say(f"\n{', '.join(f'{count} {kind}' for kind, count in figures.kinds.most_common())}\n{figures.line}")
    return 1 if figures.differences or figures.writes else 0


def empty_database(folder: Path) -> Path:
    file = folder / "empty.db"
    database = Database(f"sqlite:///{file}")
    database.upgrade()
    database.close()
    return file


def compare(stage: Stage, number: int, figures: StateFigures, say: Say) -> None:
    """One state, from its seed."""
    chance = Random(number)  # noqa: S311 - a seeded state, no secret
    story = MoneyStory(stage)
    try:
        state = SeededState(story, chance)
        state.build()
        figures.states += 1
        found = _Comparison(story, state.org_id, figures).run(chance.choice(PROVIDERS))
    finally:
        story.close()
    figures.differences += len(found)
    if found:
        say(f"\nstate {number}: {'; '.join(state.words)}")
        for each in found:
            say(f"  ✗ {each}")


@dataclass(kw_only=True)
class _Comparison:
    story: MoneyStory
    org_id: str
    figures: StateFigures

    def __init__(self, story: MoneyStory, org_id: str, figures: StateFigures) -> None:
        self.story, self.org_id, self.figures = story, org_id, figures

    def run(self, provider: Provider) -> list[str]:
        world = self.story.world
        world.advance_time(minutes=10)  # nothing of ours is in flight any more
        before = world.sandbox.state()
        world.sandbox.reset_calls()
        world.set_mode(self.org_id, "observe")
        for each in PROVIDERS:
            self._reconcile(each)
        self.figures.writes += self._count_writes()
        if world.sandbox.state() != before:
            return ["the providers changed while the organization was observed"]
        link = world.link(self.org_id, provider)
        planned = observation.from_json(link.observation)
        if link.state == "on_hold":
            self.figures.on_hold += 1
            return []
        if link.state != "observed" or planned is None:
            return [f"{provider} is {link.state}: {link.error_message}"]
        return self._compare(provider, planned)

    def _compare(self, provider: Provider, planned: Observation) -> list[str]:
        world = self.story.world
        self.figures.compared += 1
        self.figures.kinds.update(step.kind for step in planned.steps)
        self.figures.problems += planned.problem is not None
        world.set_mode(self.org_id, "manage")
        if provider == "lago" and any(step.kind == "set_payer" and step.after is None for step in planned.steps):
            self._reconcile("stripe")
        before = terms.read(world.sandbox.state(), provider, self.org_id)
        self._reconcile(provider)
        if world.link(self.org_id, provider).state == "observed":
            return self._check_given_back(provider, before)
        organization, link = world.organization(self.org_id), world.link(self.org_id, provider)
        payer = world.link(self.org_id, "stripe").customer_id
        expectation = Expectation.of(provider, organization, payer, before)
        for step in planned.steps:
            expectation.apply(step)
        found = expectation.differences(terms.read(world.sandbox.state(), provider, self.org_id))
        problem = planned.problem
        if not _is_same_problem(problem.message if problem is not None else None, link.error_message):
            found.append(f"planned problem: {problem}; is {link.state}: {link.error_message}")
        return [f"{provider}, {[step.kind for step in planned.steps]}: {each}" for each in found]

    def _check_given_back(self, provider: Provider, before: ProviderTerms) -> list[str]:
        """Only an organization that is given back stays observed: its Lago link, until Stripe's marks are removed."""
        world = self.story.world
        if provider != "lago" or world.link(self.org_id, "stripe").marks != "removal":
            return [f"{provider} is observed in manage mode"]
        is_unchanged = terms.read(world.sandbox.state(), provider, self.org_id) == before
        return [] if is_unchanged else [f"{provider} was changed while the organization is given back"]

    def _reconcile(self, provider: Provider) -> None:
        """One attempt, without the wait after the one before; again, if a busy machine let the sandbox time out."""
        world = self.story.world
        for _ in range(MAX_TRIES):
            with world.database.write() as session:
                session.execute(update(BillingLink).values(not_before=None, not_before_reason=None))
            world.run(self.org_id, provider)
            if world.link(self.org_id, provider).error_kind != "unavailable":
                return

    def _count_writes(self) -> int:
        counters = self.story.world.sandbox.counters()
        operations = [*counters.stripe.operations.items(), *counters.lago.operations.items()]
        return sum(count for name, count in operations if not name.startswith("GET "))


def _is_same_problem(planned: str | None, happened: str | None) -> bool:
    """The id of a customer that Lago creates by mistake is known only afterwards."""
    cut = "no longer exists in Lago"
    return (planned or "").partition(cut)[:2] == (happened or "").partition(cut)[:2]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
