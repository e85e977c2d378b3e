"""An error that no code of ours can name, for what must hold whatever is raised."""

from __future__ import annotations


class StrangeError(Exception):
    """Known to nobody."""
