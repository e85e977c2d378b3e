"""Settings of emails: the SMTP server, the sender address, and the page that accepts invitations."""

from __future__ import annotations

from email.utils import parseaddr
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator

from core.common.email_addresses import is_mailable
from core.common.hosts import LOOPBACK_HOSTS
from worker.config.values import CleanedSettings

TlsMode = Literal["starttls", "tls", "none"]

INVITATION_URL_TOKEN: Final = "{token}"  # noqa: S105 - a placeholder


class EmailSettings(CleanedSettings):
    smtp_host: str | None = Field(default=None, description="SMTP server; requires MAIL_FROM.")
    smtp_port: int | None = Field(default=None, ge=1, le=65_535, description="Default: 587, 465 or 25, by SMTP_TLS.")
    smtp_user: str | None = Field(default=None, description="SMTP user; requires SMTP_PASSWORD.")
    smtp_password: SecretStr | None = Field(default=None, description="SMTP password; requires SMTP_USER.")
    smtp_tls: TlsMode = Field(default="starttls", description="starttls, tls (implicit TLS) or none.")
    mail_from: str | None = Field(default=None, description="Sender: Name <address>, or an address.")
    invitation_url: str | None = Field(
        default=None, description="URL of the page that accepts invitations; must contain {token}."
    )

    operations_email: str | None = Field(
        default=None,
        description="Address that is told at most once an hour what newly needs an operator; default: nobody.",
    )

    @field_validator("operations_email")
    @classmethod
    def _check_operations_address(cls, address: str | None) -> str | None:
        if address is not None and not is_mailable(address):
            problem = "must be one address, without a name"
            raise ValueError(problem)
        return address

    @field_validator("mail_from")
    @classmethod
    def _check_sender_address(cls, address: str | None) -> str | None:
        if address is not None and not is_mailable(parseaddr(address)[1]):
            problem = "must be an address, or Name <address>"
            raise ValueError(problem)
        return address

    @field_validator("invitation_url")
    @classmethod
    def _check_invitation_url(cls, url: str | None) -> str | None:
        parts = urlsplit(url or f"https://none/{INVITATION_URL_TOKEN}")
        if INVITATION_URL_TOKEN not in (url or INVITATION_URL_TOKEN) or not (
            parts.scheme == "https" or parts.hostname in LOOPBACK_HOSTS
        ):
            problem = f"must be an https:// address with {INVITATION_URL_TOKEN} in it (http:// only on this machine)"
            raise ValueError(problem)
        return url

    @model_validator(mode="after")
    def _check_smtp_settings_complete(self) -> EmailSettings:
        for one, other in (("smtp_host", "mail_from"), ("smtp_user", "smtp_password")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                problem = f"{one.upper()} and {other.upper()} must be set together or both omitted"
                raise ValueError(problem)
        if self.smtp_user is not None and self.smtp_host is None:
            problem = "SMTP_USER is set but SMTP_HOST is missing"
            raise ValueError(problem)
        if self.smtp_user is not None and self.smtp_tls == "none" and self.smtp_host not in LOOPBACK_HOSTS:
            problem = "SMTP_TLS is none: SMTP_PASSWORD would be sent unencrypted to another machine"
            raise ValueError(problem)
        return self
