"""What a mail says: a text and an HTML part from one template of plain sentences.

What other people chose (an organization's name, a person's) is brought to one line first, so that it can neither begin
a header nor a paragraph, and is escaped in HTML.
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

from core.db.models.email import MailKind
from core.db.models.organizations import Role

_LINE: Final = 76
# Without letters beyond ASCII on the wire: not every server on the way takes those.
_POLICY: Final = SMTP_POLICY.clone(cte_type="7bit")
# Line and paragraph separators, controls, and what turns the direction of the text behind it.
_UNSEEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_ROLES: Final[dict[Role, str]] = {"owner": "an owner", "billing_admin": "a billing admin", "member": "a member"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the sentences need; which of them depends on the kind. ``token`` opens an invitation, ``link`` holds it."""

    organization: str
    reader: str | None = None
    plan: str | None = None
    former_plan: str | None = None
    moment: datetime | None = None
    role: Role | None = None
    inviter: str | None = None
    token: str | None = None
    link: str | None = None


def one_line(text: str) -> str:
    plain = "".join(
        " " if unicodedata.category(letter) in _UNSEEN else letter for letter in text if letter not in _TURNING
    )
    return " ".join(plain.split())


def write(kind: MailKind, facts: Facts, *, sender: Address, recipient: str, message_id: str) -> EmailMessage:
    """The message without its date. ``recipient`` as ``email_addresses`` asks; ``message_id`` stays at each try."""
    subject, paragraphs = _said(kind, facts)
    message = EmailMessage(policy=_POLICY)
    message["From"] = sender
    message["To"] = Address(addr_spec=recipient)
    message["Subject"] = _literal(subject)
    message["Message-ID"] = message_id
    # Nobody's holiday notice answers it.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_text(paragraphs, facts))
    page = _TEMPLATES.get_template("letter.html").render(
        subject=subject, paragraphs=paragraphs, link=facts.link, code=None if facts.link else facts.token
    )
    message.add_alternative(page, subtype="html")
    return message


def dated(message: EmailMessage, now: datetime) -> EmailMessage:
    message["Date"] = format_datetime(now.astimezone(UTC))
    return message


def _literal(subject: str) -> str:
    """Code in a header ("=?…?=") is read where it stands, line ends and all, when the header is set: none is left."""
    return subject.replace("=?", "= ?")


def _said(kind: MailKind, facts: Facts) -> tuple[str, list[str]]:
    """The template's first line and its paragraphs."""
    words = {
        "organization": one_line(facts.organization),
        "reader": one_line(facts.reader or ""),
        "plan": one_line(facts.plan or ""),
        "former_plan": one_line(facts.former_plan or ""),
        "day": f"{facts.moment.astimezone(UTC):%d %B %Y}".lstrip("0") if facts.moment else "",
        "role": _ROLES[facts.role] if facts.role else "",
        "inviter": one_line(facts.inviter or ""),
        "by_link": facts.link is not None,
    }
    blocks = map(one_line, re.split(r"\n\s*\n", _TEMPLATES.get_template(f"{kind}.txt").render(words)))
    subject, *paragraphs = filter(None, blocks)
    return subject, paragraphs


def _text(paragraphs: list[str], facts: Facts) -> str:
    """Links and codes stand on a line of their own, never broken."""
    blocks = [
        textwrap.fill(paragraph, _LINE, break_long_words=False, break_on_hyphens=False) for paragraph in paragraphs
    ]
    opening = facts.link or facts.token
    return "\n\n".join([*blocks, f"    {opening}"] if opening else blocks) + "\n"


_TEMPLATES: Final = Environment(
    loader=PackageLoader("core.emails", "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
)
