"""A name can be seen, and a billing email is one that both providers accept and store as it is (lago.md 13.1, B10)."""

from __future__ import annotations

import pytest

from core.common.validation import InvalidChangeError
from core.organizations.validation import checked_email, checked_name


@pytest.mark.parametrize(
    "address",
    [
        *("a@x.com", "A.B+c@sub.x-y.co", "o'neill@x.com", "{a}|b@x.com", "a@1.2"),
        "m\N{LATIN SMALL LETTER U WITH DIAERESIS}ller@x.com",
    ],
)
def test_an_email_of_the_common_form_is_accepted_unchanged(address: str) -> None:
    assert checked_email(address) == address


@pytest.mark.parametrize(
    "address",
    [
        *("a..b@x.com", ".a@x.com", "a.@x.com", "a@-x.com", "a@x-.com", "a@x_y.com", "a@x.com.", "a@x..com", "a@x"),
        *("a(b)@x.com", "a;b@x.com", "a<b>@x.com", '"a"@x.com', "a@[1.2.3.4]", "a b@x.com", "a@x.com,b@x.com", ""),
        "a@ex\N{LATIN SMALL LETTER A WITH DIAERESIS}mple.com",
        *(f"a{dash}b@x.com" for dash in "\N{HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{HYPHEN BULLET}\N{MINUS SIGN}"),
        *(f"a{gap}b@x.com" for gap in "\N{ZERO WIDTH SPACE}\N{NO-BREAK SPACE}\N{ZERO WIDTH NO-BREAK SPACE}"),
    ],
)
def test_an_email_that_lago_refuses_or_would_change_is_refused_when_it_is_entered(address: str) -> None:
    with pytest.raises(InvalidChangeError, match="billing_email"):
        checked_email(address)


@pytest.mark.parametrize(
    "name",
    [
        "Acme",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469",
        "I \u2764\ufe0f NY",
        "\uff21\uff23\uff2d\uff25",
    ],
)
def test_a_name_is_stored_as_it_is_without_outer_spaces(name: str) -> None:
    assert checked_name(f" {name}\u00a0") == name


@pytest.mark.parametrize(
    ("name", "character"),
    [
        ("Acme\u202egpj", "U+202E (RIGHT-TO-LEFT OVERRIDE) at position 5"),
        (" Ac\u200bme", "U+200B (ZERO WIDTH SPACE) at position 3"),
        ("a\nb", "U+000A (a control character) at position 2"),
    ],
)
def test_the_refusal_of_a_name_names_the_character_that_nobody_sees(name: str, character: str) -> None:
    with pytest.raises(InvalidChangeError) as caught:
        checked_name(name)
    assert caught.value.field == "name"
    assert str(caught.value) == f"name contains {character}; use one line of text that can be seen"
