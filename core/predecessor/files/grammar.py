"""The format of the predecessor store's files, as patterns over bytes.

The bytes are read as Latin-1, so that one character is one byte and an index is a position. This is safe: every byte of
a non-ASCII UTF-8 sequence is above 0x7F, where JSON has no structural character. Strings are decoded as UTF-8 once a
record is found. All quantifiers are possessive, so no input causes backtracking.
"""

import json
import re
from typing import TypeAlias

Pairs: TypeAlias = tuple[tuple[str, object], ...]

MAX_RECORD_BYTES = 256 * 1024  # bytes; a longer record cannot be distinguished from damage and is reported as damage
MAX_RECORD_KEY_BYTES = 400


JSON_BLANK = r"[ \t\r\n]*+"
JSON_STRING = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+"'
_SCALAR_GRAMMAR = rf"(?:{JSON_STRING}|-?[0-9]++(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null)"


def _object_of(value: str) -> str:
    pair = rf"{JSON_STRING}{JSON_BLANK}:{JSON_BLANK}{value}{JSON_BLANK}"
    return rf"\{{{JSON_BLANK}(?:{pair}(?:,{JSON_BLANK}{pair})*+)?+\}}"


_LIST_GRAMMAR = rf"\[{JSON_BLANK}(?:{_SCALAR_GRAMMAR}{JSON_BLANK}(?:,{JSON_BLANK}{_SCALAR_GRAMMAR}{JSON_BLANK})*+)?+\]"
# A record is flat. One nested level is allowed, so that an added field does not make the record unreadable.
_RECORD_GRAMMAR = _object_of(rf"(?:{_SCALAR_GRAMMAR}|{_LIST_GRAMMAR}|{_object_of(_SCALAR_GRAMMAR)})")
_KEY_GRAMMAR = rf'"([^"\\\x00-\x1f]{{0,{MAX_RECORD_KEY_BYTES}}}+)"{JSON_BLANK}:{JSON_BLANK}'
_EMPTY_LISTS_GRAMMAR = rf"(?:,{JSON_BLANK}{JSON_STRING}{JSON_BLANK}:{JSON_BLANK}\[{JSON_BLANK}\]{JSON_BLANK})*+"

RECORD_PATTERN = re.compile(_RECORD_GRAMMAR)


def _ordinary_record(**fields: str) -> str:
    """A record as the predecessor wrote it: all fields in order, each a group. Much faster than parsing JSON."""
    pairs = (rf'"{name}"{JSON_BLANK}:{JSON_BLANK}{value}{JSON_BLANK}' for name, value in fields.items())
    return rf"(?P<record>\{{){JSON_BLANK}{rf',{JSON_BLANK}'.join(pairs)}\}}"


_PLAIN_VALUE = r'(?:"([^"\\\x00-\x1f\x7f-\xff]*+)"|null)'
NEXT_ORGANIZATION_PATTERN = re.compile(
    rf"{JSON_BLANK},{JSON_BLANK}{_KEY_GRAMMAR}"
    + _ordinary_record(
        id=_PLAIN_VALUE,
        name=rf"({JSON_STRING})",
        created_at=_PLAIN_VALUE,
        plan_tier=_PLAIN_VALUE,
        lago_customer_id=_PLAIN_VALUE,
        stripe_customer_id=_PLAIN_VALUE,
        status=_PLAIN_VALUE,
    )
)
NEXT_MEMBER_PATTERN = re.compile(
    rf"{JSON_BLANK}(?:\]{JSON_BLANK}{_EMPTY_LISTS_GRAMMAR},{JSON_BLANK}{_KEY_GRAMMAR}\[{JSON_BLANK}|,{JSON_BLANK})"
    + _ordinary_record(org_id=_PLAIN_VALUE, user_id=_PLAIN_VALUE, role=_PLAIN_VALUE, joined_at=_PLAIN_VALUE)
)
TOKEN_PATTERN = re.compile(
    r"(?P<blank>[ \t\r\n]++)|(?P<bom>\xef\xbb\xbf)|(?P<mark>[{}\[\],])"
    rf'|"(?P<key>[^"\\\x00-\x1f]{{0,{MAX_RECORD_KEY_BYTES}}}+)"{JSON_BLANK}:'
    rf'|(?P<other>{JSON_STRING}|\x00++|[^ \t\r\n{{}}\[\],"\x00]++|.)',
    re.DOTALL,
)
KEY_BEFORE_PATTERNS = {"": re.compile(rf"{_KEY_GRAMMAR}\Z"), "[": re.compile(rf"{_KEY_GRAMMAR}\[{JSON_BLANK}\Z")}
TORN_KEY_BEFORE_PATTERNS = {
    "": re.compile(rf'"?([^"{{}}\[\],:\s\x00]*+)"?+{JSON_BLANK}:{JSON_BLANK}\Z'),
    "[": re.compile(rf'"?([^"{{}}\[\],:\s\x00]*+)"?+{JSON_BLANK}:?+{JSON_BLANK}\[{JSON_BLANK}\Z'),
}
OLD_ORGANIZATION_ID_PATTERN = re.compile(r"org_[A-Za-z0-9_-]+")
OWNER_IN_DAMAGE_PATTERN = re.compile(r'"(?:id|org_id)"\s*:\s*"(org_[A-Za-z0-9_-]+)"')
USER_IN_DAMAGE_PATTERN = re.compile(r'"user_id"\s*:\s*"([^"\\\x00-\x1f]{1,200})"')
LIST_UNDER_KEY_PATTERN = re.compile(r'"org_[A-Za-z0-9_-]+"\s*:\s*\[')


ORGANIZATION_FIELDS = frozenset(
    {"id", "name", "created_at", "plan_tier", "lago_customer_id", "stripe_customer_id", "status"}
)
MEMBER_FIELDS = frozenset({"org_id", "user_id", "role", "joined_at"})
RECORD_FIELDS = ORGANIZATION_FIELDS | MEMBER_FIELDS


# Objects become tuples of pairs and lists stay lists: duplicate fields stay visible, and the two kinds distinct.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple)


def parse_pairs(text: str) -> Pairs:
    """Raises ``ValueError``: ``UnicodeDecodeError`` if the bytes are not UTF-8, or for a number that is too long."""
    if not text.isascii():
        text = text.encode("latin-1").decode()
    pairs: Pairs = _DECODER.raw_decode(text)[0]
    return pairs


def parse_string(text: str) -> str:
    """Raises ``UnicodeDecodeError``."""
    if "\\" in text or not text.isascii():
        value: str = _DECODER.raw_decode(text.encode("latin-1").decode())[0]
        return value
    return text[1:-1]


def is_record(text: str) -> bool:
    try:
        pairs: Pairs = _DECODER.raw_decode(text)[0]
    except ValueError:
        return False
    # A record that lost its end may enclose the records after it. Those must be recovered, not this one.
    encloses_records = any(
        isinstance(value, tuple) and not RECORD_FIELDS.isdisjoint(name for name, _ in value) for _, value in pairs
    )
    return not encloses_records and not RECORD_FIELDS.isdisjoint(name for name, _ in pairs)


def decode_utf8(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "replace")
