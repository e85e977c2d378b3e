"""The two JSON files of the store that this system replaces, read whatever state they are in.

Every record that stands intact in the bytes comes out; everything else that is neither white space nor
ordinary structure comes out as a ``Finding`` that says what is lost and where. Reading never stops at
damage and never guesses: a record is taken only if its own braces hold valid JSON, so text inside a name
can never pose as a record (its quotes are escaped there).

Memory stays flat however long the file is: a window of about a megabyte, about a hundred bytes for each
organization to notice repeats, and nothing for each member unless an organization's list comes twice.
"""

import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Generic, Literal, TypeAlias, TypeVar

LONGEST_NAME = 200
LONGEST_RECORD = 256 * 1024  # bytes; a longer one cannot be told from damage and is reported as such
_READ = 1024 * 1024
_LONGEST_KEY = 400
_SAMPLE = 1024  # bytes of a damaged stretch that are kept to find out whose it was
_MOST_FIELD_NAMES = 100  # unknown fields named one by one; the file, not we, decides how many there are

OnBytes: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands: lines count from 1, bytes from 0."""

    file: str
    line: int
    byte: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass(frozen=True, slots=True)
class OldOrganization:
    """``created_at`` is None where the file holds no date. Equality looks at the content, not at the place."""

    id: str
    name: str
    created_at: datetime | None
    plan_tier: str
    lago_customer_id: str | None
    stripe_customer_id: str | None
    status: str
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class OldMember:
    """``joined_at`` is None where the file holds no date. Equality looks at the content, not at the place."""

    org_id: str
    user_id: str
    role: str
    joined_at: datetime | None
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """A loss is what the file does not hold any more, or holds beyond use; a repair is what was read differently."""

    kind: Literal["loss", "repair"]
    reason: str
    place: Place
    subject: str | None = None


class UnreadableFileError(Exception):
    """The file cannot be read as what it was given for; the message names it and the way out."""


class UnwritableFileError(Exception):
    """The file cannot be written; what stood there before stands there still."""


def read_organizations(path: Path, on_bytes: OnBytes | None = None) -> Iterator[OldOrganization | Finding]:
    """The organizations of an ``organizations.json``, in the order of the file, findings where they were made.

    ``on_bytes`` is told how many bytes each read took; they add up to the size of the file. Status and plan
    are passed on as written. Raises UnreadableFileError, before the first record is asked for if it can.
    """
    if _looks_like(path) == "members":
        raise UnreadableFileError(_wrong_order(path, "members, not organizations"))
    return _organizations_once(path, on_bytes)


def read_members(path: Path, on_bytes: OnBytes | None = None) -> Iterator[OldMember | Finding]:
    """The members of an ``org_users.json``; all else as in ``read_organizations``. The role is passed on as written.

    Whether the organization exists is not judged here.
    """
    if _looks_like(path) == "organizations":
        raise UnreadableFileError(_wrong_order(path, "organizations, not members"))
    return _members_once(path, on_bytes)


def write_organizations(path: Path, organizations: Iterable[OldOrganization]) -> None:
    """Replace the file by one that the old store would have written, byte for byte, or leave it as it was.

    Raises UnwritableFileError; what the iterable raises passes through.
    """
    with _replacing(path) as write:
        mark = "{\n"
        for organization in organizations:
            write(f"{mark}  {_json(organization.id)}: {{\n{_organization_fields(organization)}\n  }}")
            mark = ",\n"
        write("{}" if mark == "{\n" else "\n}")


def write_members(path: Path, lists: Iterable[tuple[str, Iterable[OldMember]]]) -> None:
    """As ``write_organizations``, from pairs of an organization's id and its members; an empty list is kept."""
    with _replacing(path) as write:
        mark = "{\n"
        for org_id, members in lists:
            write(f"{mark}  {_json(org_id)}: [")
            inner = "\n"
            for member in members:
                write(f"{inner}    {{\n{_member_fields(member)}\n    }}")
                inner = ",\n"
            write("]" if inner == "\n" else "\n  ]")
            mark = ",\n"
        write("{}" if mark == "{\n" else "\n}")


# --- the grammar ------------------------------------------------------------------------------------------
#
# The bytes are looked at as Latin-1, so that one character is one byte and an index is a place. That is safe:
# every byte of a UTF-8 sequence beyond ASCII is above 0x7F, where JSON has no mark. Strings are decoded properly
# once a record is found. All quantifiers are possessive: no input makes a match go back and try again.

