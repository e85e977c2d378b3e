"""Where an error was raised, for logs and rows that must not have its text."""

from __future__ import annotations

import traceback
from pathlib import Path


def raised_at(error: BaseException) -> str:
    """The file and the line, such as ``reconciler.py:12``."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
