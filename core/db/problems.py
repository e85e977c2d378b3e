"""Why a database cannot be used as it is. The start of a process says it, and `doctor` in the same words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseProblem:
    """``code``: of `doctor`'s finding. No text contains a secret."""

    code: str
    message: str
    consequence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.message}: {self.advice}"