_BLANK = r"[ \t\r\n]*+"
_STRING = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+"'
_SCALAR = rf"(?:{_STRING}|-?[0-9]++(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null)"


def _object_of(value: str) -> str:
    pair = rf"{_STRING}{_BLANK}:{_BLANK}{value}{_BLANK}"
    return rf"\{{{_BLANK}(?:{pair}(?:,{_BLANK}{pair})*+)?+\}}"


_LIST = rf"\[{_BLANK}(?:{_SCALAR}{_BLANK}(?:,{_BLANK}{_SCALAR}{_BLANK})*+)?+\]"
# A record is flat. One level below is let through, so that a field which somebody added does not cost the record.
_RECORD = _object_of(rf"(?:{_SCALAR}|{_LIST}|{_object_of(_SCALAR)})")
_KEY = rf'"([^"\\\x00-\x1f]{{0,{_LONGEST_KEY}}}+)"{_BLANK}:{_BLANK}'
_EMPTY_LISTS = rf"(?:,{_BLANK}{_STRING}{_BLANK}:{_BLANK}\[{_BLANK}\]{_BLANK})*+"

_RECORD_AT = re.compile(_RECORD)


def _ordinary(**fields: str) -> str:
    """A record as the old store lays it out: its fields in its order, each a group; a fraction of the cost of JSON."""
    pairs = (rf'"{name}"{_BLANK}:{_BLANK}{value}{_BLANK}' for name, value in fields.items())
    return rf"(?P<record>\{{){_BLANK}{rf',{_BLANK}'.join(pairs)}\}}"


_PLAIN = r'(?:"([^"\\\x00-\x1f\x7f-\xff]*+)"|null)'
_NEXT_ORGANIZATION = re.compile(
    rf"{_BLANK},{_BLANK}{_KEY}"
    + _ordinary(
        id=_PLAIN,
        name=rf"({_STRING})",
        created_at=_PLAIN,
        plan_tier=_PLAIN,
        lago_customer_id=_PLAIN,
        stripe_customer_id=_PLAIN,
        status=_PLAIN,
    )
)
_NEXT_MEMBER = re.compile(
    rf"{_BLANK}(?:\]{_BLANK}{_EMPTY_LISTS},{_BLANK}{_KEY}\[{_BLANK}|,{_BLANK})"
    + _ordinary(org_id=_PLAIN, user_id=_PLAIN, role=_PLAIN, joined_at=_PLAIN)
)
_TOKEN = re.compile(
    r"(?P<blank>[ \t\r\n]++)|(?P<bom>\xef\xbb\xbf)|(?P<mark>[{}\[\],])"
    rf'|"(?P<key>[^"\\\x00-\x1f]{{0,{_LONGEST_KEY}}}+)"{_BLANK}:'
    rf'|(?P<other>{_STRING}|\x00++|[^ \t\r\n{{}}\[\],"\x00]++|.)',
    re.DOTALL,
)
_KEY_BEFORE = {"": re.compile(rf"{_KEY}\Z"), "[": re.compile(rf"{_KEY}\[{_BLANK}\Z")}
_TORN_KEY_BEFORE = {
    "": re.compile(rf'"?([^"{{}}\[\],:\s\x00]*+)"?+{_BLANK}:{_BLANK}\Z'),
    "[": re.compile(rf'"?([^"{{}}\[\],:\s\x00]*+)"?+{_BLANK}:?+{_BLANK}\[{_BLANK}\Z'),
}
_ORGANIZATION_ID = re.compile(r"org_[A-Za-z0-9_-]+")
_OWNER_IN_DAMAGE = re.compile(r'"(?:id|org_id)"\s*:\s*"(org_[A-Za-z0-9_-]+)"')
_USER_IN_DAMAGE = re.compile(r'"user_id"\s*:\s*"([^"\\\x00-\x1f]{1,200})"')
_LIST_UNDER_KEY = re.compile(r'"org_[A-Za-z0-9_-]+"\s*:\s*\[')

