"""Why an operator does something: a text that is stored, so one that says nothing is refused."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from core.common.given_text import trimmed
from worker.cli.exit_codes import UsageError

MAX_REASON_LENGTH: Final = 500


def _checked(given: str) -> str:
    reason = trimmed(given)
    if not reason:
        message = "--reason is empty: say why, in a few words"
        raise UsageError(message)
    if len(reason) > MAX_REASON_LENGTH:
        message = f"--reason has {len(reason)} characters: say why in at most {MAX_REASON_LENGTH}"
        raise UsageError(message)
    return reason


ReasonOption = Annotated[str, typer.Option(callback=_checked, help="Why; it is stored.")]
