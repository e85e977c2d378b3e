"""Mails over SMTP to a real server: what each answer means, certificates, logins, and an end to every wait."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from pathlib import Path
from typing import get_args

import pytest

from core.db.models.email import EmailKind
from core.emails import templates
from core.emails.sender import EmailDeferredError, EmailError, EmailRejectedError, EmailServerUnavailableError
from core.emails.templates import TemplateContext
from providers.emails.folder import EmailFolder
from providers.emails.smtp import SmtpConfig, SmtpTransport, TlsMode
from tests.support.certificates import self_signed
from tests.support.smtp_server import LOGIN, SmtpServer, knows_the_login, page, silent_server, smtp_server, text

SENDER = Address("Billing", addr_spec="billing@acme.test")


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with smtp_server() as running:
        yield running


def email_message(organization: str = "Acme", recipient: str = "alice@acme.test") -> EmailMessage:
    facts = TemplateContext(organization=organization, plan="Starter")
    message = templates.render("welcome", facts, sender=SENDER, recipient=recipient, message_id="<welcome.1@acme.test>")
    return templates.set_date(message, datetime(2026, 11, 23, 12, tzinfo=UTC))


def connection(
    port: int, tls: TlsMode = "none", login: tuple[str, str] | None = None, seconds: float = 10.0
) -> SmtpTransport:
    return SmtpTransport(
        SmtpConfig(host="127.0.0.1", port=port, tls=tls, login=login), connect_seconds=seconds, send_seconds=seconds
    )


def send(smtp: SmtpTransport, *messages: EmailMessage) -> None:
    with smtp.connect() as line:
        for message in messages:
            line.send(message)


def test_a_mail_arrives_with_text_page_and_the_headers_that_matter(server: SmtpServer) -> None:
    send(connection(server.port), email_message("Sönke & <b>Söhne"))
    [email] = server.accepted
    assert email["Subject"] == "Your organization is set up"
    assert (email["From"], email["To"]) == ("Billing <billing@acme.test>", "alice@acme.test")
    assert (email["Message-ID"], email["Date"]) == ("<welcome.1@acme.test>", "Mon, 23 Nov 2026 12:00:00 +0000")
    assert email["Auto-Submitted"] == "auto-generated"
    assert "\u201cSönke & <b>Söhne\u201d" in text(email)
    assert "Sönke &amp; &lt;b&gt;Söhne" in page(email)
    assert "<b>" not in page(email)
    assert server.senders == ["billing@acme.test"]


@pytest.mark.parametrize("ending", ["\r\n", "\n", "\r", "\u2028", "\u0085", "\x0b"])
def test_a_name_with_line_ends_begins_no_header_and_no_paragraph(server: SmtpServer, ending: str) -> None:
    send(connection(server.port), email_message(f"Acme{ending}Bcc: eve@evil.test{ending}{ending}Pay here"))
    [email] = server.accepted
    assert email["Bcc"] is None
    assert email["Subject"] == "Your organization is set up"
    assert "\nBcc" not in text(email)
    assert len(email.get_all("To", [])) == 1


@pytest.mark.parametrize(
    "name",
    [
        "=?utf-8?q?Acme=0D=0ABcc:_eve@evil.test=0D=0A=0D=0APay_here?=",
        "Acme=?utf-8?b?DQpCY2M6IGV2ZUBldmlsLnRlc3Q=?=",
        "==??utf-8?q?Acme=0ABcc:_eve@evil.test?=",
    ],
)
def test_a_name_in_the_code_of_headers_stays_a_name_and_begins_no_header(server: SmtpServer, name: str) -> None:
    send(connection(server.port), email_message(name))
    [email] = server.accepted
    assert set(email.keys()) >= {"Subject", "To", "Auto-Submitted", "Content-Type"}
    assert email["Bcc"] is None
    assert "Bcc" in text(email) or "DQpCY2M6" in text(email)


def test_many_mails_go_through_one_connection(server: SmtpServer) -> None:
    send(connection(server.port), *[email_message(recipient=f"u{number}@acme.test") for number in range(5)])
    assert (len(server.accepted), server.connections) == (5, 1)


@pytest.mark.parametrize(
    ("queue", "answer", "kind"),
    [
        ("rcpt", "550 5.1.1 <alice@acme.test> is nobody here", EmailRejectedError),
        ("rcpt", "450 4.2.1 <alice@acme.test> is busy", EmailDeferredError),
        ("data", "554 5.7.1 Acme is spam", EmailRejectedError),
        ("data", "451 4.3.0 later", EmailDeferredError),
        ("data", "421 4.3.2 closing", EmailServerUnavailableError),
    ],
)
def test_a_refusal_is_named_by_its_codes_alone(
    server: SmtpServer, queue: str, answer: str, kind: type[EmailError]
) -> None:
    getattr(server, queue).append(answer)
    with pytest.raises(kind) as caught:
        send(connection(server.port), email_message())
    assert answer[:9] in caught.value.reason
    for private in ("alice", "Acme", "nobody", "spam"):
        assert private not in caught.value.reason
    assert server.accepted == []


def test_after_a_refusal_the_next_mail_goes_through(server: SmtpServer) -> None:
    server.rcpt.append("550 5.1.1 nobody")
    with connection(server.port).connect() as line:
        with pytest.raises(EmailRejectedError):
            line.send(email_message(recipient="nobody@acme.test"))
        line.send(email_message())
    assert [email["To"] for email in server.accepted] == ["alice@acme.test"]


def test_a_connection_that_breaks_after_the_mail_leaves_it_open_whether_it_was_taken(server: SmtpServer) -> None:
    server.hang_up = 1
    with connection(server.port).connect() as line:
        with pytest.raises(EmailDeferredError, match="lost before the SMTP server accepted"):
            line.send(email_message())
        with pytest.raises(EmailServerUnavailableError, match="closed the connection"):
            line.send(email_message())
    assert len(server.received) == 1


def test_a_server_that_is_not_there_is_away() -> None:
    with pytest.raises(EmailServerUnavailableError, match="ConnectionRefusedError"):
        send(connection(1), email_message())


def test_a_server_that_drips_is_left_in_time() -> None:
    with silent_server() as port:
        began = time.monotonic()
        with pytest.raises(EmailServerUnavailableError, match="did not respond"):
            send(connection(port, seconds=1.0), email_message())
        assert time.monotonic() - began < 10.0  # it would drip until the end of the test


@pytest.fixture
def certificates(tmp_path: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate of 127.0.0.1 that signed itself, as a file and as a server's context."""
    return self_signed(tmp_path)


