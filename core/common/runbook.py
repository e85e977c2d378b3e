"""Where the runbook explains a code: what it means, what to look at, and what to type."""

from __future__ import annotations

from typing import Final

RUNBOOK: Final = "docs/operations/runbook.md"


def entry(code: str) -> str:
    """The entry of a code that a link shows. The page has an anchor for each, and says at its top where others go."""
    return f"{RUNBOOK}#{code}"


def problem_entry(kind: str) -> str:
    """The entry of a kind of problem that the API returns."""
    return f"{RUNBOOK}#api-{kind}"
