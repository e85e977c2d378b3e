"""How the old store's files are laid out, as patterns over bytes.

The bytes are looked at as Latin-1, so that one character is one byte and an index is a place. That is safe:
every byte of a UTF-8 sequence beyond ASCII is above 0x7F, where JSON has no mark. Strings are decoded properly
once a record is found. All quantifiers are possessive: no input makes a match go back and try again.
"""

import json
import re
from typing import TypeAlias

Pairs: TypeAlias = tuple[tuple[str, object], ...]

LONGEST_RECORD = 256 * 1024  # bytes; a longer one cannot be told from damage and is reported as such
LONGEST_KEY = 400


BLANK = r"[ \t\r\n]*+"
STRING = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})[^"\\\x00-\x1f]*+)*+"'
_SCALAR = rf"(?:{STRING}|-?[0-9]++(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+|true|false|null)"


def _object_of(value: str) -> str:
    pair = rf"{STRING}{BLANK}:{BLANK}{value}{BLANK}"
    return rf"\{{{BLANK}(?:{pair}(?:,{BLANK}{pair})*+)?+\}}"


_LIST = rf"\[{BLANK}(?:{_SCALAR}{BLANK}(?:,{BLANK}{_SCALAR}{BLANK})*+)?+\]"
# A record is flat. One level below is let through, so that a field which somebody added does not cost the record.
_RECORD = _object_of(rf"(?:{_SCALAR}|{_LIST}|{_object_of(_SCALAR)})")
_KEY = rf'"([^"\\\x00-\x1f]{{0,{LONGEST_KEY}}}+)"{BLANK}:{BLANK}'
_EMPTY_LISTS = rf"(?:,{BLANK}{STRING}{BLANK}:{BLANK}\[{BLANK}\]{BLANK})*+"

RECORD_AT = re.compile(_RECORD)


def _ordinary(**fields: str) -> str:
    """A record as the old store lays it out: its fields in its order, each a group; a fraction of the cost of JSON."""
    pairs = (rf'"{name}"{BLANK}:{BLANK}{value}{BLANK}' for name, value in fields.items())
    return rf"(?P<record>\{{){BLANK}{rf',{BLANK}'.join(pairs)}\}}"


_PLAIN = r'(?:"([^"\\\x00-\x1f\x7f-\xff]*+)"|null)'
NEXT_ORGANIZATION = re.compile(
    rf"{BLANK},{BLANK}{_KEY}"
    + _ordinary(
        id=_PLAIN,
        name=rf"({STRING})",
        created_at=_PLAIN,
        plan_tier=_PLAIN,
        lago_customer_id=_PLAIN,
        stripe_customer_id=_PLAIN,
        status=_PLAIN,
    )
)
NEXT_MEMBER = re.compile(
    rf"{BLANK}(?:\]{BLANK}{_EMPTY_LISTS},{BLANK}{_KEY}\[{BLANK}|,{BLANK})"
    + _ordinary(org_id=_PLAIN, user_id=_PLAIN, role=_PLAIN, joined_at=_PLAIN)
)
TOKEN = re.compile(
    r"(?P<blank>[ \t\r\n]++)|(?P<bom>\xef\xbb\xbf)|(?P<mark>[{}\[\],])"
    rf'|"(?P<key>[^"\\\x00-\x1f]{{0,{LONGEST_KEY}}}+)"{BLANK}:'
    rf'|(?P<other>{STRING}|\x00++|[^ \t\r\n{{}}\[\],"\x00]++|.)',
    re.DOTALL,
)
KEY_BEFORE = {"": re.compile(rf"{_KEY}\Z"), "[": re.compile(rf"{_KEY}\[{BLANK}\Z")}
TORN_KEY_BEFORE = {
    "": re.compile(rf'"?([^"{{}}\[\],:\s\x00]*+)"?+{BLANK}:{BLANK}\Z'),
    "[": re.compile(rf'"?([^"{{}}\[\],:\s\x00]*+)"?+{BLANK}:?+{BLANK}\[{BLANK}\Z'),
}
ORGANIZATION_ID = re.compile(r"org_[A-Za-z0-9_-]+")
OWNER_IN_DAMAGE = re.compile(r'"(?:id|org_id)"\s*:\s*"(org_[A-Za-z0-9_-]+)"')
USER_IN_DAMAGE = re.compile(r'"user_id"\s*:\s*"([^"\\\x00-\x1f]{1,200})"')
LIST_UNDER_KEY = re.compile(r'"org_[A-Za-z0-9_-]+"\s*:\s*\[')


ORGANIZATION_FIELDS = frozenset(
    {"id", "name", "created_at", "plan_tier", "lago_customer_id", "stripe_customer_id", "status"}
)
MEMBER_FIELDS = frozenset({"org_id", "user_id", "role", "joined_at"})
FIELDS = ORGANIZATION_FIELDS | MEMBER_FIELDS


# Objects come as tuples of pairs, lists as lists: a field that stands twice stays visible, and the two kinds distinct.
_DECODER = json.JSONDecoder(object_pairs_hook=tuple)


def pairs_of(text: str) -> Pairs:
    """Raises ValueError: UnicodeDecodeError where the bytes are not UTF-8, else for a number beyond measure."""
    if not text.isascii():
        text = text.encode("latin-1").decode()
    pairs: Pairs = _DECODER.raw_decode(text)[0]
    return pairs


def string_of(text: str) -> str:
    """Raises UnicodeDecodeError."""
    if "\\" in text or not text.isascii():
        value: str = _DECODER.raw_decode(text.encode("latin-1").decode())[0]
        return value
    return text[1:-1]


def is_record(text: str) -> bool:
    try:
        pairs: Pairs = _DECODER.raw_decode(text)[0]
    except ValueError:
        return False
    # A record that lost its end may have closed over the ones behind it: those must come out, not this.
    swallowed = any(isinstance(value, tuple) and not FIELDS.isdisjoint(name for name, _ in value) for _, value in pairs)
    return not swallowed and not FIELDS.isdisjoint(name for name, _ in pairs)


def utf8(text: str) -> str:
    return text.encode("latin-1").decode("utf-8", "replace")
