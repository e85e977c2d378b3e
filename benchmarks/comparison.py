"""Comparison of a benchmark's figures with a baseline of the same minutes: both, and the ratio of each pair of runs.

Runs are interleaved (ours, baseline, ours, …), so that other load on the machine affects both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``figures`` and ``baseline`` are in ``unit``, in pairs. The median ratio must reach ``target``.

    With ``smaller_is_better`` it must be at or below ``target``.
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
            f"{self.against}: {self.baseline_text}; ratio {_spread(self.ratios)} (target {sign} {self.target:g})"
        )


def print_results(compared: Iterable[Comparison]) -> int:
    """Print a line for each as it arrives; return the exit code: 1 if one missed its target."""
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
    """min / median / max, or one number for a single run."""
    if len(values) == 1:
        return f"{values[0]:,.4g}"
    return " / ".join(f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in _three(values))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    return min(values), median(values), max(values)
