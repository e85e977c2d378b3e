"""The two JSON files of the predecessor store, read in whatever state they are.

Every intact record is recovered. Everything else that is neither white space nor ordinary structure is reported as a
``FileFinding``, which says what is lost and where. Reading never stops at damage and never guesses: a record is used
only if its own braces contain valid JSON. Text inside a name cannot pass for a record, since its quotes are escaped.

Memory does not grow with the file, apart from about a hundred bytes for each organization, which detect duplicates. The
window is about a megabyte, and members take no memory unless the list of an organization comes twice.
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