# aiosmtpd takes TLS from the first byte on for none.
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_mails_go_through_tls_with_a_login_to_a_server_that_is_trusted(
    certificates: tuple[Path, ssl.SSLContext], tls: TlsMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, context = certificates
    begun = {"tls": context} if tls == "tls" else {"tls_context": context, "require_starttls": True}
    with smtp_server(
        authenticator=knows_the_login, auth_required=True, auth_require_tls=tls == "starttls", **begun
    ) as server:
        with pytest.raises(EmailServerUnavailableError, match="certificate of the SMTP server is not valid"):
            send(connection(server.port, tls, LOGIN), email_message())
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with pytest.raises(
            EmailServerUnavailableError, match=r"rejects SMTP_USER and SMTP_PASSWORD \(535 5\.7\.8\)"
        ) as caught:
            send(connection(server.port, tls, ("billing", "another password")), email_message())
        assert "password" not in caught.value.reason.replace("SMTP_PASSWORD", "")
        send(connection(server.port, tls, LOGIN), email_message())
        assert len(server.accepted) == 1


def test_without_starttls_nothing_is_said_in_clear(server: SmtpServer) -> None:
    with pytest.raises(EmailServerUnavailableError, match="SMTP_TLS"):
        send(connection(server.port, "starttls", LOGIN), email_message())
    assert server.received == []


def test_a_folder_takes_mails_as_files_and_the_same_one_once(tmp_path: Path) -> None:
    with EmailFolder(tmp_path / "emails").connect() as line:
        line.send(email_message("First"))
        line.send(email_message("Second"))
    [file] = (tmp_path / "emails").iterdir()
    assert file.name == "welcome.1.eml"
    assert "Second" in file.read_text()


@pytest.mark.parametrize("date", [None, datetime(2026, 11, 30, tzinfo=UTC)])
def test_a_reader_who_only_gets_the_bills_is_not_told_to_change_the_plan(date: datetime | None) -> None:
    facts = TemplateContext(organization="Acme", plan="Starter", former_plan="Professional", date=date)
    for kind in (each for each in get_args(EmailKind) if each != "invitation"):
        message = templates.render(kind, facts, sender=SENDER, recipient="pay@acme.test", message_id="<1@acme.test>")
        words = " ".join(text(message).split())
        assert not re.search(r"\byou can\b|\bAs its owner\b", words, re.IGNORECASE), kind
        assert ("can cancel this change before" in words) == (kind == "downgrade_scheduled")
