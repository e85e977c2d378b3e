"""Settings that contradict each other are refused with one sentence, and the values never stand in it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from worker.config.settings import Settings

PROVIDERS = {"stripe_api_base": "http://127.0.0.1:1", "lago_api_key": "key", "lago_api_url": "http://127.0.0.1:1"}
ORGANIZATION_KEY = "sk_org_live_nobody"


def refusal(**values: str) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({**PROVIDERS, "smtp_host": None, **values})
    return str(caught.value.errors(include_input=False)[0]["msg"])


def test_an_organization_key_needs_its_account() -> None:
    message = refusal(stripe_secret_key=ORGANIZATION_KEY)
    assert "STRIPE_CONTEXT" in message
    assert ORGANIZATION_KEY not in message
    settings = Settings.model_validate({**PROVIDERS, "stripe_secret_key": ORGANIZATION_KEY, "stripe_context": "acct_1"})
    assert settings.stripe_context == "acct_1"


def test_an_account_without_an_organization_key_is_refused() -> None:
    assert "remove it" in refusal(stripe_secret_key="sk_test_1", stripe_context="acct_1")


def test_a_digest_that_cannot_be_sent_is_refused() -> None:
    values = {"stripe_secret_key": "sk_test_1", "operations_email": "ops@acme.test"}
    assert "SMTP_HOST is missing" in refusal(**values, celery_broker_url="redis://127.0.0.1")
    assert Settings.model_validate({**PROVIDERS, **values}).operations_email == "ops@acme.test"


def test_several_signing_secrets_are_read_from_one_setting() -> None:
    settings = Settings.model_validate(
        {**PROVIDERS, "stripe_secret_key": "sk_test_1", "stripe_webhook_secret": "whsec_a, whsec_b"}
    )
    assert settings.stripe_webhook_secrets == ["whsec_a", "whsec_b"]


def test_no_repr_of_the_settings_shows_a_password() -> None:
    settings = Settings.model_validate(
        {
            "database_url": "postgresql://me:hush-1@db/acme",
            "redis_url": "redis://:hush-2@redis:6379/0",
            "celery_broker_url": "amqp://me:hush-3@rabbit//",
            "postgres_password": "hush-4",
            "smtp_password": "hush-5",
            "smtp_user": "me",
            "smtp_host": "smtp.acme.test",
            "mail_from": "a@acme.test",
        }
    )
    for shown in (repr(settings), str(settings), f"{settings.with_sandbox('http://127.0.0.1:1')}"):
        assert "hush" not in shown


def test_event_sources_are_all_allowed_until_some_are_named() -> None:
    settings = {**PROVIDERS, "stripe_secret_key": "sk_test_1"}
    assert Settings.model_validate(settings).allowed_event_sources is None
    named = Settings.model_validate({**settings, "event_sources_allowed": "/signup, /shop"})
    nothing = Settings.model_validate({**settings, "event_sources_allowed": ","})
    assert nothing.allowed_event_sources == frozenset()
    assert named.allowed_event_sources == frozenset({"/signup", "/shop"})
