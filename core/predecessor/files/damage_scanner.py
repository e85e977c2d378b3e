"""Scans the text between the records: ordinary structure is followed, everything else is damage.

Every byte that is neither white space nor structure is reported in a finding.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from core.predecessor.files.grammar import (
    OLD_ORGANIZATION_ID_PATTERN,
    OWNER_IN_DAMAGE_PATTERN,
    RECORD_FIELDS,
    TOKEN_PATTERN,
    USER_IN_DAMAGE_PATTERN,
    decode_utf8,
)
from core.predecessor.files.records import FileFinding, FilePosition
from core.predecessor.files.window import FileWindow

_DAMAGE_SAMPLE_BYTES = 1024  # bytes of a damaged span that are searched for the organization it belonged to

_BEGINNING_MISSING = "the beginning of this document was overwritten: everything before this position is lost"
_END_MISSING = "the file ends before the document is complete: the rest is lost"
_EMPTY = "the file is empty: its content is lost; look for a backup of it"


@dataclass(slots=True)
class DamageSpan:
    """A span of bytes that is neither record nor structure, while it is being read."""

    position: FilePosition
    key: str | None
    has_brace: bool = False
    only_nul: bool = True
    end: int = 0
    sample: str = ""

    def consume(self, text: str, end: int) -> None:
        self.only_nul = self.only_nul and not text.strip("\x00")
        self.sample = (self.sample + text)[:_DAMAGE_SAMPLE_BYTES]
        self.end = end

    @property
    def is_record_like(self) -> bool:
        return self.has_brace or any(f'"{name}"' in self.sample for name in RECORD_FIELDS)

    @property
    def subject(self) -> str | None:
        owner = OWNER_IN_DAMAGE_PATTERN.search(self.sample)
        user = USER_IN_DAMAGE_PATTERN.search(self.sample)
        org_id = owner.group(1) if owner else self.key
        return f"{org_id or 'unknown organization'} {decode_utf8(user.group(1))}" if user else org_id

    def to_finding(self, *, cut_off: bool) -> FileFinding:
        length = self.end - self.position.byte
        size = f"{length} byte" if length == 1 else f"{length} bytes"
        if self.sample and self.only_nul:
            reason = f"{size} of NUL: overwritten or never written"
        elif self.is_record_like and cut_off:
            reason = f"a record is cut off by the end of the file, {size}"
        elif self.is_record_like:
            reason = f"a damaged record, {size}"
        elif self.key is not None:
            reason = f"there is no record under this key, {size}"
        else:
            reason = f"{size} outside any record"
        return FileFinding("loss", reason, self.position, self.subject)


class DamageScanner:
    """Reads the text between the records: tracks documents, lists and keys, and reports everything else."""

    def __init__(self, window: FileWindow, *, expects_lists: bool) -> None:
        self.findings: list[FileFinding] = []
        self.document_open = False
        self.list_open = False
        self.list_key: str | None = None
        self.is_list_key_uncertain = False
        self.is_list = False
        """Whether the open document is a list of records instead of an object with keys: both forms are read."""
        self._ended_list = False
        self._window = window
        self._expects_lists = expects_lists
        self._documents = 0
        self._damaged = False
        self._key: tuple[str, FilePosition] | None = None
        self._damage: DamageSpan | None = None
        self._cut_off = False

    @property
    def is_in_order(self) -> bool:
        return self.document_open and self._damage is None and self._key is None and not self.is_list

    def take_findings(self) -> list[FileFinding]:
        findings, self.findings = self.findings, []
        return findings

    def read(self, begin: int, end: int) -> Iterator[FileFinding]:
        for token in TOKEN_PATTERN.finditer(self._window.text, begin, end):
            match token.lastgroup:
                case "blank":
                    pass
                case "bom":
                    self._record_repair("a byte order mark was skipped", token.start())
                case "key":
                    self._read_key(token)
                case "mark" if self._damage is None or self._ends_document(token):
                    self._close_damage()
                    self._read_mark(token)
                case _:
                    self._read_damage(token)
            if self.findings:
                yield from self.take_findings()

    def take_key(self) -> str | None:
        """Returns, once, the last key if it has no value yet."""
        key, self._key = self._key, None
        return None if key is None else key[0]

    def open_list(self, key: str) -> None:
        self.list_open, self.list_key, self.is_list_key_uncertain = True, key, False

    def begin_record(self, index: int) -> None:
        """A record begins here, so damage or a key before it ends."""
        self._close_damage()
        self._close_key()
        self.open_document(index)

    def open_document(self, index: int) -> None:
        if not self.document_open:
            self._record_loss(_BEGINNING_MISSING, self._window.position(index))
            self.document_open = True
            self._documents += 1

    def finish(self) -> None:
        self._cut_off = True
        cut_inside = self._damage is not None and self._damage.is_record_like
        self._close_damage()
        self._close_key()
        position = self._window.position(len(self._window.text))
        if self.document_open and not cut_inside:
            self._record_loss(_END_MISSING, position)
        elif not self._documents and not self._damaged:
            self._record_loss(_EMPTY, position)

    def _read_key(self, token: re.Match[str]) -> None:
        name = token.group("key")
        if name in RECORD_FIELDS or (self._damage is not None and not OLD_ORGANIZATION_ID_PATTERN.fullmatch(name)):
            self._read_damage(token)
            return
        self._close_damage()
        self._close_key()
        self.open_document(token.start())
        self._key = decode_utf8(name), self._window.position(token.start())

    def _read_mark(self, token: re.Match[str]) -> None:
        mark = token.group()
        if mark == "{" and not self.document_open:
            self._begin_document(token)
        elif mark == "[" and not self.document_open:
            self._begin_document(token)
            self.is_list = True
        elif mark == "[" and self._expects_lists and self.is_list and not self.list_open:
            self.list_open = True
        elif mark == "[" and self._expects_lists and self._key is not None:
            self.open_list(self._key[0])
            self._key = None
        elif mark == "{" or (mark == "[" and self._key is not None):
            self._read_damage(token)
        elif mark == "]" and self.list_open:
            self.list_open, self.list_key = False, None
        elif mark == ("]" if self.is_list else "}") and self.document_open:
            self._close_key()
            self._ended_list = self.is_list
            self.document_open = self.list_open = self.is_list = False
            self.list_key = None
        elif mark == "}" and self._ended_list and self._expects_lists:
            # The list was not the whole file: it was under a key, which was cut off with everything before it.
            self._ended_list = False
            self._record_loss(_BEGINNING_MISSING, self._window.position(token.start()))
        elif mark != ",":
            self._record_repair(f"an extra {mark!r} was skipped", token.start())

    def _begin_document(self, token: re.Match[str]) -> None:
        if self._documents:
            self._record_repair("a second document begins in the same file: both were read", token.start())
        self.document_open = True
        self._documents += 1

    def _read_damage(self, token: re.Match[str]) -> None:
        brace = token.group() == "{"
        if brace and self._damage is not None and self._damage.has_brace:
            self._close_damage()
        if self._damage is None:
            key, position = self._key or (None, self._window.position(token.start()))
            self._damage, self._key = DamageSpan(position, key), None
            self._damaged = self.is_list_key_uncertain = True
        self._damage.has_brace = self._damage.has_brace or brace
        end = self._window.position(token.end()).byte
        self._damage.consume(token.group(), end)
        if token.group() == "}":
            self._close_damage()

    def _ends_document(self, token: re.Match[str]) -> bool:
        """A brace after a value that is no record, under a key: ``"org_a": null }``."""
        damage = self._damage
        return token.group() == "}" and damage is not None and damage.key is not None and not damage.is_record_like

    def _close_damage(self) -> None:
        if self._damage is not None:
            self.findings.append(self._damage.to_finding(cut_off=self._cut_off))
            self._damage = None

    def _close_key(self) -> None:
        if self._key is not None:
            key, position = self._key
            self.findings.append(FileFinding("loss", "there is nothing under this key", position, key))
            self._key = None

    def _record_loss(self, reason: str, position: FilePosition) -> None:
        self.findings.append(FileFinding("loss", reason, position))

    def _record_repair(self, reason: str, index: int) -> None:
        self.findings.append(FileFinding("repair", reason, self._window.position(index)))