_ORGANIZATION_FIELDS = frozenset(
    {"id", "name", "created_at", "plan_tier", "lago_customer_id", "stripe_customer_id", "status"}
)
_MEMBER_FIELDS = frozenset({"org_id", "user_id", "role", "joined_at"})
_FIELDS = _ORGANIZATION_FIELDS | _MEMBER_FIELDS

_BEGINNING_MISSING = "the beginning of this document was overwritten: what stood before this place is lost"
_END_MISSING = "the file ends before its document does: what followed is lost"
_EMPTY = "the file holds nothing: what it held is lost; look for a copy of it"

# Objects come as tuples of pairs, lists as lists: a field that stands twice stays visible, and the two kinds distinct.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple)


class _LostRecordError(Exception):
    """An intact object that is no usable record; the text is the reason."""


# --- the window over the file -----------------------------------------------------------------------------


class _Window:
    """A part of the file as text; always holds one whole record beyond ``reach`` unless the file ended."""

    def __init__(self, file: BinaryIO, path: Path, on_bytes: OnBytes | None) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._file, self._path, self._on_bytes = file, path, on_bytes
        self._name = path.name
        self._start = 0
        self._line, self._counted = 1, 0

    @property
    def reach(self) -> int:
        """Before this index a record may begin and be seen whole."""
        return len(self.text) if self.ended else len(self.text) - LONGEST_RECORD

    def fill(self) -> None:
        while not self.ended and self.at >= self.reach:
            self.read_on()

    def read_on(self) -> None:
        try:
            chunk = self._file.read(_READ)
        except OSError as error:
            raise UnreadableFileError(_cannot_read(self._path, error)) from error
        self.place(self.at)
        self._start += self.at
        self.text = self.text[self.at :] + chunk.decode("latin-1")
        self.at = self._counted = 0
        self.ended = not chunk
        if chunk and self._on_bytes is not None:
            self._on_bytes(len(chunk))

    def place(self, index: int) -> Place:
        if index >= self._counted:
            self._line += self.text.count("\n", self._counted, index)
        else:
            self._line -= self.text.count("\n", index, self._counted)
        self._counted = index
        return Place(self._name, self._line, self._start + index)

    def cut(self) -> int:
        """Up to where text without a record may be put aside; not inside a key if that can be helped."""
        if self.ended:
            return len(self.text)
        border = max(self.text.rfind("\n", self.at, self.reach), self.text.rfind(",", self.at, self.reach))
        return border + 1 if border >= self.at else self.reach


# --- what stands between the records ----------------------------------------------------------------------


@dataclass(slots=True)
class _Damage:
    """A stretch of bytes that is neither record nor structure, while it is being read."""

    place: Place
    key: str | None
    has_brace: bool = False
    only_nul: bool = True
    end: int = 0
    sample: str = ""

    def take(self, text: str, end: int) -> None:
        self.only_nul = self.only_nul and not text.strip("\x00")
        self.sample = (self.sample + text)[:_SAMPLE]
        self.end = end

    @property
    def is_record_like(self) -> bool:
        return self.has_brace or any(f'"{name}"' in self.sample for name in _FIELDS)

    @property
    def subject(self) -> str | None:
        owner = _OWNER_IN_DAMAGE.search(self.sample)
        user = _USER_IN_DAMAGE.search(self.sample)
        known = owner.group(1) if owner else self.key
        return f"{known or 'unknown organization'} {_utf8(user.group(1))}" if user else known

    def loss(self, *, cut_off: bool) -> Finding:
        length = self.end - self.place.byte
        size = f"{length} byte" if length == 1 else f"{length} bytes"
        if self.sample and self.only_nul:
            reason = f"{size} of NUL: overwritten or never written"
        elif self.is_record_like and cut_off:
            reason = f"a record is cut off by the end of the file, {size}"
        elif self.is_record_like:
            reason = f"a damaged record, {size}"
        elif self.key is not None:
            reason = f"no record stands under this key, {size}"
        else:
            reason = f"{size} outside any record"
        return Finding("loss", reason, self.place, self.subject)


