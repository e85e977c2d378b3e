"""Email templates: a text part and an HTML part, rendered from one template of plain sentences.

A subject is a fixed sentence. Names that users chose (of organizations and of users) stand in the body only, in
quotation marks, so that none reads like a sentence of ours or like a sender. They are reduced to one line, and what
mail programs would turn into a link is broken up. In HTML they are escaped.
"""

from __future__ import annotations

import re
import textwrap
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from core.db.models.email import EmailKind
from core.db.models.organizations import MembershipRole

_LINE_WIDTH: Final = 76
# ASCII only on the wire: not every server on the way accepts anything else.
_POLICY: Final = SMTP_POLICY.clone(cte_type="7bit")
# Line and paragraph separators, control characters, and characters that change the direction of the text after them.
_INVISIBLE_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDI_CONTROLS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# A dot, colon, slash or @ before a letter or digit, or before another of them.
_LINK_PARTS: Final = re.compile(r"[.:/@\uff0e\u3002\uff61](?=[^\W_]|[.:/@])")
_PLAIN_QUOTES: Final = str.maketrans({"\u201c": "'", "\u201d": "'", '"': "'"})
_ROLE_PHRASES: Final[dict[MembershipRole, str]] = {
    "owner": "an owner",
    "billing_admin": "a billing admin",
    "member": "a member",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateContext:
    """Values for the templates; each kind needs some of them. ``token`` accepts an invitation, ``link`` contains it."""

    organization: str
    plan: str | None = None
    former_plan: str | None = None
    date: datetime | None = None
    role: MembershipRole | None = None
    inviter_name: str | None = None
    token: str | None = None
    link: str | None = None
    waiting_links: int = 0
    problems: tuple[str, ...] = ()
    """Sentences of an operations digest, which is about no organization."""


def single_line(text: str) -> str:
    visible = "".join(
        " " if unicodedata.category(character) in _INVISIBLE_CATEGORIES else character
        for character in text
        if character not in _BIDI_CONTROLS
    )
    return " ".join(visible.split())


def quoted(name: str) -> str:
    """``name`` as one that somebody chose: in quotation marks, which it cannot end, and without a link or address."""
    return f"\u201c{_without_links(single_line(name)).translate(_PLAIN_QUOTES)}\u201d"


def render(
    kind: EmailKind, context: TemplateContext, *, sender: Address, recipient: str, message_id: str
) -> EmailMessage:
    """Renders the message without its date.

    ``email_addresses`` must accept ``recipient``. ``message_id`` is the same for every attempt.
    """
    subject, paragraphs = _render_parts(kind, context)
    message = EmailMessage(policy=_POLICY)
    message["From"] = sender
    message["To"] = Address(addr_spec=recipient)
    message["Subject"] = subject
    message["Message-ID"] = message_id
    # Prevents automatic replies such as out-of-office notices.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_plain_text(paragraphs, context))
    html = _TEMPLATES.get_template("email.html").render(
        subject=subject, paragraphs=paragraphs, link=context.link, code=None if context.link else context.token
    )
    message.add_alternative(html, subtype="html")
    return message


def set_date(message: EmailMessage, now: datetime) -> EmailMessage:
    message["Date"] = format_datetime(now.astimezone(UTC))
    return message


def _without_links(name: str) -> str:
    """Mail programs make a link of `host.tld`, `scheme:...` and `name@host`, but not across a space."""
    return _LINK_PARTS.sub(lambda part: f"{part[0]} ", name)


def _render_parts(kind: EmailKind, context: TemplateContext) -> tuple[str, list[str]]:
    """The subject, which is the template's first line, and the paragraphs."""
    variables = {
        "organization": quoted(context.organization),
        "plan": single_line(context.plan or ""),
        "former_plan": single_line(context.former_plan or ""),
        "day": f"{context.date.astimezone(UTC):%d %B %Y}".lstrip("0") if context.date else "",
        "role": _ROLE_PHRASES[context.role] if context.role else "",
        "inviter": quoted(context.inviter_name) if context.inviter_name else "",
        "by_link": context.link is not None,
        "waiting_links": context.waiting_links,
        "problems": context.problems,
    }
    blocks = map(single_line, re.split(r"\n\s*\n", _TEMPLATES.get_template(f"{kind}.txt").render(variables)))
    subject, *paragraphs = filter(None, blocks)
    return subject, paragraphs


def _plain_text(paragraphs: list[str], context: TemplateContext) -> str:
    """The text part. A link or token is on its own line and is never wrapped."""
    blocks = [
        textwrap.fill(paragraph, _LINE_WIDTH, break_long_words=False, break_on_hyphens=False)
        for paragraph in paragraphs
    ]
    link_or_token = context.link or context.token
    return "\n\n".join([*blocks, f"    {link_or_token}"] if link_or_token else blocks) + "\n"


_TEMPLATES: Final = Environment(
    loader=PackageLoader("core.emails", "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
)
