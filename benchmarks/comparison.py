"""What a benchmark prints: ours and its baseline from the same minutes, and the ratio of each pair of runs.

Runs are interleaved (ours, baseline, ours, …), so that whatever else the machine does falls on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``figures`` and ``baseline`` in ``unit``, pair by pair; ``wanted`` is what the ratio must reach.

    ``smaller``: less is better, so the ratio must stay at or below ``wanted``.
    """

    name: str
    unit: str
    figures: Sequence[float]
    baseline: Sequence[float]
    against: str
    target: float
    smaller_is_better: bool = False

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.figures, self.baseline, strict=True)]

    @property
    def reached(self) -> bool:
        middle = median(self.ratios)
        return middle <= self.target if self.smaller_is_better else middle >= self.target

    @property
    def figures_text(self) -> str:
        return _spread(self.figures)

    @property
    def baseline_text(self) -> str:
        return _spread(self.baseline)

    def line(self) -> str:
        sign = "≤" if self.smaller_is_better else "≥"
        return (
            f"{'reached' if self.reached else 'MISSED '}  {self.name}: {self.figures_text} {self.unit}; "
            f"{self.against}: {self.baseline_text}; ratio {_spread(self.ratios)} (wanted {sign} {self.target:g})"
        )


def print_results(compared: Iterable[Comparison]) -> int:
    """A line each as it comes; the exit code: whether one missed what it should reach."""
    missed = False
    for each in compared:
        print(each.line(), flush=True)
        missed = missed or not each.reached
    return int(missed)


def run_interleaved(
    runs: int, ours: Callable[[], float], baseline: Callable[[], float]
) -> tuple[list[float], list[float]]:
    pairs = [(ours(), baseline()) for _ in range(runs)]
    return [first for first, _ in pairs], [second for _, second in pairs]


def _spread(values: Sequence[float]) -> str:
    """min / median / max; one run is one number."""
    if len(values) == 1:
        return f"{values[0]:,.4g}"
    return " / ".join(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in _three(values))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), median(values), max(values)
