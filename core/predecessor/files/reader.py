"""Reads one file record by record: fast while it is healthy, carefully where it is damaged, always to its end."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from core.predecessor.files.damage_scanner import DamageScanner
from core.predecessor.files.fields import Fields, UnusableRecordError, reject_duplicate_fields, subject_of
from core.predecessor.files.grammar import (
    KEY_BEFORE_PATTERNS,
    MAX_RECORD_BYTES,
    MAX_RECORD_KEY_BYTES,
    OWNER_IN_DAMAGE_PATTERN,
    RECORD_PATTERN,
    TORN_KEY_BEFORE_PATTERNS,
    decode_utf8,
    is_record,
    parse_pairs,
)
from core.predecessor.files.records import FileFinding, FilePosition, OldMember, OldOrganization, OnBytes
from core.predecessor.files.window import FileWindow, open_file

RecordT = TypeVar("RecordT", OldOrganization, OldMember)

_MAX_UNKNOWN_FIELDS = 100  # unknown fields listed by name; a file may have any number of them


class Reader(ABC, Generic[RecordT]):
    """All intact records of one file in order, duplicates included, with the findings."""

    next_record: re.Pattern[str]  # groups: the key or None, the start of the record, its fields
    known_fields: frozenset[str]
    list_opening: str  # the text between a key and its first record

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unknown_fields: dict[str, tuple[int, FilePosition]] = {}

    @abstractmethod
    def to_fields(self, values: list[str | None]) -> Fields:
        """The groups of ``next_record`` by field name. Raises ``ValueError``."""

    @abstractmethod
    def build(self, fields: Fields, position: FilePosition, repairs: list[FileFinding]) -> RecordT:
        """Raises ``UnusableRecordError``."""

    @abstractmethod
    def owner(self, record: RecordT) -> str: ...

    @abstractmethod
    def subject(self, record: RecordT) -> str: ...

    @abstractmethod
    def check_key(self, scanner: "DamageScanner", key: str | None, owner: str) -> str | None:
        """Compares the record with its key. Returns what had to be read differently, or ``None``."""

    def scan(self, on_bytes: OnBytes | None = None) -> Iterator[RecordT | FileFinding]:
        with open_file(self._path) as file:
            window = FileWindow(file, self._path, on_bytes)
            scanner = DamageScanner(window, expects_lists=self.list_opening == "[")
            window.fill()
            while window.cursor < len(window.text):
                if scanner.is_in_order:
                    yield from self._scan_healthy(window, scanner)
                if window.cursor < window.search_end:
                    yield from self._scan_damaged(window, scanner)
                window.fill()
            scanner.finish()
            yield from scanner.take_findings()
        for name, (count, position) in self._unknown_fields.items():
            times = "once" if count == 1 else f"{count} times"
            yield FileFinding("repair", f"the unknown field {name!r} was ignored, {times}", position)

    def read_at(self, byte: int) -> RecordT | None:
        """The record that begins at this byte, as ``scan`` returned it."""
        with open_file(self._path) as file:
            for size in (4096, MAX_RECORD_BYTES):  # nearly all are short, and many duplicates mean many calls
                file.seek(byte)
                match = RECORD_PATTERN.match(file.read(size).decode("latin-1"))
                if match:
                    break
        try:
            return (
                self.build(dict(parse_pairs(match.group())), FilePosition(self._path.name, 0, byte), [])
                if match
                else None
            )
        except (UnusableRecordError, ValueError):
            return None

    def _scan_healthy(self, window: FileWindow, scanner: "DamageScanner") -> Iterator[RecordT | FileFinding]:
        """Reads as long as one ordinary record follows the other. Stops before anything else."""
        text, reach, match_next = window.text, window.search_end, self.next_record.match
        repairs: list[FileFinding] = []
        while window.cursor < reach and (match := match_next(text, window.cursor)):
            key, _, *values = match.groups()
            try:
                record = self.build(self.to_fields(values), window.position(match.start("record")), repairs)
            except (UnusableRecordError, ValueError):
                return
            if repairs or self.owner(record) != (key or scanner.list_key):
                return
            if key is not None and key != scanner.list_key:
                scanner.open_list(key)
            window.cursor = match.end()
            yield record

    def _scan_damaged(self, window: FileWindow, scanner: "DamageScanner") -> Iterator[RecordT | FileFinding]:
        """Reads the next record and everything before it; if there is none, the rest of the window."""
        match = self._find_record(window)
        if match is None:
            cut = window.find_cut()
            yield from scanner.read(window.cursor, cut)
            window.cursor = cut
            window.read_more()  # otherwise the start of a key after the cut would be read without its end
            return
        findings: list[FileFinding] = []
        position = window.position(match.start())
        record = self._parse_record(match.group(), position, findings)
        owner = None if record is None else self.owner(record)
        head, key = self._find_key_before(window, scanner, match.start(), owner)
        yield from scanner.read(window.cursor, head)
        key = key or scanner.take_key()
        scanner.begin_record(head)
        window.cursor = match.end()
        yield from scanner.take_findings()
        if record is None or owner is None:
            yield from (FileFinding(each.kind, each.reason, each.position, each.subject or key) for each in findings)
            return
        reason = self.check_key(scanner, key, owner)
        if reason is not None:
            yield FileFinding("repair", reason, position, self.subject(record))
        yield from findings
        yield record

    def _find_record(self, window: FileWindow) -> re.Match[str] | None:
        """The next whole object that is a record; never an object that only encloses other records."""
        text, reach = window.text, window.search_end
        begin = text.find("{", window.cursor, reach)
        while begin >= 0:
            match = RECORD_PATTERN.match(text, begin)
            if match is not None and is_record(match.group()):
                return match
            begin = text.find("{", begin + 1, reach)
        return None

    def _parse_record(self, text: str, position: FilePosition, findings: list[FileFinding]) -> RecordT | None:
        subject = None
        try:
            pairs = parse_pairs(text)
            fields = dict(pairs)
            subject = subject_of(fields)
            reject_duplicate_fields(pairs, fields)
            record = self.build(fields, position, findings)
        except UnicodeDecodeError:
            owner_match = OWNER_IN_DAMAGE_PATTERN.search(text)
            subject = owner_match.group(1) if owner_match else None
            findings[:] = [FileFinding("loss", "the record is not UTF-8 text", position, subject)]
            return None
        except UnusableRecordError as error:
            findings[:] = [FileFinding("loss", f"unusable record: {error}", position, subject)]
            return None
        self._count_unknown_fields(fields, position)
        return record

    def _count_unknown_fields(self, fields: Fields, position: FilePosition) -> None:
        for name in fields.keys() - self.known_fields:
            counted_name = (
                name if name in self._unknown_fields or len(self._unknown_fields) < _MAX_UNKNOWN_FIELDS else "(others)"
            )
            count, first = self._unknown_fields.get(counted_name, (0, position))
            self._unknown_fields[counted_name] = count + 1, first

    def _find_key_before(
        self, window: FileWindow, scanner: "DamageScanner", index: int, owner: str | None
    ) -> tuple[int, str | None]:
        """Where the key of the record at ``index`` begins, and the key if it is intact. A damaged key is skipped.

        A bracket that begins the document opens no list under a key: the file itself is a list.
        """
        lowest = max(window.cursor, index - MAX_RECORD_KEY_BYTES)
        intact = KEY_BEFORE_PATTERNS[self.list_opening].search(window.text, lowest, index)
        if intact is not None:
            return intact.start(), decode_utf8(intact.group(1))
        torn = TORN_KEY_BEFORE_PATTERNS[self.list_opening].search(window.text, lowest, index)
        is_in_list = scanner.is_list or not scanner.document_open
        begins_list = is_in_list and torn is not None and torn.group().strip() == "["
        if (
            torn is not None
            and not begins_list
            and owner is not None
            and (owner.endswith(torn.group(1)) or owner.startswith(torn.group(1)))
        ):
            return torn.start(), None
        return index, None
