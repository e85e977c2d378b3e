"""A name that somebody chose is neither a subject, nor a link, nor a sentence of ours, in any email."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from typing import get_args

import pytest

from core.db.models.email import EmailKind
from core.emails.templates import TemplateContext, render

SENDER = Address("Billing", addr_spec="billing@acme.test")
# What mail programs turn into a link: a scheme, an address, or a host name.
LINK = re.compile(r"[a-z][a-z0-9+.-]*:(?=\w|/)|\w@\w|\w[.\uff0e\u3002\uff61]\w|www\.\w", re.IGNORECASE)
NAMES = [
    "https://evil.example/pay",
    "evil.example",
    "Stripe <support@stripe.com>",
    "mailto:eve@evil.example",
    "evil\u3002example",
    "Acme\u201d. Pay at evil.example now. \u201cAcme",
    'Acme". Your account is locked',
    "Acme\nSubject: You have won",
]


def rendered(kind: EmailKind, name: str) -> EmailMessage:
    context = TemplateContext(
        organization=name,
        plan="Professional",
        former_plan="Starter",
        date=datetime(2026, 11, 23, tzinfo=UTC),
        role="member",
        inviter_name=name,
        token="q5v0bq0d",
    )
    return render(kind, context, sender=SENDER, recipient="bob@acme.test", message_id="<1@acme.test>")


def parts(message: EmailMessage) -> list[str]:
    return [str(part.get_content()) for part in message.walk() if part.get_content_maintype() == "text"]


@pytest.mark.parametrize("kind", get_args(EmailKind))
def test_a_subject_is_a_fixed_sentence(kind: EmailKind) -> None:
    subjects = {str(rendered(kind, name)["Subject"]) for name in [*NAMES, "Acme"]}
    assert len(subjects) == 1
    assert "Acme" not in subjects.pop()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", get_args(EmailKind))
def test_a_name_is_no_link_and_no_sentence_of_ours(kind: EmailKind, name: str) -> None:
    text, html = parts(rendered(kind, name))
    shown = re.sub(r"<(style|head)\b.*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL)
    for part in (text, shown):
        assert not LINK.search(part), part
        assert part.count("\u201c") == part.count("\u201d")
        for quoted in re.findall(r"\u201c(.*?)\u201d", part, re.DOTALL):
            assert "\u201c" not in quoted


def test_a_usual_name_is_shown_as_it_is() -> None:
    text, _ = parts(rendered("welcome", "Acme & Söhne Ltd."))
    assert "\u201cAcme & Söhne Ltd.\u201d" in " ".join(text.split())
