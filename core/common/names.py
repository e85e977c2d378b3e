"""Which characters a name may have, and when two names are the same.

A name is one line of text that can be seen. A character that nobody sees is refused, except where a script or an emoji
needs it: there it is stored and shown with the name. The comparison key has none of them.

The tables list code points, so that a rule does not depend on the version of Unicode that Python has.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

MAX_NAME_KEY_LENGTH: Final = 800
"""Characters. Postgres refuses an index entry of more than 2,704 bytes, and one Arabic sign becomes 18 letters."""

# Control characters, and the two separators of Unicode that end a line or a paragraph.
_LINE_CHARACTERS: Final = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
# Default_Ignorable_Code_Point of Unicode 14.0. Nothing is drawn for them, in any script.
# https://www.unicode.org/Public/14.0.0/ucd/DerivedCoreProperties.txt
_IGNORABLE_CHARACTERS: Final = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    r"\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# Surrogates, private use, noncharacters, and the format characters (Cf) that are drawn by nobody although they are not
# in the table above. The Arabic signs of category Cf are drawn, so a name may have them.
_OTHER_CHARACTERS: Final = (
    r"\ud800-\uf8ff\ufdd0-\ufdef\ufff9-\ufffb\ufffe\uffff\U00013430-\U0001343f\U000f0000-\U0010ffff"
    + "".join(rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(1, 15))
)

# What makes such a character needed, by blocks of Unicode.
_JOINING_SCRIPTS: Final = (
    r"\u0620-\u06ff\u0710-\u077f\u07c0-\u07ff\u0840-\u08ff"  # Arabic, Syriac, N'Ko, Mandaic
    r"\u0900-\u0dff\u1000-\u109f\u1780-\u17b3\u17b6-\u17dd"  # Devanagari to Sinhala, Myanmar, Khmer
    r"\u1820-\u18aa\u1b00-\u1bbf\ua980-\ua9df"  # Mongolian, Balinese, Sundanese, Javanese
    r"\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc\U0001e900-\U0001e95f"  # forms of Arabic, Adlam
)
# They join two letters; a joiner after one changes its letter, also at the end of a word.
_VIRAMAS: Final = r"\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca\u1039\u103a\u17d2\u1b44\u1baa\ua9c0"
_MONGOLIAN: Final = r"\u1820-\u18aa"
_IDEOGRAPHS: Final = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\U00030000-\U000323af"
_EMOJI: Final = (
    r"\u00a9\u00ae\u203c\u2049\u2100-\u214f\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f"
    r"\u2b00-\u2bff\u3030\u303d\u3200-\u32ff\U0001f000-\U0001faff"
)
_NEEDED: Final = "|".join(
    (
        rf"(?<=[{_JOINING_SCRIPTS}])[\u200c\u200d](?=[{_JOINING_SCRIPTS}])",
        rf"(?<=[{_VIRAMAS}])[\u200c\u200d]",
        rf"(?:(?<=[{_EMOJI}])|(?<=[{_EMOJI}]\ufe0f))\u200d(?=[{_EMOJI}])",
        rf"(?<=[{_EMOJI}])[\ufe0e\ufe0f]",  # as text, as a picture
        r"(?<=[0-9#*])\ufe0f(?=\u20e3)",  # a key of a telephone
        rf"(?<=[{_IDEOGRAPHS}])[\ufe00-\ufe02\U000e0100-\U000e01ef]",  # the form of a character in a Japanese name
        rf"(?<=[{_MONGOLIAN}])[\u180b-\u180f]",
    )
)
_REFUSED: Final = re.compile(rf"(?!{_NEEDED})[{_LINE_CHARACTERS}{_IGNORABLE_CHARACTERS}{_OTHER_CHARACTERS}]")
_LINE: Final = re.compile(f"[{_LINE_CHARACTERS}]")
_IGNORABLE: Final = re.compile(f"[{_IGNORABLE_CHARACTERS}]")


def name_key(name: str) -> str:
    """Two names with the same key are the same.

    Letter case, width and composition of letters, the number of spaces and what nobody sees do not count. It is the
    compatibility caseless match of Unicode (D146) without the characters that are ignorable by default.
    """
    visible = unicodedata.normalize("NFD", _IGNORABLE.sub("", name))
    folded = unicodedata.normalize("NFKD", visible.casefold()).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())[:MAX_NAME_KEY_LENGTH].rstrip()


def find_refused(name: str) -> str | None:
    """The first character that a name must not contain, as a text can show it: its code point, name and position."""
    found = _REFUSED.search(name)
    if found is None:
        return None
    unicode_name = unicodedata.name(found[0], "a control character" if _LINE.match(found[0]) else "")
    shown = f"U+{ord(found[0]):04X}" + (f" ({unicode_name})" if unicode_name else "")
    return f"{shown} at position {found.start() + 1}"


def without_refused(name: str) -> str:
    """The name without the characters that it must not contain. A control character or line end becomes a space."""
    return _REFUSED.sub(lambda found: " " if _LINE.match(found[0]) else "", name)