class _Between:
    """Reads what stands between the records: keeps track of documents, lists and keys, and names the rest."""

    def __init__(self, window: _Window, *, lists: bool) -> None:
        self.findings: list[Finding] = []
        self.document_open = False
        self.list_open = False
        self.list_key: str | None = None
        self.list_key_in_doubt = False
        self._window = window
        self._lists = lists
        self._documents = 0
        self._damaged = False
        self._top_is_list = False
        self._key: tuple[str, Place] | None = None
        self._damage: _Damage | None = None
        self._cut_off = False

    @property
    def in_order(self) -> bool:
        return self.document_open and self._damage is None and self._key is None and not self._top_is_list

    def drain(self) -> list[Finding]:
        found, self.findings = self.findings, []
        return found

    def read(self, begin: int, end: int) -> Iterator[Finding]:
        for token in _TOKEN.finditer(self._window.text, begin, end):
            match token.lastgroup:
                case "blank":
                    pass
                case "bom":
                    self._repair("a byte order mark was skipped", token.start())
                case "key":
                    self._read_key(token)
                case "mark" if self._damage is None or self._ends_document(token):
                    self._close_damage()
                    self._read_mark(token)
                case _:
                    self._read_damage(token)
            if self.findings:
                yield from self.drain()

    def take_key(self) -> str | None:
        """The key that was read last and waits for its value."""
        key, self._key = self._key, None
        return None if key is None else key[0]

    def open_list(self, key: str) -> None:
        self.list_open, self.list_key, self.list_key_in_doubt = True, key, False

    def meet_record(self, index: int) -> None:
        """A record begins here: what was open before it is closed."""
        self._close_damage()
        self._close_key()
        self.open_document(index)

    def open_document(self, index: int) -> None:
        if not self.document_open:
            self._lose(_BEGINNING_MISSING, self._window.place(index))
            self.document_open = True
            self._documents += 1

    def end(self) -> None:
        self._cut_off = True
        cut_inside = self._damage is not None and self._damage.is_record_like
        self._close_damage()
        self._close_key()
        place = self._window.place(len(self._window.text))
        if self.document_open and not cut_inside:
            self._lose(_END_MISSING, place)
        elif not self._documents and not self._damaged:
            self._lose(_EMPTY, place)

    def _read_key(self, token: re.Match[str]) -> None:
        name = token.group("key")
        if name in _FIELDS or (self._damage is not None and not _ORGANIZATION_ID.fullmatch(name)):
            self._read_damage(token)
            return
        self._close_damage()
        self._close_key()
        self.open_document(token.start())
        self._key = _utf8(name), self._window.place(token.start())

    def _read_mark(self, token: re.Match[str]) -> None:
        mark = token.group()
        if mark == "{" and not self.document_open:
            self._begin_document(token)
        elif mark == "[" and not self.document_open:
            self._begin_document(token)
            self._top_is_list = True
            self._repair("the file holds a list where an object belongs", token.start())
        elif mark == "[" and self._lists and self._key is not None:
            self.open_list(self._key[0])
            self._key = None
        elif mark == "{" or (mark == "[" and self._key is not None):
            self._read_damage(token)
        elif mark == "]" and self.list_open:
            self.list_open, self.list_key = False, None
        elif mark == ("]" if self._top_is_list else "}") and self.document_open:
            self._close_key()
            self.document_open = self.list_open = self._top_is_list = False
            self.list_key = None
        elif mark != ",":
            self._repair(f"a {mark!r} too many was skipped", token.start())

    def _begin_document(self, token: re.Match[str]) -> None:
        if self._documents:
            self._repair("another document begins in the same file: both were read", token.start())
        self.document_open = True
        self._documents += 1

    def _read_damage(self, token: re.Match[str]) -> None:
        brace = token.group() == "{"
        if brace and self._damage is not None and self._damage.has_brace:
            self._close_damage()
        if self._damage is None:
            key, place = self._key or (None, self._window.place(token.start()))
            self._damage, self._key = _Damage(place, key), None
            self._damaged = self.list_key_in_doubt = True
        self._damage.has_brace = self._damage.has_brace or brace
        end = self._window.place(token.end()).byte
        self._damage.take(token.group(), end)
        if token.group() == "}":
            self._close_damage()

    def _ends_document(self, token: re.Match[str]) -> bool:
        """A brace behind something that stands in a record's place without having been one: ``"org_a": null }``."""
        damage = self._damage
        return token.group() == "}" and damage is not None and damage.key is not None and not damage.is_record_like

    def _close_damage(self) -> None:
        if self._damage is not None:
            self.findings.append(self._damage.loss(cut_off=self._cut_off))
            self._damage = None

    def _close_key(self) -> None:
        if self._key is not None:
            key, place = self._key
            self.findings.append(Finding("loss", "nothing stands under this key", place, key))
            self._key = None

    def _lose(self, reason: str, place: Place) -> None:
        self.findings.append(Finding("loss", reason, place))

    def _repair(self, reason: str, index: int) -> None:
        self.findings.append(Finding("repair", reason, self._window.place(index)))


