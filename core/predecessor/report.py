"""What an import did: every record counted, every loss and repair counted, the first of each kind kept to be shown.

The numbers are complete however long the files are; the lists are bounded, and ``on_finding`` hears of what they cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core.predecessor.files import FileFinding

MAX_LISTED_FINDINGS = 1_000
"""Findings of one kind that a report names; the rest is counted."""
MAX_LISTED_CONFLICTS = 100

OnFinding = Callable[[FileFinding], None]


@dataclass(slots=True)
class ImportCounts:
    """Records of one file. ``unchanged`` were here already; ``refused`` stand whole in the file and cannot be kept."""

    new: int = 0
    unchanged: int = 0
    rejected: int = 0


@dataclass(slots=True)
class ChunkResult:
    """What became of a part of a file, once its transaction is committed."""

    counts: ImportCounts = field(default_factory=ImportCounts)
    findings: list[FileFinding] = field(default_factory=list)
    conflicts: list[FileFinding] = field(default_factory=list)


@dataclass(slots=True)
class ImportReport:
    """``conflicts`` are repairs, too: records that differ from the file because they were changed here since."""

    organizations: ImportCounts = field(default_factory=ImportCounts)
    members: ImportCounts = field(default_factory=ImportCounts)
    lost: int = 0
    repaired: int = 0
    conflicts: int = 0
    losses: list[FileFinding] = field(default_factory=list)
    repairs: list[FileFinding] = field(default_factory=list)
    on_finding: OnFinding | None = field(default=None, repr=False)

    @property
    def ok(self) -> bool:
        """Nothing was lost."""
        return self.lost == 0

    def add_finding(self, finding: FileFinding) -> None:
        if finding.kind == "loss":
            self.lost += 1
            listed = self.losses
        else:
            self.repaired += 1
            listed = self.repairs
        if len(listed) < MAX_LISTED_FINDINGS:
            listed.append(finding)
        if self.on_finding is not None:
            self.on_finding(finding)

    def add_conflict(self, finding: FileFinding) -> None:
        """A team that works here changes thousands of records: beyond the first, their number says enough."""
        self.conflicts += 1
        if self.conflicts <= MAX_LISTED_CONFLICTS:
            self.add_finding(finding)
        else:
            self.repaired += 1

    def add_chunk(self, result: ChunkResult, counts: ImportCounts) -> None:
        counts.new += result.counts.new
        counts.unchanged += result.counts.unchanged
        counts.rejected += result.counts.rejected
        for finding in result.findings:
            self.add_finding(finding)
        for finding in result.conflicts:
            self.add_conflict(finding)
