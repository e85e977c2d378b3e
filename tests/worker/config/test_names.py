"""A misspelt setting is named with the one that was meant, and no ordinary variable of a container is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import console
from worker.config import names
from worker.config.api import ApiSettings

# Of Kubernetes, Docker, Heroku, Vercel, Railway, Render, Fly, systemd, GitHub Actions, Lago, and of programs that use
# Stripe.
ORDINARY = """
PATH HOME HOSTNAME LANG LC_ALL PWD SHLVL TERM TZ USER SHELL PORT HOST DEBUG PYTHONPATH
PYTHONUNBUFFERED PIP_NO_CACHE KUBERNETES_SERVICE_HOST KUBERNETES_SERVICE_PORT
KUBERNETES_PORT_443_TCP REDIS_PORT_6379_TCP_ADDR POSTGRES_SERVICE_HOST DYNO REDIS_TLS_URL
DATABASE_CONNECTION_POOL_URL RAILWAY_ENVIRONMENT REDISHOST REDISPORT REDISUSER REDISPASSWORD PGHOST
PGPORT PGUSER PGPASSWORD PGDATABASE DATABASE_PUBLIC_URL DATABASE_PRIVATE_URL RENDER FLY_APP_NAME
INVOCATION_ID JOURNAL_STREAM NOTIFY_SOCKET GITHUB_ACTIONS CI RUNNER_TEMP SECRET_KEY
DJANGO_SETTINGS_MODULE POSTGRES_INITDB_ARGS POSTGRES_HOST_AUTH_METHOD RABBITMQ_DEFAULT_USER
HTTP_PROXY NO_PROXY SSL_CERT_FILE SSL_CERT_DIR CELERY_RESULT_BACKEND FLOWER_PORT SENTRY_DSN
OTEL_SERVICE_NAME LOG_FILE METRICS_PATH API_KEY STRIPE_PUBLISHABLE_KEY STRIPE_SUCCESS_URL
STRIPE_CANCEL_URL STRIPE_LIVE_SECRET_KEY STRIPE_TEST_SECRET_KEY LAGO_FRONT_URL LAGO_RSA_PRIVATE_KEY
LAGO_SIDEKIQ_WEB LAGO_DISABLE_SIGNUP POSTGRES_URL POSTGRES_URI DATABASE_URI REDIS_URI DATABASE_URL_1
DATABASE_URL2 POSTGRES_HOST2 REDIS_DB1 PGDATA_DIR EMAIL_FROM LAGO_APP_URL LAGO_API_URL_2 APP_PUBLIC_URL
POSTGRES_USERNAME POSTGRES_PASS POSTGRES_DATABASE POSTGRES_URL_NON_POOLING POSTGRES_PRISMA_URL
SMTP_SERVER SMTP_SECURE SMTP_USERNAME
"""
MEANT = {
    "DATABSE_URL": "DATABASE_URL",
    "database_ulr": "DATABASE_URL",
    "REDIS_UR": "REDIS_URL",
    "REDIS_UTL": "REDIS_URL",
    "POSTGRES_PASWORD": "POSTGRES_PASSWORD",
    "STRIPE_SECRETKEY": "STRIPE_SECRET_KEY",
    "CELERY_BROKER_URLS": "CELERY_BROKER_URL",
    "STRIPE_SECRT_KEY": "STRIPE_SECRET_KEY",
    "OIDC_ISSUR": "OIDC_ISSUER",
    "WORKER_CONCURENCY": "WORKER_CONCURRENCY",
}
COMMANDS = ("worker", "relay", "beat", "api", "flower", "up", "status", "orgs")


def test_the_settings_of_the_api_are_known_without_importing_them() -> None:
    assert {name.upper() for name in ApiSettings.model_fields} == names.API_SETTINGS


def test_each_misspelt_name_is_named_and_no_ordinary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*ORDINARY.split(), *MEANT):
        monkeypatch.setenv(name, "x")
    assert {typo.name: typo.meant for typo in names.typos()} == MEANT


@pytest.mark.processes
@pytest.mark.parametrize("command", COMMANDS)
def test_every_process_says_so_before_it_works(tmp_path: Path, command: str) -> None:
    folder = console.prepare(tmp_path)
    (folder / ".env").write_text("REDSI_URL=redis://127.0.0.1:9\n")
    # The wrong LOG_LEVEL ends each of them.
    ended = console.run(folder, command, settings={"DATABSE_URL": "sqlite:///a.db", "LOG_LEVEL": "wrong"})
    says = "is no setting, so nothing reads it; the nearest one is"
    assert ended.stderr.splitlines()[:2] == [
        f"billing-sync: DATABSE_URL in the environment {says} DATABASE_URL",
        f"billing-sync: REDSI_URL in .env {says} REDIS_URL",
    ]
    assert ended.returncode == 2
