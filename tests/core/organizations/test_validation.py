"""A billing email is one that both providers accept and store as it is (lago.md 13.1, B10)."""

from __future__ import annotations

import pytest

from core.common.validation import InvalidChangeError
from core.organizations.validation import checked_email


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