# --- one file, record by record ---------------------------------------------------------------------------

Record = TypeVar("Record", OldOrganization, OldMember)
Pairs: TypeAlias = tuple[tuple[str, object], ...]
Fields: TypeAlias = dict[str, object]


class _Reader(ABC, Generic[Record]):
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
        """Raises _LostRecordError."""

    @abstractmethod
    def owner(self, record: Record) -> str: ...

    @abstractmethod
    def subject(self, record: Record) -> str: ...

    @abstractmethod
    def file_under(self, between: "_Between", key: str | None, owner: str) -> str | None:
        """Compare the record with the key it stands under; return what had to be read differently."""

    def scan(self, on_bytes: OnBytes | None = None) -> Iterator[Record | Finding]:
        with _opened(self._path) as file:
            window = _Window(file, self._path, on_bytes)
            between = _Between(window, lists=self.opens_with == "[")
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
        with _opened(self._path) as file:
            for size in (4096, LONGEST_RECORD):  # nearly all are short, and a file of repeats asks often
                file.seek(byte)
                found = _RECORD_AT.match(file.read(size).decode("latin-1"))
                if found:
                    break
        try:
            return self.build(dict(_decode(found.group())), Place(self._path.name, 0, byte), []) if found else None
        except (_LostRecordError, ValueError):
            return None

    def _healthy(self, window: _Window, between: "_Between") -> Iterator[Record | Finding]:
        """As long as one ordinary record follows the other; stops before the first thing that is not ordinary."""
        text, reach, match_next = window.text, window.reach, self.next_record.match
        repairs: list[Finding] = []
        while window.at < reach and (match := match_next(text, window.at)):
            key, _, *values = match.groups()
            try:
                record = self.build(self.fields(values), window.place(match.start("record")), repairs)
            except (_LostRecordError, ValueError):
                return
            if repairs or self.owner(record) != (key or between.list_key):
                return
            if key is not None and key != between.list_key:
                between.open_list(key)
            window.at = match.end()
            yield record

    def _careful(self, window: _Window, between: "_Between") -> Iterator[Record | Finding]:
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

    def _find(self, window: _Window) -> re.Match[str] | None:
        """The next object that is a record, whole; never one that merely has swallowed other records."""
        text, reach = window.text, window.reach
        begin = text.find("{", window.at, reach)
        while begin >= 0:
            found = _RECORD_AT.match(text, begin)
            if found is not None and _is_record(found.group()):
                return found
            begin = text.find("{", begin + 1, reach)
        return None

    def _judge(self, text: str, place: Place, notes: list[Finding]) -> Record | None:
        subject = None
        try:
            pairs = _decode(text)
            fields = dict(pairs)
            subject = _named(fields)
            _refuse_fields_twice(pairs, fields)
            record = self.build(fields, place, notes)
        except UnicodeDecodeError:
            damage = _OWNER_IN_DAMAGE.search(text)
            subject = damage.group(1) if damage else None
            notes[:] = [Finding("loss", "the record is not UTF-8 text", place, subject)]
            return None
        except _LostRecordError as error:
            notes[:] = [Finding("loss", f"no usable record: {error}", place, subject)]
            return None
        self._count_unknown(fields, place)
        return record

    def _count_unknown(self, fields: Fields, place: Place) -> None:
        for name in fields.keys() - self.known:
            counted = name if name in self._unknown or len(self._unknown) < _MOST_FIELD_NAMES else "(others)"
            count, first = self._unknown.get(counted, (0, place))
            self._unknown[counted] = count + 1, first

    def _key_before(self, window: _Window, index: int, owner: str | None) -> tuple[int, str | None]:
        """Where the key of a record at ``index`` begins, and the key if it is whole; a torn rest of it is skipped."""
        lowest = max(window.at, index - _LONGEST_KEY)
        whole = _KEY_BEFORE[self.opens_with].search(window.text, lowest, index)
        if whole is not None:
            return whole.start(), _utf8(whole.group(1))
        torn = _TORN_KEY_BEFORE[self.opens_with].search(window.text, lowest, index)
        if (
            torn is not None
            and owner is not None
            and (owner.endswith(torn.group(1)) or owner.startswith(torn.group(1)))
        ):
            return torn.start(), None
        return index, None


