"""The one error of the adoption table's file."""

from __future__ import annotations


class AdoptionTableError(Exception):
    """The file cannot be read or written. The message names the file, the line and the column, and the way out."""
