"""What stands between the records: ordinary structure is followed, everything else is named as a finding.

No byte that is neither white space nor structure passes without a word.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from core.predecessor.files.grammar import FIELDS, ORGANIZATION_ID, OWNER_IN_DAMAGE, TOKEN, USER_IN_DAMAGE, utf8
from core.predecessor.files.records import Finding, Place
from core.predecessor.files.window import Window

_SAMPLE = 1024  # bytes of a damaged stretch that are kept to find out whose it was

_BEGINNING_MISSING = "the beginning of this document was overwritten: what stood before this place is lost"
_END_MISSING = "the file ends before its document does: what followed is lost"
_EMPTY = "the file holds nothing: what it held is lost; look for a copy of it"


@dataclass(slots=True)
class Damage:
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
        return self.has_brace or any(f'"{name}"' in self.sample for name in FIELDS)

    @property
    def subject(self) -> str | None:
        owner = OWNER_IN_DAMAGE.search(self.sample)
        user = USER_IN_DAMAGE.search(self.sample)
        known = owner.group(1) if owner else self.key
        return f"{known or 'unknown organization'} {utf8(user.group(1))}" if user else known

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


class Between:
    """Reads what stands between the records: keeps track of documents, lists and keys, and names the rest."""

    def __init__(self, window: Window, *, lists: bool) -> None:
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
        self._damage: Damage | None = None
        self._cut_off = False

    @property
    def in_order(self) -> bool:
        return self.document_open and self._damage is None and self._key is None and not self._top_is_list

    def drain(self) -> list[Finding]:
        found, self.findings = self.findings, []
        return found

    def read(self, begin: int, end: int) -> Iterator[Finding]:
        for token in TOKEN.finditer(self._window.text, begin, end):
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
        if name in FIELDS or (self._damage is not None and not ORGANIZATION_ID.fullmatch(name)):
            self._read_damage(token)
            return
        self._close_damage()
        self._close_key()
        self.open_document(token.start())
        self._key = utf8(name), self._window.place(token.start())

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
            self._damage, self._key = Damage(place, key), None
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
