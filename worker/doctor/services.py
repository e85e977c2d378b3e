"""What users and their services need: sign-in, emails, outbound webhooks and event sources."""

from __future__ import annotations

import asyncio

from api.issuer_client import IssuerClient, IssuerUnavailableError
from core.emails.sender import EmailError
from worker.doctor.findings import DoctorFinding, error, not_checked, not_set, ok
from worker.doctor.inputs import DOCTOR_CALL_SECONDS, DoctorInputs
from worker.wiring.email import EMAIL_FOLDER_NAME, open_smtp


def check_sign_in(inputs: DoctorInputs) -> list[DoctorFinding]:
    """The discovery document and the keys of the OIDC service."""
    if inputs.api_settings is None:
        return [not_checked("sign_in_unread", "the settings of the API are not valid")]
    settings = inputs.api_settings.issuer
    if settings is None:
        return [not_set("sign_in_not_set", "none; the API accepts API keys only", "set OIDC_ISSUER and OIDC_AUDIENCE")]
    try:
        asyncio.run(IssuerClient(settings).fetch())
    except IssuerUnavailableError as found:
        consequence = "users cannot sign in, and their tokens get 503"
        return [error(f"sign_in_{found.problem}", found.message, consequence, found.advice)]
    return [ok("sign_in", f"{settings.issuer} responds and has keys for {settings.algorithm}")]


def check_emails(inputs: DoctorInputs) -> list[DoctorFinding]:
    """Connects, starts TLS and logs in; sends nothing."""
    settings = inputs.settings
    if settings.smtp_host is None:
        if settings.is_embedded:
            return [not_set("smtp_not_set", f"written to {settings.data_dir / EMAIL_FOLDER_NAME}", "set SMTP_HOST")]
        return [not_set("smtp_not_set", "emails stay queued", "set SMTP_HOST and MAIL_FROM")]
    try:
        with open_smtp(settings, settings.smtp_host, DOCTOR_CALL_SECONDS).connect():
            pass
    except EmailError as failed:
        advice = "correct SMTP_HOST, SMTP_PORT, SMTP_TLS, SMTP_USER or SMTP_PASSWORD; then `billing-sync doctor`"
        return [error("smtp_failed", f"{settings.smtp_host}: {failed}", "emails stay queued", advice)]
    return [ok("smtp", f"{settings.smtp_host} accepts a connection with SMTP_TLS={settings.smtp_tls}")]


def check_outbound_webhooks(inputs: DoctorInputs) -> list[DoctorFinding]:
    if inputs.settings.webhook_signing_secret is None:
        advice = "to use them: set WEBHOOK_SIGNING_SECRET to the output of `openssl rand -base64 32`"
        return [not_set("outbound_webhooks_not_set", "disabled: WEBHOOK_SIGNING_SECRET is not set", advice)]
    return [ok("outbound_webhooks", "WEBHOOK_SIGNING_SECRET is set")]


def check_event_sources(inputs: DoctorInputs) -> list[DoctorFinding]:
    allowed = inputs.settings.allowed_event_sources
    if allowed is None:
        message = "messages on the queue are accepted from every source, since EVENT_SOURCES_ALLOWED is not set"
        return [not_set("event_sources_not_set", message, "set EVENT_SOURCES_ALLOWED to the sources, comma-separated")]
    return [ok("event_sources", f"messages on the queue are accepted from {', '.join(sorted(allowed))}")]
