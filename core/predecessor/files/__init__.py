"""The two JSON files of the store that this system replaces, read whatever state they are in.

Every record that stands intact in the bytes comes out; everything else that is neither white space nor
ordinary structure comes out as a ``Finding`` that says what is lost and where. Reading never stops at
damage and never guesses: a record is taken only if its own braces hold valid JSON, so text inside a name
can never pose as a record (its quotes are escaped there).

Memory stays flat however long the file is: a window of about a megabyte, about a hundred bytes for each
organization to notice repeats, and nothing for each member unless an organization's list comes twice.
"""

from core.predecessor.files.grammar import MAX_RECORD_BYTES
from core.predecessor.files.loader import read_members, read_organizations
from core.predecessor.files.records import (
    FileFinding,
    FilePosition,
    OldMember,
    OldOrganization,
    OnBytes,
    UnreadableFileError,
    UnwritableFileError,
)
from core.predecessor.files.writer import write_members, write_organizations

__all__ = [
    "MAX_RECORD_BYTES",
    "FileFinding",
    "FilePosition",
    "OldMember",
    "OldOrganization",
    "OnBytes",
    "UnreadableFileError",
    "UnwritableFileError",
    "read_members",
    "read_organizations",
    "write_members",
    "write_organizations",
]