class _OrganizationReader(_Reader[OldOrganization]):
    next_record = _NEXT_ORGANIZATION
    known = _ORGANIZATION_FIELDS
    opens_with = ""

    def fields(self, values: list[str | None]) -> Fields:
        org_id, name, created_at, plan_tier, lago_customer_id, stripe_customer_id, status = values
        return {
            "id": org_id,
            "name": _string(name or ""),
            "created_at": created_at,
            "plan_tier": plan_tier,
            "lago_customer_id": lago_customer_id,
            "stripe_customer_id": stripe_customer_id,
            "status": status,
        }

    def build(self, fields: Fields, place: Place, repairs: list[Finding]) -> OldOrganization:
        org_id = _organization_id(fields, "id")
        plan_tier, status = _text(fields, "plan_tier"), _text(fields, "status")
        return OldOrganization(
            org_id,
            _name(fields, place, repairs, org_id),
            _moment(fields, "created_at", place, repairs, org_id),
            plan_tier,
            _billing_id(fields, "lago_customer_id", place, repairs, org_id),
            _billing_id(fields, "stripe_customer_id", place, repairs, org_id),
            status,
            place,
        )

    def owner(self, record: OldOrganization) -> str:
        return record.id

    def subject(self, record: OldOrganization) -> str:
        return record.id

    def file_under(self, between: "_Between", key: str | None, owner: str) -> str | None:  # noqa: ARG002 - an organization has no list
        if key is None:
            return "its key was torn off: the id was taken from the record"
        return None if key == owner else f"it stands under the key {key!r}: the id in the record was kept"


class _MemberReader(_Reader[OldMember]):
    next_record = _NEXT_MEMBER
    known = _MEMBER_FIELDS
    opens_with = "["

    def fields(self, values: list[str | None]) -> Fields:
        org_id, user_id, role, joined_at = values
        return {"org_id": org_id, "user_id": user_id, "role": role, "joined_at": joined_at}

    def build(self, fields: Fields, place: Place, repairs: list[Finding]) -> OldMember:
        org_id, user_id = _organization_id(fields, "org_id"), _text(fields, "user_id")
        if not user_id:
            reason = "the field 'user_id' is empty"
            raise _LostRecordError(reason)
        role = _text(fields, "role")
        return OldMember(
            org_id, user_id, role, _moment(fields, "joined_at", place, repairs, f"{org_id} {user_id}"), place
        )

    def owner(self, record: OldMember) -> str:
        return record.org_id

    def subject(self, record: OldMember) -> str:
        return f"{record.org_id} {record.user_id}"

    def file_under(self, between: "_Between", key: str | None, owner: str) -> str | None:
        if key is not None:
            between.open_list(key)
        if between.list_key == owner:
            return None
        if between.list_key is None or between.list_key_in_doubt:
            between.open_list(owner)  # the others of this list need not say it again
            return "the key of its list was torn off: the organization was taken from the record"
        return f"it stands in the list of {between.list_key!r}: the organization in the record was kept"


# --- repeats ----------------------------------------------------------------------------------------------


def _organizations_once(path: Path, on_bytes: OnBytes | None) -> Iterator[OldOrganization | Finding]:
    reader = _OrganizationReader(path)
    first: dict[int, int] = {}
    for item in reader.scan(on_bytes):
        if isinstance(item, OldOrganization):
            before = first.setdefault(hash(item.id), item.place.byte)
            if before != item.place.byte:
                earlier = reader.at(before)
                if earlier is not None and earlier.id == item.id:
                    yield _repeated(item.id, item.place, before, same=earlier == item)
                    continue
        yield item


