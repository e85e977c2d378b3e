"""The mail server is named whole or not at all, and no password goes out for everybody to read."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from worker.config.settings import Settings, SettingsError, read

WHOLE = {"SMTP_HOST": "smtp.acme.test", "MAIL_FROM": "Billing <billing@acme.test>"}
LOGIN = {"SMTP_USER": "billing", "SMTP_PASSWORD": "nobody may read this"}


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


def settings(named: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        named.setenv(name, value)
    return read()


def test_without_any_there_is_no_mail_server(named: pytest.MonkeyPatch) -> None:
    assert settings(named).smtp_host is None


def test_a_server_with_a_login_is_reached_by_starttls_unless_told_otherwise(named: pytest.MonkeyPatch) -> None:
    found = settings(named, **WHOLE, **LOGIN)
    assert (found.smtp_tls, found.smtp_password) == ("starttls", SecretStr(LOGIN["SMTP_PASSWORD"]))
    assert LOGIN["SMTP_PASSWORD"] not in repr(found)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"SMTP_HOST": "smtp.acme.test"}, "SMTP_HOST and MAIL_FROM must be set together"),
        ({"MAIL_FROM": "billing@acme.test"}, "SMTP_HOST and MAIL_FROM must be set together"),
        ({**WHOLE, "SMTP_USER": "billing"}, "SMTP_USER and SMTP_PASSWORD must be set together"),
        (LOGIN, "SMTP_HOST is missing"),
        ({**WHOLE, **LOGIN, "SMTP_TLS": "none"}, "would be sent unencrypted"),
        ({**WHOLE, "SMTP_TLS": "ssl"}, "SMTP_TLS"),
        ({**WHOLE, "SMTP_PORT": "0"}, "SMTP_PORT"),
        ({**WHOLE, "MAIL_FROM": "Billing"}, "MAIL_FROM: must be an address"),
        ({"INVITATION_URL": "https://app.test/join"}, "INVITATION_URL: must be an https:// address with {token}"),
        ({"INVITATION_URL": "http://app.test/join#{token}"}, "INVITATION_URL: must be an https://"),
    ],
)
def test_what_is_named_by_halves_or_wrongly_is_refused_by_name(
    named: pytest.MonkeyPatch, values: dict[str, str], sentence: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(named, **values)
    assert sentence in str(caught.value)
    assert LOGIN["SMTP_PASSWORD"] not in str(caught.value)


def test_on_this_machine_a_password_needs_no_tls(named: pytest.MonkeyPatch) -> None:
    local = {**WHOLE, **LOGIN, "SMTP_HOST": "127.0.0.1", "SMTP_TLS": "none", "SMTP_PORT": "2525"}
    assert settings(named, **local).smtp_port == 2525
