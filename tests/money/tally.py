"""What a run of the money machine did and found: its last line, and how often each hand was drawn."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Concatenate, ParamSpec, Protocol, TypeVar


class ChargedTwiceError(AssertionError):
    """Somebody pays two providers, or pays for the same time again."""


class RepricedError(AssertionError):
    """Somebody has another price, and neither a plan change nor a person asked for it."""


class ShownLateError(AssertionError):
    """A scheduled change of ours was carried out more than an hour ago, and we do not show it."""


class SentUnaskedError(AssertionError):
    """What somebody pays was changed beyond the limit of the payment brake, and no operator let it go."""


FINDINGS: dict[type[AssertionError], str] = {
    ChargedTwiceError: "charged twice",
    RepricedError: "re-priced without a word",
    ShownLateError: "shown late",
    SentUnaskedError: "sent past the brake",
}


@dataclass
class Tally:
    """``hands``: what was drawn, and as ``… : held`` how often it came to what it is about."""

    steps: int = 0
    stories: int = 0
    hands: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)

    def record(self, error: AssertionError) -> None:
        self.found[FINDINGS.get(type(error), "wrong in another way")] += 1

    @property
    def line(self) -> str:
        """The last line of a run: what must be 0, and anything else only if there is some."""
        kinds = [*FINDINGS.values(), *(kind for kind in self.found if kind not in FINDINGS.values())]
        found = ", ".join(f"{self.found[kind]} {kind}" for kind in kinds)
        return f"{self.steps:,} steps, {self.stories:,} stories, {found}"

    def drawn(self) -> str:
        """A table of the hands, the most frequent first."""
        return "\n".join(f"{times:7,}  {hand.replace('_', ' ')}" for hand, times in self.hands.most_common())


class Tallied(Protocol):
    @property
    def tally(self) -> Tally: ...


Params = ParamSpec("Params")
Machine = TypeVar("Machine", bound=Tallied)


def tallied(
    method: Callable[Concatenate[Machine, Params], None],
) -> Callable[Concatenate[Machine, Params], None]:
    """Count how often a rule is drawn, by its name."""

    @functools.wraps(method)
    def counted(machine: Machine, /, *args: Params.args, **kwargs: Params.kwargs) -> None:
        machine.tally.hands[method.__name__] += 1
        method(machine, *args, **kwargs)

    return counted