def _members_once(path: Path, on_bytes: OnBytes | None) -> Iterator[OldMember | Finding]:
    """A list comes once in a healthy file: only when one comes again is everybody before it remembered."""
    reader = _MemberReader(path)
    org_id, ended = "", set[int]()
    first: dict[int, int] = {}
    everybody = False
    for item in reader.scan(on_bytes):
        if isinstance(item, OldMember):
            byte = item.place.byte
            if item.org_id != org_id:
                ended.add(hash(org_id))
                org_id = item.org_id
                if not everybody:
                    everybody = hash(org_id) in ended
                    first = _members_before(path, byte) if everybody else {}
            before = first.setdefault(hash((org_id, item.user_id)), byte)
            if before != byte:
                earlier = reader.at(before)
                if earlier is not None and (earlier.org_id, earlier.user_id) == (org_id, item.user_id):
                    yield _repeated(reader.subject(item), item.place, before, same=earlier == item)
                    continue
        yield item


def _members_before(path: Path, byte: int) -> dict[int, int]:
    first: dict[int, int] = {}
    for item in _MemberReader(path).scan():
        if isinstance(item, OldMember):
            if item.place.byte >= byte:
                break
            first.setdefault(hash((item.org_id, item.user_id)), item.place.byte)
    return first


def _repeated(subject: str, place: Place, first: int, *, same: bool) -> Finding:
    if same:
        return Finding("repair", f"it stands here again with the same content as at byte {first}", place, subject)
    reason = f"it stands here again with other content: the one at byte {first} was kept, this one is lost"
    return Finding("loss", reason, place, subject)


# --- fields -----------------------------------------------------------------------------------------------


def _decode(text: str) -> Pairs:
    """Raises ValueError: UnicodeDecodeError where the bytes are not UTF-8, else for a number beyond measure."""
    if not text.isascii():
        text = text.encode("latin-1").decode()
    pairs: Pairs = _DECODER.raw_decode(text)[0]
    return pairs


def _string(text: str) -> str:
    """Raises UnicodeDecodeError."""
    if "\\" in text or not text.isascii():
        value: str = _DECODER.raw_decode(text.encode("latin-1").decode())[0]
        return value
    return text[1:-1]


def _is_record(text: str) -> bool:
    try:
        pairs: Pairs = _DECODER.raw_decode(text)[0]
    except ValueError:
        return False
    # A record that lost its end may have closed over the ones behind it: those must come out, not this.
    swallowed = any(
        isinstance(value, tuple) and not _FIELDS.isdisjoint(name for name, _ in value) for _, value in pairs
    )
    return not swallowed and not _FIELDS.isdisjoint(name for name, _ in pairs)


def _refuse_fields_twice(pairs: Pairs, fields: Fields) -> None:
    if len(fields) != len(pairs):
        twice = next(name for name in fields if sum(name == other for other, _ in pairs) > 1)
        reason = f"the field {twice!r} stands twice in it: two records may have run together"
        raise _LostRecordError(reason)


def _named(fields: Fields) -> str | None:
    org_id, user_id = fields.get("id", fields.get("org_id")), fields.get("user_id")
    if not isinstance(org_id, str):
        return None
    return f"{org_id} {user_id}" if isinstance(user_id, str) else org_id


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _LostRecordError(_not_text(fields, name))
    if not _is_storable(value):
        reason = f"the field {name!r} holds a character that no database takes"
        raise _LostRecordError(reason)
    return value


