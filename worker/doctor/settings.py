"""Settings: names that nothing reads, keys of the wrong form, secrets that can be guessed, keys sent unencrypted."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from core.common.hosts import LOOPBACK_HOSTS, is_remote
from worker.config import names
from worker.config.names import UnknownName
from worker.config.settings import ENV_FILE, Settings
from worker.doctor.findings import DoctorFinding, error, not_set, ok, warning
from worker.doctor.inputs import DoctorInputs

MIN_SECRET_LENGTH: Final = 16
MIN_DIFFERENT_CHARACTERS: Final = 8


def check(inputs: DoctorInputs) -> Iterator[DoctorFinding]:
    """At least one finding."""
    found = [
        *(_unknown_name(each) for each in names.unknown_names()),
        *_wrong_keys(inputs.settings),
        *_weak_secrets(inputs.settings),
        *_unencrypted(inputs.settings),
        *_readable_file(),
        *_weak_tls(inputs.settings),
    ]
    yield from found or [ok("settings", f"{names.count_set()} set, the others are at their defaults")]


def invalid(message: str) -> list[DoctorFinding]:
    """The findings if the settings cannot be read at all; ``message`` has a sentence for each, joined by "; "."""
    unknown = [_unknown_name(each) for each in names.unknown_names()]
    advice = f"correct it in {ENV_FILE} or in the environment, then `billing-sync doctor`"
    return [*unknown, error("setting_invalid", message, "no process and no other command starts", advice)]


def _unknown_name(unknown: UnknownName) -> DoctorFinding:
    """A name that is surely misspelt is a warning; any other may be of another program, and is only said."""
    message = f"{unknown.name} is no setting"
    if unknown.is_typo:
        advice = f"rename it to {unknown.meant} in {unknown.place}, or remove it"
        return warning("unknown_setting", message, "nothing reads its value", advice)
    if unknown.meant is None:
        advice = f"remove it from {unknown.place}, unless another program reads it"
    else:
        message += f", the nearest one is {unknown.meant}"
        advice = f"rename it to {unknown.meant} in {unknown.place}, unless another program reads it"
    return not_set("unknown_setting", message, advice)


def _wrong_keys(settings: Settings) -> Iterator[DoctorFinding]:
    key = _text(settings.stripe_secret_key)
    if key.startswith("pk_"):
        yield error(
            "publishable_key",
            "STRIPE_SECRET_KEY is a publishable key (pk_…)",
            "Stripe rejects each request",
            "set STRIPE_SECRET_KEY to a secret (sk_…) or restricted (rk_…) key of the dashboard",
        )
    if not all(secret.startswith("whsec_") for secret in settings.stripe_webhook_secrets):
        yield error(
            "wrong_webhook_secret",
            "STRIPE_WEBHOOK_SECRET has a part that does not begin with whsec_",
            "each of Stripe's webhooks is refused with 401",
            "set STRIPE_WEBHOOK_SECRET to the endpoint's signing secret, whsec_…, from Stripe's dashboard",
        )


def _weak_secrets(settings: Settings) -> Iterator[DoctorFinding]:
    host = settings.postgres_host or ""
    secrets = {
        "WEBHOOK_SIGNING_SECRET": settings.webhook_signing_secret,
        "LAGO_WEBHOOK_SECRET": settings.lago_webhook_secret,
        "POSTGRES_PASSWORD": settings.postgres_password if host not in LOOPBACK_HOSTS and host else None,
    }
    for name, secret in secrets.items():
        if secret is not None and _is_weak(secret.get_secret_value()):
            yield warning(
                "weak_secret",
                f"{name} is short, or has few different characters",
                "who guesses it can send what we accept, or read what we store",
                f"create another one with `openssl rand -base64 32`, and set {name} for every process",
            )


def _is_weak(secret: str) -> bool:
    return len(secret) < MIN_SECRET_LENGTH or len(set(secret)) < MIN_DIFFERENT_CHARACTERS


def _unencrypted(settings: Settings) -> Iterator[DoctorFinding]:
    for name, url in (("STRIPE_API_BASE", settings.stripe_api_base), ("LAGO_API_URL", settings.lago_api_url)):
        parts = urlsplit(url or "https://none")
        if parts.scheme == "http" and is_remote(parts.hostname):
            yield error(
                "unencrypted_key",
                f"{name} begins with http:// and names another machine",
                "the API key crosses the network unencrypted",
                f"set {name} to the https:// address",
            )


def _readable_file() -> Iterator[DoctorFinding]:
    if ENV_FILE.is_file() and ENV_FILE.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        yield warning(
            "env_file_readable",
            f"every user of this machine can read {ENV_FILE}",
            "it has the API keys",
            f"`chmod 600 {ENV_FILE}`",
        )


def _weak_tls(settings: Settings) -> Iterator[DoctorFinding]:
    for name, weakness in settings.weak_tls.items():
        yield warning(
            "weak_tls",
            f"{name}: {weakness}",
            "who is between both machines can read and change what is sent",
            f"remove that word from {name}, and name the file of the authority's certificate if it is your own",
        )


def _text(secret: SecretStr | None) -> str:
    return "" if secret is None else secret.get_secret_value()
