"""Settings, read once by an entry point from the environment (and ``.env``), and closed by default.

Secrets live here only and never show in a repr. Neither biller has a default address: a run that names none talks to
its own sandbox on loopback, never to a live system.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from core.catalog.plans import ChargingProvider
from core.flow_control.rate_limiter import MIN_REQUESTS_PER_SECOND
from worker.config.email import EmailSettings

ENV_FILE = Path(".env")
IN_MEMORY_BROKER_URL = "memory://localhost"
MIN_SIGNING_SECRET_LENGTH = 32


class SettingsError(Exception):
    """A setting is missing or cannot be used; the message names it and what it wants, never its value."""


class Settings(EmailSettings):
    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        env_ignore_empty=True,  # NAME= says nothing, as in Compose
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    data_dir: Path = Field(default=Path("data"), description="Folder of the embedded database and sandbox.")
    database_url: str | None = Field(default=None, description="SQLite or Postgres; default: a file in DATA_DIR.")
    celery_broker_url: str | None = Field(default=None, description="redis:// or amqp://; default: REDIS_URL.")
    redis_url: str | None = Field(default=None, description="Used as the broker where CELERY_BROKER_URL is not set.")
    plans_file: Path = Field(default=Path("plans.toml"), description="The plan catalog.")
    charged_by: ChargingProvider | None = Field(
        default=None, description="Who charges; wins over the plan file's own word."
    )

    stripe_secret_key: SecretStr | None = Field(default=None, description="sk_… or rk_…; without it: the sandbox.")
    stripe_api_base: str | None = Field(default=None, description="https://api.stripe.com for live; no default.")
    stripe_webhook_secret: SecretStr | None = Field(default=None, description="whsec_… of the webhook endpoint.")
    stripe_days_until_due: int = Field(default=30, ge=1, le=365, description="Of invoices, where Stripe charges.")
    stripe_rate_limit: float | None = Field(
        default=None,
        ge=MIN_REQUESTS_PER_SECOND,
        description="Requests a second of the account; default: 100, 25 with a test key.",
    )
    stripe_operation_rate_limit: float = Field(
        default=25.0, ge=MIN_REQUESTS_PER_SECOND, description="Requests a second of one operation."
    )
    lago_api_url: str | None = Field(default=None, description="Lago's origin, without /api/v1; no default.")
    lago_api_key: SecretStr | None = Field(default=None, description="Key of one Lago organization.")
    lago_stripe_provider_code: str | None = Field(default=None, description="Lago's code of its Stripe connection.")
    lago_webhook_secret: SecretStr | None = Field(default=None, description="HMAC key of Lago's webhooks.")

    webhook_signing_secret: SecretStr | None = Field(
        default=None, description="Of it each subscriber's own secret is made; without it nobody is told by webhook."
    )
    webhook_allow_private: bool = Field(default=False, description="Subscribers may be on private networks.")

    lago_rate_limit: float = Field(
        default=50.0, ge=MIN_REQUESTS_PER_SECOND, description="Requests a second of the Lago organization."
    )

    worker_concurrency: int = Field(default=8, ge=1, le=64, description="Threads of one worker process.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="The least that is logged."
    )
    plan_every_hours: float | None = Field(
        default=None, gt=0, description="How often a comparison with the billers begins by itself; default: never."
    )
    log_format: Literal["console", "json"] = Field(default="console", description="json where a collector reads it.")

    postgres_host: str | None = Field(default=None, description="With POSTGRES_*, where DATABASE_URL is not set.")
    postgres_port: int = 5432
    postgres_user: str = "postgres"
    postgres_password: SecretStr | None = None
    postgres_db: str = "postgres"
    redis_host: str | None = Field(default=None, description="With REDIS_*, where REDIS_URL is not set.")
    redis_port: int = 6379
    redis_db: int = 0

    @field_validator("webhook_signing_secret")
    @classmethod
    def _check_signing_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value()) < MIN_SIGNING_SECRET_LENGTH:
            problem = (
                f"must be {MIN_SIGNING_SECRET_LENGTH} random characters or more; `openssl rand -base64 32` makes them"
            )
            raise ValueError(problem)
        return secret

    @model_validator(mode="after")
    def _check_providers_complete(self) -> Settings:
        pairs = {
            "STRIPE_SECRET_KEY": (self.stripe_secret_key, "STRIPE_API_BASE", self.stripe_api_base),
            "LAGO_API_KEY": (self.lago_api_key, "LAGO_API_URL", self.lago_api_url),
        }
        for key, (secret, address, url) in pairs.items():
            if (secret is None) != (url is None):
                missing = key if secret is None else address
                problem = (
                    f"{missing} is missing: {key} and {address} are set together, or both left out for the sandbox"
                )
                raise ValueError(problem)
        if (self.stripe_secret_key is None) != (self.lago_api_key is None):
            problem = "set both billers (STRIPE_* and LAGO_*), or neither for the sandbox"
            raise ValueError(problem)
        if self.lago_api_url is not None and "/api/v1" in self.lago_api_url:
            problem = "LAGO_API_URL must be the bare origin, without /api/v1"
            raise ValueError(problem)
        return self

    @property
    def database(self) -> str:
        if self.database_url:
            return self.database_url
        if self.postgres_host:
            password = f":{quote(self.postgres_password.get_secret_value(), safe='')}" if self.postgres_password else ""
            owner = f"{quote(self.postgres_user, safe='')}{password}"
            return f"postgresql://{owner}@{self.postgres_host}:{self.postgres_port}/{self.postgres_db}"
        return f"sqlite:///{self.data_dir / 'billing-sync.db'}"

    @property
    def broker(self) -> str:
        return self.celery_broker_url or self._configured_redis_url or IN_MEMORY_BROKER_URL

    @property
    def redis(self) -> str | None:
        """Where processes share the quota: the named Redis, else a broker that is one; None: there is none."""
        if self._configured_redis_url is None and self.broker.startswith(("redis://", "rediss://")):
            return self.broker
        return self._configured_redis_url

    @property
    def _configured_redis_url(self) -> str | None:
        if self.redis_url or not self.redis_host:
            return self.redis_url
        return f"redis://{self.redis_host}:{self.redis_port}/{self.redis_db}"

    @property
    def is_embedded(self) -> bool:
        """One process does everything; there is no broker to share work through."""
        return self.broker == IN_MEMORY_BROKER_URL

    @property
    def uses_sandbox(self) -> bool:
        return self.stripe_secret_key is None


def read() -> Settings:
    """Raises ``SettingsError`` with one sentence for each bad setting; no value is repeated."""
    _refuse_unreadable_lines()
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            _describe_error(list(map(str, part["loc"])), part["msg"]) for part in error.errors(include_input=False)
        ]
        raise SettingsError("; ".join(problems)) from None


def _refuse_unreadable_lines() -> None:
    """A line that the reader of the file skips would leave its setting at the default: another database, a sandbox."""
    if not ENV_FILE.is_file():
        return
    try:
        lines = list(parse_stream(io.StringIO(ENV_FILE.read_text(encoding="utf-8"))))
    except UnicodeDecodeError:
        message = f"{ENV_FILE} is not text in UTF-8: save it as such"
        raise SettingsError(message) from None
    unreadable = [
        str(each.original.line + _count_leading_blank_lines(each.original.string))
        for each in lines
        if each.error or (each.key is not None and each.value is None)
    ]
    if unreadable:
        message = f"{ENV_FILE} line {', '.join(unreadable)}: cannot be read; write NAME=value, a comment after #"
        raise SettingsError(message)


def _count_leading_blank_lines(part: str) -> int:
    """The reader counts blank lines to what follows them."""
    return part[: len(part) - len(part.lstrip())].count("\n")


def _describe_error(where: list[str], problem: str) -> str:
    problem = problem.removeprefix("Value error, ")
    return f"{where[0].upper()}: {problem}" if where else problem