def _organization_id(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise _LostRecordError(_not_text(fields, name))
    if not _ORGANIZATION_ID.fullmatch(value):
        # Lago reads an id with a dot in it as another customer's (lago.md 3.4).
        reason = f"the {name} {value!r} is not 'org_' with letters, digits, '-' and '_' alone"
        raise _LostRecordError(reason)
    return value


def _name(fields: Fields, place: Place, repairs: list[Finding], subject: str) -> str:
    value = fields.get("name")
    if not isinstance(value, str):
        raise _LostRecordError(_not_text(fields, "name"))
    if not _is_storable(value):
        value = value.replace("\x00", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        repairs.append(Finding("repair", "characters that no database takes were left out of the name", place, subject))
    if not value.strip():
        repairs.append(Finding("repair", "the name is empty", place, subject))
    elif len(value) > LONGEST_NAME:
        reason = f"the name is {len(value)} characters long, more than {LONGEST_NAME}"
        repairs.append(Finding("repair", reason, place, subject))
    return value


def _billing_id(fields: Fields, name: str, place: Place, repairs: list[Finding], subject: str) -> str | None:
    if fields.get(name) is None:
        return None
    value = _text(fields, name)
    if value.strip():
        return value
    repairs.append(Finding("repair", f"the empty {name} was read as none", place, subject))
    return None


def _moment(fields: Fields, name: str, place: Place, repairs: list[Finding], subject: str) -> datetime | None:
    value = fields.get(name)
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            # The old store wrote utcnow(), without an offset (predecessor.md 1.9).
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        reason = f"there is no {name}" if value is None else f"{name} is {_kind(value)}, not a date: left out"
    except (ValueError, OverflowError):
        reason = f"{name} is no date that can be read: left out"
    repairs.append(Finding("repair", reason, place, subject))
    return None


def _not_text(fields: Fields, name: str) -> str:
    if name not in fields:
        return f"the field {name!r} is missing"
    return f"the field {name!r} is {_kind(fields[name])}, not a text"


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case tuple():
            return "an object"
    return "a list"


def _is_storable(value: str) -> bool:
    if "\x00" in value:
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _utf8(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "replace")


# --- the files themselves ---------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if path.exists() and not path.is_file():
            reason = f"{path} is not a file: give the path of the JSON file itself."
            raise UnreadableFileError(reason)
        file = path.open("rb")
    except OSError as error:
        raise UnreadableFileError(_cannot_read(path, error)) from error
    with file:
        yield file


def _wrong_order(path: Path, what: str) -> str:
    return f"{path} holds {what}: give organizations.json first and org_users.json second."


def _cannot_read(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} is not there: check the path."
    if isinstance(error, PermissionError):
        return f"{path} may not be read by this user: change its permissions or copy it."
    return f"{path} cannot be read ({error.strerror or error}): copy it to a disk that works."


def _looks_like(path: Path) -> Literal["organizations", "members"] | None:
    """What the first bytes say beyond doubt; None for anything damaged, which is for the reader to judge."""
    with _opened(path) as file:
        try:
            text = file.read(_READ // 16).decode("latin-1")
        except OSError as error:
            raise UnreadableFileError(_cannot_read(path, error)) from error
    organizations = any(f'"{name}"' in text for name in _ORGANIZATION_FIELDS)
    lists = _LIST_UNDER_KEY.search(text) is not None
    members = any(f'"{name}"' in text for name in _MEMBER_FIELDS)
    if (lists or members) and not organizations:
        return "members"
    return "organizations" if organizations and not lists and not members else None


@contextmanager
def _replacing(path: Path) -> Iterator[Callable[[str], None]]:
    """Writes beside the file and renames at the very end, so that a crash leaves what was there."""
    target = path.resolve()
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    except OSError as error:
        raise UnwritableFileError(_cannot_write(path, error)) from error
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii", newline="\n", buffering=_READ) as file:

            def write(text: str) -> None:
                try:
                    file.write(text)
                except OSError as error:
                    raise UnwritableFileError(_cannot_write(path, error)) from error

            yield write
            try:
                file.flush()
                os.fsync(descriptor)
                if target.exists():
                    temporary.chmod(target.stat().st_mode & 0o777)
                temporary.replace(target)
                _sync_directory(target.parent)
            except OSError as error:
                raise UnwritableFileError(_cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> str:
    return f"{path} cannot be written ({error.strerror or error}): choose another folder or make room."


_json = json.JSONEncoder().encode


def _fields(indent: str, pairs: Iterable[tuple[str, str | None]]) -> str:
    """The inside of an object as ``json.dump(..., indent=2)`` lays it out; json itself is slow when it indents."""
    return ",\n".join(f'{indent}"{name}": {_json(value)}' for name, value in pairs)


def _organization_fields(organization: OldOrganization) -> str:
    return _fields(
        " " * 4,
        (
            ("id", organization.id),
            ("name", organization.name),
            ("created_at", _written(organization.created_at)),
            ("plan_tier", organization.plan_tier),
            ("lago_customer_id", organization.lago_customer_id),
            ("stripe_customer_id", organization.stripe_customer_id),
            ("status", organization.status),
        ),
    )


def _member_fields(member: OldMember) -> str:
    return _fields(
        " " * 6,
        (
            ("org_id", member.org_id),
            ("user_id", member.user_id),
            ("role", member.role),
            ("joined_at", _written(member.joined_at)),
        ),
    )


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else str(moment.astimezone(UTC).replace(tzinfo=None))
