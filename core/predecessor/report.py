"""Report of an import: counts of records, losses and repairs, and a list of the first findings of each kind.

The counts are complete however long the files are. The lists are bounded; ``on_finding`` also gets the findings beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core.predecessor.files import FileFinding

MAX_LISTED_FINDINGS = 1_000
"""Findings of one kind that a report lists; all others are only counted."""
MAX_LISTED_CONFLICTS = 100

OnFinding = Callable[[FileFinding], None]


@dataclass(slots=True)
class ImportCounts:
    """Records of one file. ``unchanged``: already in the database. ``rejected``: intact in the file, but unusable."""

    new: int = 0
    unchanged: int = 0
    rejected: int = 0


@dataclass(slots=True)
class ChunkResult:
    """The result of one chunk of a file, valid once its transaction is committed."""

    counts: ImportCounts = field(default_factory=ImportCounts)
    findings: list[FileFinding] = field(default_factory=list)
    conflicts: list[FileFinding] = field(default_factory=list)


@dataclass(slots=True)
class ImportReport:
    """``conflicts``: records that differ from the file, since they were changed after the import; also repairs."""

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
        """Users may have changed thousands of records, so only the first conflicts are listed; all are counted."""
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
