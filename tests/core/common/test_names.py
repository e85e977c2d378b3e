"""What nobody sees is refused in a name, unless a script or an emoji needs it, and never tells two names apart."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.common.names import MAX_NAME_KEY_LENGTH, find_refused, name_key, without_refused

NEEDED = {
    "a joiner in Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "a joiner in Hindi": "क्\u200dष",
    "a letter at the end in Malayalam": "അവന്\u200d",
    "a conjunct in Sinhala": "ශ්\u200dරී",
    "a family": "Haus \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "a pilot": "\U0001f468\U0001f3fd\u200d\u2708\ufe0f Air",
    "a heart as a picture": "I \u2764\ufe0f NY",
    "a heart as text": "I \u2764\ufe0e NY",
    "a flag": "\U0001f3f3\ufe0f\u200d\U0001f308",
    "a key of a telephone": "1\ufe0f\u20e3 First",
    "a Japanese name": "\u8fbb\U000e0100商店",
    "a Mongolian letter": "\u182d\u180b",
}
SEEN = ["Acme", "Zoë's Café & Söhne GmbH", "株式会社アクメ", "שלום", "\u0600\u0661", "A\u00a0B", "\U0001f1e9\U0001f1ea"]
REFUSED = {
    "a\nb": "U+000A (a control character) at position 2",
    "Acme\x7f": "U+007F (a control character) at position 5",
    "a\u2028b": "U+2028 (LINE SEPARATOR) at position 2",
    "a\u2029b": "U+2029 (PARAGRAPH SEPARATOR) at position 2",
    "Acme\u202egpj": "U+202E (RIGHT-TO-LEFT OVERRIDE) at position 5",
    "\u2066Acme": "U+2066 (LEFT-TO-RIGHT ISOLATE) at position 1",
    "Ac\u200bme": "U+200B (ZERO WIDTH SPACE) at position 3",
    "Ac\u200dme": "U+200D (ZERO WIDTH JOINER) at position 3",
    "Ac\u200cme": "U+200C (ZERO WIDTH NON-JOINER) at position 3",
    "می\u200c": "U+200C (ZERO WIDTH NON-JOINER) at position 3",
    "Acme\u200d\U0001f467": "U+200D (ZERO WIDTH JOINER) at position 5",
    "a\ufe0f\u200d\U0001f467": "U+FE0F (VARIATION SELECTOR-16) at position 2",
    "Acme\ufe0f": "U+FE0F (VARIATION SELECTOR-16) at position 5",
    "1\ufe0f": "U+FE0F (VARIATION SELECTOR-16) at position 2",
    "a\U000e0100": "U+E0100 (VARIATION SELECTOR-17) at position 2",
    "Ac\u00adme": "U+00AD (SOFT HYPHEN) at position 3",
    "\ufeffAcme": "U+FEFF (ZERO WIDTH NO-BREAK SPACE) at position 1",
    "\u3164": "U+3164 (HANGUL FILLER) at position 1",
    "a\U000e0041": "U+E0041 (TAG LATIN CAPITAL LETTER A) at position 2",
    "a\ue000": "U+E000 at position 2",
    "a\ufdd0": "U+FDD0 at position 2",
    "a\U0001ffff": "U+1FFFF at position 2",
    "a\ud800": "U+D800 at position 2",
    "a\ufffa": "U+FFFA (INTERLINEAR ANNOTATION SEPARATOR) at position 2",
}


@pytest.mark.parametrize("name", [*NEEDED.values(), *SEEN], ids=[*NEEDED, *map(ascii, SEEN)])
def test_what_a_script_or_an_emoji_needs_is_kept(name: str) -> None:
    assert find_refused(name) is None
    assert without_refused(name) == name


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_what_nobody_sees_is_refused_by_its_code_point(name: str) -> None:
    assert find_refused(name) == REFUSED[name]
    assert find_refused(without_refused(name)) is None


def test_every_character_of_a_kind_that_nobody_sees_is_refused() -> None:
    signs = {
        "\u0600",
        "\u0601",
        "\u0602",
        "\u0603",
        "\u0604",
        "\u0605",
        "\u06dd",
        "\u070f",
        "\u0890",
        "\u0891",
        "\u08e2",
    }
    signs |= {"\U000110bd", "\U000110cd"}  # of category Cf, and drawn
    accepted = [
        ascii(character)
        for character in map(chr, range(0x110000))
        if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} and find_refused(character) is None
    ]
    assert accepted == [ascii(sign) for sign in sorted(signs)]


@pytest.mark.parametrize(
    "name",
    [
        *("acme", "ACME", " Acme ", "\uff21\uff23\uff2d\uff25", "Ac\u200dme", "Ac\u200bme", "\ufeffAcme", "Ac\u00adme"),
        *("A\U000e0100cme", "\U0001d400cme", "Acm\u24d4"),
    ],
)
def test_names_that_look_the_same_have_one_key(name: str) -> None:
    assert name_key(name) == "acme"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Straße", "STRASSE"),
        ("Café", "Cafe\u0301"),
        ("A  B", "a\u00a0b"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645"),
        ("ﬁnance", "Finance"),
        ("\u2764\ufe0f", "\u2764"),
        ("\u0345\u1fb3", "\u03b9\u03b1\u03b9"),
    ],
)
def test_case_composition_width_and_spaces_do_not_count(first: str, second: str) -> None:
    assert name_key(first) == name_key(second)


@pytest.mark.parametrize(("first", "second"), [("Acme", "Acm\u00e9"), ("Acme", "\u0410cme"), ("A B", "AB")])
def test_other_letters_are_other_names(first: str, second: str) -> None:
    assert name_key(first) != name_key(second)


@given(st.text(max_size=40))
def test_the_key_of_a_key_is_that_key_and_what_is_left_of_a_name_is_accepted(name: str) -> None:
    key = name_key(name)
    assert name_key(key) == key
    assert find_refused(without_refused(name)) is None
    assert name_key(name.upper()) == name_key(name.upper().casefold())


@pytest.mark.parametrize("sign", ["\ufdfa", "\u3316", "\u0390", "\U0001d160"])
def test_a_key_fits_its_index_whatever_the_name_is(sign: str) -> None:
    key = name_key(sign * 200)
    assert len(key) <= MAX_NAME_KEY_LENGTH
    assert len(key.encode()) <= 2_704
