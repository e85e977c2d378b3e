"""One file, record by record: fast while it is healthy, careful where it is not, and never stopped by damage."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from core.predecessor.files.damage_scanner import Between
from core.predecessor.files.fields import Fields, LostRecordError, named, refuse_fields_twice
from core.predecessor.files.grammar import (
    KEY_BEFORE,
    LONGEST_KEY,
    LONGEST_RECORD,
    OWNER_IN_DAMAGE,
    RECORD_AT,
    TORN_KEY_BEFORE,
    is_record,
    pairs_of,
    utf8,
)
from core.predecessor.files.records import Finding, OldMember, OldOrganization, OnBytes, Place
from core.predecessor.files.window import Window, opened

Record = TypeVar("Record", OldOrganization, OldMember)

_MOST_FIELD_NAMES = 100  # unknown fields named one by one; the file, not we, decides how many there are


class Reader(ABC, Generic[Record]):
    """All intact records of one file in order, repeats included, with what was found on the way."""

    next_record: re.Pattern[str]  # groups: the key or None, where the record begins, its fields
    known: frozenset[str]
    opens_with: str  # what stands between a key and its first record

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unknown: dict[str, tuple[int, Place]] = {}

    @abstractmethod
    def fields(self, values: list[str | None]) -> Fields:
        """The groups of ``next_record`` under their names. Raises ValueError."""

    @abstractmethod
    def build(self, fields: Fields, place: Place, repairs: list[Finding]) -> Record:
        """Raises LostRecordError."""

    @abstractmethod
    def owner(self, record: Record) -> str: ...

    @abstractmethod
    def subject(self, record: Record) -> str: ...

    @abstractmethod
    def file_under(self, between: "Between", key: str | None, owner: str) -> str | None:
        """Compare the record with the key it stands under; return what had to be read differently."""

    def scan(self, on_bytes: OnBytes | None = None) -> Iterator[Record | Finding]:
        with opened(self._path) as file:
            window = Window(file, self._path, on_bytes)
            between = Between(window, lists=self.opens_with == "[")
            window.fill()
            while window.at < len(window.text):
                if between.in_order:
                    yield from self._healthy(window, between)
                if window.at < window.reach:
                    yield from self._careful(window, between)
                window.fill()
            between.end()
            yield from between.drain()
        for name, (count, place) in self._unknown.items():
            times = "once" if count == 1 else f"{count} times"
            yield Finding("repair", f"the unknown field {name!r} was left out, {times}", place)

    def at(self, byte: int) -> Record | None:
        """The record that begins at this byte, as ``scan`` gave it."""
        with opened(self._path) as file:
            for size in (4096, LONGEST_RECORD):  # nearly all are short, and a file of repeats asks often
                file.seek(byte)
                found = RECORD_AT.match(file.read(size).decode("latin-1"))
                if found:
                    break
        try:
            return self.build(dict(pairs_of(found.group())), Place(self._path.name, 0, byte), []) if found else None
        except (LostRecordError, ValueError):
            return None

    def _healthy(self, window: Window, between: "Between") -> Iterator[Record | Finding]:
        """As long as one ordinary record follows the other; stops before the first thing that is not ordinary."""
        text, reach, match_next = window.text, window.reach, self.next_record.match
        repairs: list[Finding] = []
        while window.at < reach and (match := match_next(text, window.at)):
            key, _, *values = match.groups()
            try:
                record = self.build(self.fields(values), window.place(match.start("record")), repairs)
            except (LostRecordError, ValueError):
                return
            if repairs or self.owner(record) != (key or between.list_key):
                return
            if key is not None and key != between.list_key:
                between.open_list(key)
            window.at = match.end()
            yield record

    def _careful(self, window: Window, between: "Between") -> Iterator[Record | Finding]:
        """The next record and all that stands before it, or a window's worth of what holds none."""
        found = self._find(window)
        if found is None:
            cut = window.cut()
            yield from between.read(window.at, cut)
            window.at = cut
            window.read_on()  # or the beginning of a key behind the cut would be judged without its end
            return
        notes: list[Finding] = []
        place = window.place(found.start())
        record = self._judge(found.group(), place, notes)
        owner = None if record is None else self.owner(record)
        head, key = self._key_before(window, found.start(), owner)
        yield from between.read(window.at, head)
        key = key or between.take_key()
        between.meet_record(head)
        window.at = found.end()
        yield from between.drain()
        if record is None or owner is None:
            yield from (Finding(note.kind, note.reason, note.place, note.subject or key) for note in notes)
            return
        reason = self.file_under(between, key, owner)
        if reason is not None:
            yield Finding("repair", reason, place, self.subject(record))
        yield from notes
        yield record

    def _find(self, window: Window) -> re.Match[str] | None:
        """The next object that is a record, whole; never one that merely has swallowed other records."""
        text, reach = window.text, window.reach
        begin = text.find("{", window.at, reach)
        while begin >= 0:
            found = RECORD_AT.match(text, begin)
            if found is not None and is_record(found.group()):
                return found
            begin = text.find("{", begin + 1, reach)
        return None

    def _judge(self, text: str, place: Place, notes: list[Finding]) -> Record | None:
        subject = None
        try:
            pairs = pairs_of(text)
            fields = dict(pairs)
            subject = named(fields)
            refuse_fields_twice(pairs, fields)
            record = self.build(fields, place, notes)
        except UnicodeDecodeError:
            damage = OWNER_IN_DAMAGE.search(text)
            subject = damage.group(1) if damage else None
            notes[:] = [Finding("loss", "the record is not UTF-8 text", place, subject)]
            return None
        except LostRecordError as error:
            notes[:] = [Finding("loss", f"no usable record: {error}", place, subject)]
            return None
        self._count_unknown(fields, place)
        return record

    def _count_unknown(self, fields: Fields, place: Place) -> None:
        for name in fields.keys() - self.known:
            counted = name if name in self._unknown or len(self._unknown) < _MOST_FIELD_NAMES else "(others)"
            count, first = self._unknown.get(counted, (0, place))
            self._unknown[counted] = count + 1, first

    def _key_before(self, window: Window, index: int, owner: str | None) -> tuple[int, str | None]:
        """Where the key of a record at ``index`` begins, and the key if it is whole; a torn rest of it is skipped."""
        lowest = max(window.at, index - LONGEST_KEY)
        whole = KEY_BEFORE[self.opens_with].search(window.text, lowest, index)
        if whole is not None:
            return whole.start(), utf8(whole.group(1))
        torn = TORN_KEY_BEFORE[self.opens_with].search(window.text, lowest, index)
        if (
            torn is not None
            and owner is not None
            and (owner.endswith(torn.group(1)) or owner.startswith(torn.group(1)))
        ):
            return torn.start(), None
        return index, None
