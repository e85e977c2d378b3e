"""What a check found: a fact, what follows from it, and what to type. No text contains a secret."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

# ``not_set``: not configured, and fine. ``not_checked``: the check could not be made; the message says why.
FindingLevel = Literal["ok", "not_set", "not_checked", "warning", "error"]
LEVELS: Final[tuple[FindingLevel, ...]] = ("ok", "not_set", "not_checked", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorFinding:
    """``consequence``: why it matters. ``advice``: what to type; both are empty if all is well."""

    code: str
    level: FindingLevel
    message: str
    consequence: str = ""
    advice: str = ""


def ok(code: str, message: str) -> DoctorFinding:
    return DoctorFinding(code=code, level="ok", message=message)


def not_set(code: str, message: str, advice: str = "") -> DoctorFinding:
    return DoctorFinding(code=code, level="not_set", message=message, advice=advice)


def not_checked(code: str, message: str, advice: str = "") -> DoctorFinding:
    return DoctorFinding(code=code, level="not_checked", message=message, advice=advice)


def warning(code: str, message: str, consequence: str, advice: str) -> DoctorFinding:
    return DoctorFinding(code=code, level="warning", message=message, consequence=consequence, advice=advice)


def error(code: str, message: str, consequence: str, advice: str) -> DoctorFinding:
    return DoctorFinding(code=code, level="error", message=message, consequence=consequence, advice=advice)
