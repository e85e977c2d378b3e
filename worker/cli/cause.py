"""The operator who typed a command: every change that the command makes names both."""

from __future__ import annotations

import os
import pwd

from core.events.event_types import Cause


def of_command(command: str) -> Cause:
    """``command``: as it is typed after ``billing-sync``."""
    return Cause(actor=actor(), source=f"billing-sync {command}")


def actor() -> str:
    """``operator:alice``. The system's name for the user of this process, because an environment variable can be set
    to any name.
    """
    user_id = os.getuid()
    try:
        return f"operator:{pwd.getpwuid(user_id).pw_name}"
    except KeyError:  # a container may run as a user that has no name
        return f"operator:{user_id}"
