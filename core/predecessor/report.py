"""What an import did: every record counted, every loss and repair counted, the first of each kind kept to be shown.

The numbers are complete however long the files are; the lists are bounded, and ``on_finding`` hears of what they cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core.predecessor.files import Finding

MOST_NAMED = 1_000
"""Findings of one kind that a report names; the rest is counted."""
MOST_KEPT_NAMED = 100

OnFinding = Callable[[Finding], None]


@dataclass(slots=True)
class Counted:
    """Records of one file. ``unchanged`` were here already; ``refused`` stand whole in the file and cannot be kept."""

    new: int = 0
    unchanged: int = 0
    refused: int = 0


@dataclass(slots=True)
class Chunk:
    """What became of a part of a file, once its transaction is committed."""

    counted: Counted = field(default_factory=Counted)
    findings: list[Finding] = field(default_factory=list)
    kept_ours: list[Finding] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """``kept_ours`` are repairs, too: records that differ from the file because they were changed here since."""

    organizations: Counted = field(default_factory=Counted)
    members: Counted = field(default_factory=Counted)
    lost: int = 0
    repaired: int = 0
    kept_ours: int = 0
    losses: list[Finding] = field(default_factory=list)
    repairs: list[Finding] = field(default_factory=list)
    on_finding: OnFinding | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Nothing was lost."""
        return self.lost == 0

    def add(self, finding: Finding) -> None:
        if finding.kind == "loss":
            self.lost += 1
            named = self.losses
        else:
            self.repaired += 1
            named = self.repairs
        if len(named) < MOST_NAMED:
            named.append(finding)
        if self.on_finding is not None:
            self.on_finding(finding)

    def add_kept(self, finding: Finding) -> None:
        """A team that works here changes thousands of records: beyond the first, their number says enough."""
        self.kept_ours += 1
        if self.kept_ours <= MOST_KEPT_NAMED:
            self.add(finding)
        else:
            self.repaired += 1

    def take(self, chunk: Chunk, into: Counted) -> None:
        into.new += chunk.counted.new
        into.unchanged += chunk.counted.unchanged
        into.refused += chunk.counted.refused
        for finding in chunk.findings:
            self.add(finding)
        for finding in chunk.kept_ours:
            self.add_kept(finding)
