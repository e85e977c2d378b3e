"""Settings, read once by an entry point from the environment and from ``.env``.

Secrets exist only here, and no repr shows them. Neither provider has a default URL: a process without provider settings
uses its own sandbox on loopback, never a live system.
"""

from __future__ import annotations

import io
import re
import secrets
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote, urlsplit

from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from core.backup import backups
from core.catalog.plans import ChargingProvider, default_file
from core.db import database_url
from core.db.models.organizations import Management
from core.flow_control.payment_brake import PaymentLimit
from core.flow_control.rate_limiter import MIN_REQUESTS_PER_SECOND
from worker.config import server_urls
from worker.config.email import EmailSettings
from worker.config.server_urls import BROKER_SCHEMES, CACHE_SCHEMES, REDIS_SCHEMES

ENV_FILE = Path(".env")
ENV_FILE_ENCODING: Final = "utf-8-sig"  # an editor of Windows begins the file with a byte order mark
IN_MEMORY_BROKER_URL = "memory://localhost"
# A real Lago knows no such key. The Compose file has it, too.
SANDBOX_LAGO_KEY = "sandbox"
MIN_SIGNING_SECRET_LENGTH = 32


# Lago's own rules: link needs card, and customer_balance stands alone (lago.md 3.5).
LAGO_PAYMENT_METHODS: Final = (
    *("card", "sepa_debit", "us_bank_account", "bacs_debit", "boleto", "link", "crypto", "customer_balance"),
)


class SettingsError(Exception):
    """A setting is missing or invalid. The message names it and what is valid, never its value."""


class Settings(EmailSettings):
    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding=ENV_FILE_ENCODING,
        env_ignore_empty=True,  # NAME= counts as not set, as in Compose
        extra="ignore",
        frozen=True,
        populate_by_name=True,
    )

    data_dir: Path = Field(default=Path("data"), description="Folder of the embedded database and sandbox.")
    database_url: str | None = Field(
        default=None,
        repr=False,
        description="SQLite or Postgres, several hosts too; default: a file in DATA_DIR. sslmode=require (or "
        "PGSSLMODE) verifies the certificate and the host, with sslrootcert=FILE for an authority of your own.",
    )
    database_direct_url: str | None = Field(
        default=None,
        repr=False,
        description="The same Postgres without a pooler, if DATABASE_URL leads to one such as PgBouncer: the relay is "
        "notified there, and `db upgrade` runs there; default: the relay asks every 0.2 s.",
    )
    celery_broker_url: str | None = Field(
        default=None,
        repr=False,
        description="redis:// or amqp://, with TLS rediss:// or amqps://, which are verified; default: REDIS_URL.",
    )
    redis_url: str | None = Field(
        default=None,
        repr=False,
        description="Redis for shared rate limits; also the broker if CELERY_BROKER_URL is not set. rediss:// is TLS, "
        "which is verified; ssl_ca_certs=FILE names an authority of your own.",
    )
    plans_file: Path | None = Field(
        default=None,
        description="The plan catalog; default: plans.toml in the working folder. Only with the sandbox may both be "
        "missing: then it is the packaged one.",
    )
    charged_by: ChargingProvider | None = Field(
        default=None,
        description="Charging provider of plans without a `charged_by` of their own; overrides the catalog's default.",
    )

    management: Management = Field(
        default="manage",
        description="observe: everything is read and compared, and nothing is written at a provider. An organization's "
        "own mode wins (`billing-sync management`).",
    )

    money_changes_per_hour: str = Field(
        default="50 or 2%",
        description="Changes of what organizations pay that are sent within an hour: a number, or a share of all "
        "links as well, whichever is more, or `off`. Beyond it changes are on hold (`billing-sync brake`).",
    )

    unique_organization_names: bool = Field(
        default=True,
        description="Whether a name that another organization has is refused. The refusal tells strangers who is a "
        "customer.",
    )

    stripe_secret_key: SecretStr | None = Field(
        default=None, description="sk_… or rk_…; if unset, the sandbox is used."
    )
    stripe_context: str | None = Field(
        default=None, description="acct_… of the account, with an organization key (sk_org_…) only."
    )
    stripe_api_base: str | None = Field(
        default=None, description="https://api.stripe.com for live, without /v1; no default."
    )
    stripe_webhook_secret: SecretStr | None = Field(
        default=None,
        description="whsec_… of the webhook endpoint; several with commas between them, while one is rotated.",
    )
    stripe_collection_method: Literal["send_invoice", "charge_automatically"] = Field(
        default="send_invoice",
        description="How Stripe collects from new subscriptions: it mails invoices, which needs an email address, or "
        "charges the customer's default payment method. Existing subscriptions keep their method.",
    )
    stripe_days_until_due: int = Field(
        default=30, ge=1, le=365, description="Days until invoices are due, where Stripe charges."
    )
    stripe_rate_limit: float | None = Field(
        default=None,
        ge=MIN_REQUESTS_PER_SECOND,
        description="Requests per second of the account; default: 100, or 25 with a test key.",
    )
    stripe_operation_rate_limit: float = Field(
        default=25.0, ge=MIN_REQUESTS_PER_SECOND, description="Requests per second of one operation."
    )
    lago_api_url: str | None = Field(default=None, description="Lago's origin, without /api/v1; no default.")
    lago_api_key: SecretStr | None = Field(default=None, description="Key of one Lago organization.")
    lago_stripe_provider_code: str | None = Field(
        default=None,
        description="Lago's code of its Stripe connection; required where Lago charges, unless LAGO_MANUAL_PAYMENTS.",
    )
    lago_payment_methods: str | None = Field(
        default=None,
        description="Comma-separated payment methods of a customer that is linked in Lago for the first time: "
        f"{', '.join(LAGO_PAYMENT_METHODS)}; default: card.",
    )
    lago_billing_entity_code: str | None = Field(
        default=None, description="Lago's code of the billing entity of new customers; default: Lago's default entity."
    )
    lago_manual_payments: bool = Field(
        default=False, description="Lago's invoices are paid outside, for example by bank transfer: it charges nobody."
    )
    lago_webhook_secret: SecretStr | None = Field(default=None, description="HMAC key of Lago's webhooks.")

    webhook_signing_secret: SecretStr | None = Field(
        default=None,
        description="Master secret from which each endpoint's signing secret is derived. Outbound webhooks are "
        "disabled without it.",
    )
    webhook_allow_private: bool = Field(default=False, description="Allow webhook endpoints on private networks.")

    event_sources_allowed: str | None = Field(
        default=None,
        description="Comma-separated sources from which messages on the queue are accepted; default: all.",
    )

    lago_rate_limit: float = Field(
        default=50.0, ge=MIN_REQUESTS_PER_SECOND, description="Requests per second of the Lago organization."
    )

    worker_concurrency: int = Field(default=8, ge=1, le=64, description="Threads of one worker process.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Minimum log level.")
    plan_every_hours: float | None = Field(
        default=None, gt=0, description="Hours between automatic drift checks; default: never."
    )
    lago_check_every_hours: float = Field(
        default=24.0,
        gt=0,
        description="Hours within which each link in Lago, and each observed one, is read, also if no webhook came.",
    )
    backup_dir: Path | None = Field(
        default=None,
        description="Folder of the backups; default: `backups` in DATA_DIR. If it is set, a worker takes a backup "
        "every BACKUP_EVERY_HOURS, so every worker needs this folder.",
    )
    backup_every_hours: float = Field(default=24.0, gt=0, description="Hours between two backups, with BACKUP_DIR.")
    backup_keep: str = Field(
        default="30d", description="Age at which a backup is deleted once a newer one was checked: 30d, 36h or 8w."
    )
    history_retention_days: int = Field(
        default=730, ge=1, le=36_500, description="Days for which `billing-sync history` keeps what was sent."
    )
    celery_remote_control: bool = Field(
        default=False,
        description="Workers and beat obey the commands of `celery inspect`, `celery control` and Flower's pages of a "
        "worker. Whoever can write into the broker can then stop them.",
    )
    flower_basic_auth: SecretStr | None = Field(
        default=None,
        description="user:password of Flower; default: `billing-sync flower` makes up a password and prints it.",
    )
    log_format: Literal["console", "json"] = Field(default="console", description="json for log collectors.")

    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65_535,
        description="Port on which worker, relay, beat and `up` serve the metrics of their process; default: none. "
        "Each process of one machine needs its own.",
    )
    metrics_host: str = Field(
        default="127.0.0.1",
        description="Address of METRICS_PORT. Nothing protects it: set another one only in a network of your own, as "
        "between containers.",
    )

    postgres_host: str | None = Field(
        default=None, description="Used with the other POSTGRES_* settings if DATABASE_URL is not set."
    )
    postgres_port: int = 5432
    postgres_user: str = "postgres"
    postgres_password: SecretStr | None = None
    postgres_db: str = "postgres"
    redis_host: str | None = Field(
        default=None, description="Used with the other REDIS_* settings if REDIS_URL is not set."
    )
    redis_port: int = 6379
    redis_db: int = 0

    @field_validator("data_dir")
    @classmethod
    def _check_folder(cls, folder: Path) -> Path:
        if re.search(r"[\x00-\x1f\x7f]", str(folder)):
            problem = "contains a line break or another control character"
            raise ValueError(problem)
        return folder

    @field_validator("database_url", "database_direct_url")
    @classmethod
    def _check_database_url(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is not None:
            check = database_url.parse if info.field_name == "database_url" else database_url.parse_direct
            check(url)
        return url

    @field_validator("celery_broker_url", "redis_url")
    @classmethod
    def _check_server_url(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url is None:
            return None
        return server_urls.checked(url, CACHE_SCHEMES if info.field_name == "redis_url" else BROKER_SCHEMES)

    @field_validator("money_changes_per_hour")
    @classmethod
    def _check_payment_limit(cls, given: str) -> str:
        try:
            PaymentLimit.parse(given)
        except ValueError:
            problem = "must be a number (50), a number or a share of all links (50 or 2%), or off"
            raise ValueError(problem) from None
        return given

    @field_validator("backup_keep")
    @classmethod
    def _check_backup_age(cls, given: str) -> str:
        try:
            backups.parse_age(given)
        except ValueError:
            problem = "must be an age such as 30d, 36h or 8w"
            raise ValueError(problem) from None
        return given

    @field_validator("postgres_host", "redis_host")
    @classmethod
    def _check_host(cls, host: str | None) -> str | None:
        if host is not None and not re.fullmatch(r"[\w.-]+|\[[0-9A-Fa-f:.%]+\]", host):
            problem = "must be a host name or an address alone, an IPv6 address in brackets"
            raise ValueError(problem)
        return host

    @field_validator("stripe_api_base", "lago_api_url")
    @classmethod
    def _check_provider_url(cls, url: str | None) -> str | None:
        if url is not None and not _is_http_address(url):
            problem = "must be an address such as https://billing.example.com, with https:// or http:// before the host"
            raise ValueError(problem)
        return url

    @field_validator("stripe_secret_key", "lago_api_key", "stripe_context")
    @classmethod
    def _check_sendable(cls, key: SecretStr | str | None) -> SecretStr | str | None:
        text = key.get_secret_value() if isinstance(key, SecretStr) else key
        if text is not None and not re.fullmatch(r"[\x21-\x7e]+", text):
            problem = "contains a space, a line break or a character that is not ASCII, so no request can carry it"
            raise ValueError(problem)
        return key

    @field_validator("webhook_signing_secret")
    @classmethod
    def _check_signing_secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value()) < MIN_SIGNING_SECRET_LENGTH:
            problem = (
                f"must be {MIN_SIGNING_SECRET_LENGTH} random characters or more; create one with "
                "`openssl rand -base64 32`"
            )
            raise ValueError(problem)
        return secret

    @field_validator("flower_basic_auth")
    @classmethod
    def _check_flower_login(cls, secret: SecretStr | None) -> SecretStr | None:
        # Flower itself accepts several, separated by commas.
        logins = [] if secret is None else secret.get_secret_value().split(",")
        if not all(user and password for user, _, password in (login.partition(":") for login in logins)):
            problem = "must be user:password; write several with commas between them"
            raise ValueError(problem)
        return secret

    @field_validator("lago_payment_methods")
    @classmethod
    def _check_payment_methods(cls, text: str | None) -> str | None:
        methods = split_list(text)
        problem = ""
        if unknown := [each for each in methods if each not in LAGO_PAYMENT_METHODS]:
            problem = f"Lago has no payment method {unknown[0]}; choose from {', '.join(LAGO_PAYMENT_METHODS)}"
        elif "link" in methods and "card" not in methods:
            problem = "Lago takes link only together with card: write card,link"
        elif "customer_balance" in methods and len(methods) > 1:
            problem = "Lago takes customer_balance only alone"
        if problem:
            raise ValueError(problem)
        return text

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
                    f"{missing} is missing: {key} and {address} must be set together, or both omitted for the sandbox"
                )
                raise ValueError(problem)
        if (self.stripe_secret_key is None) != (self.lago_api_key is None):
            problem = "set both providers (STRIPE_* and LAGO_*), or neither for the sandbox"
            raise ValueError(problem)
        if self.lago_api_url is not None and "/api/v1" in self.lago_api_url:
            problem = "LAGO_API_URL must be the bare origin, without /api/v1"
            raise ValueError(problem)
        if self.stripe_api_base is not None and re.search(r"/v[12]/*$", self.stripe_api_base):
            problem = "STRIPE_API_BASE must be the bare origin, without /v1"
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_postgres_settings(self) -> Settings:
        """The address that they make, with what PGSSLMODE says."""
        if self.postgres_host and not self.database_url:
            try:
                database_url.parse(self.database)
            except ValueError as error:
                problem = f"the database of POSTGRES_HOST {error}"
                raise ValueError(problem) from None
        return self

    @model_validator(mode="after")
    def _check_broker(self) -> Settings:
        if self.celery_broker_url is None and (self.redis_url or "").startswith("unix:"):
            problem = "REDIS_URL: unix:// leads to no broker: set CELERY_BROKER_URL too, or write redis://host:6379/0"
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_organization_key(self) -> Settings:
        """Stripe rejects an organization key without the account, and names no field."""
        key = "" if self.stripe_secret_key is None else self.stripe_secret_key.get_secret_value()
        problem = ""
        if key.startswith("sk_org_") and self.stripe_context is None:
            problem = "STRIPE_SECRET_KEY is an organization key: set STRIPE_CONTEXT to the account (acct_…)"
        elif self.stripe_context is not None and not key.startswith("sk_org_"):
            problem = "STRIPE_CONTEXT is set, but STRIPE_SECRET_KEY is no organization key (sk_org_…): remove it"
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_digest_can_be_sent(self) -> Settings:
        if self.operations_email is not None and self.smtp_host is None and not self.is_embedded:
            problem = "OPERATIONS_EMAIL is set but SMTP_HOST is missing, so no email would be sent"
            raise ValueError(problem)
        return self

    @property
    def lago_connection(self) -> str | None:
        """Lago's code of the Stripe connection through which it charges; ``None``: it charges nobody."""
        return None if self.lago_manual_payments else self.lago_stripe_provider_code

    @property
    def payment_limit(self) -> PaymentLimit | None:
        """``None``: no change of what organizations pay is held."""
        return PaymentLimit.parse(self.money_changes_per_hour)

    @property
    def backup_folder(self) -> Path:
        return self.backup_dir or self.data_dir / "backups"

    @property
    def is_sandbox_key(self) -> bool:
        return self.lago_api_key is not None and self.lago_api_key.get_secret_value() == SANDBOX_LAGO_KEY

    @property
    def stripe_webhook_secrets(self) -> list[str]:
        """Empty: webhooks of Stripe are not accepted."""
        return split_list(self.stripe_webhook_secret.get_secret_value() if self.stripe_webhook_secret else None)

    @property
    def payment_methods(self) -> list[str]:
        """Of a customer that is linked in Lago for the first time. Empty: Lago's default."""
        return split_list(self.lago_payment_methods)

    @property
    def allowed_event_sources(self) -> frozenset[str] | None:
        """Of messages on the queue. ``None``: all. Empty: none."""
        return None if self.event_sources_allowed is None else frozenset(split_list(self.event_sources_allowed))

    @property
    def database(self) -> str:
        if self.database_url:
            return self.database_url
        if self.postgres_host:
            password = f":{quote(self.postgres_password.get_secret_value(), safe='')}" if self.postgres_password else ""
            credentials = f"{quote(self.postgres_user, safe='')}{password}"
            return f"postgresql://{credentials}@{self.postgres_host}:{self.postgres_port}/{self.postgres_db}"
        return f"sqlite:///{self.data_dir / 'billing-sync.db'}"

    @property
    def sqlite_file(self) -> Path | None:
        """The file of the database; ``None`` if it is on a server."""
        url = database_url.parse(self.database)
        return Path(url.database or "") if url.get_backend_name() == "sqlite" else None

    @property
    def broker(self) -> str:
        """Without the words of its TLS, which are in ``broker_tls``."""
        return server_urls.for_kombu(self._broker_url)[0]

    @property
    def broker_tls(self) -> dict[str, Any] | None:
        """The options of TLS as kombu, Celery and Flower take them; ``None``: the broker's address asks for none."""
        return server_urls.for_kombu(self._broker_url)[1]

    @property
    def redis(self) -> str | None:
        """The Redis that processes share: the configured one, else a broker that is Redis, else ``None``."""
        return None if self._redis_url is None else server_urls.for_redis_client(self._redis_url)

    @property
    def redis_broker(self) -> str | None:
        """The broker as a client of Redis takes it; ``None`` if it is none."""
        url = self._broker_url
        return server_urls.for_redis_client(url) if url.partition("://")[0] in REDIS_SCHEMES else None

    @property
    def is_redis_broker(self) -> bool:
        """Whether the Redis that processes share is the broker too."""
        return self._redis_url == self._broker_url

    @property
    def weak_tls(self) -> dict[str, str]:
        """What is not verified although an address asks for TLS, by the name of its setting."""
        servers = {"REDIS_URL": self.redis_url, "CELERY_BROKER_URL": self.celery_broker_url}
        found = {name: server_urls.tls(url) for name, url in servers.items() if url is not None}
        weak = {name: tls.weakness for name, tls in found.items() if tls is not None}
        databases = {"DATABASE_URL": self.database, "DATABASE_DIRECT_URL": self.database_direct_url}
        for name, url in databases.items():
            if url is not None:
                where = name if database_url.has_tls_mode(url) else database_url.MODE_VARIABLE
                weak[where] = database_url.weak_tls(url)
        return {name: weakness for name, weakness in weak.items() if weakness is not None}

    @property
    def _broker_url(self) -> str:
        return self.celery_broker_url or self._configured_redis_url or IN_MEMORY_BROKER_URL

    @property
    def _redis_url(self) -> str | None:
        if self._configured_redis_url is None and self._broker_url.startswith(("redis://", "rediss://")):
            return self._broker_url
        return self._configured_redis_url

    @property
    def _configured_redis_url(self) -> str | None:
        if self.redis_url or not self.redis_host:
            return self.redis_url
        return f"redis://{self.redis_host}:{self.redis_port}/{self.redis_db}"

    @property
    def is_embedded(self) -> bool:
        """One process does everything: no broker is configured."""
        return self._broker_url == IN_MEMORY_BROKER_URL

    @property
    def uses_sandbox(self) -> bool:
        return self.stripe_secret_key is None

    def with_sandbox(self, url: str) -> Settings:
        """The same settings with our own sandbox as both providers."""
        return self.model_copy(
            update={
                "plans_file": self.plans_file or default_file(),
                "stripe_secret_key": SecretStr("sk_test_sandbox"),
                "stripe_api_base": url,
                "lago_api_key": SecretStr(SANDBOX_LAGO_KEY),
                "lago_api_url": url,
                "lago_stripe_provider_code": self.lago_stripe_provider_code or "stripe_main",
                "stripe_webhook_secret": self.stripe_webhook_secret or SecretStr(f"whsec_{secrets.token_hex(16)}"),
                "lago_webhook_secret": self.lago_webhook_secret or SecretStr(secrets.token_hex(16)),
            }
        )


def _is_http_address(url: str) -> bool:
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        return False
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna")  # refuses what no client can look up
        return parts.scheme in {"http", "https"} and bool(host) and (parts.port or 1) > 0
    except ValueError:
        return False


def split_list(text: str | None) -> list[str]:
    return [each.strip() for each in (text or "").split(",") if each.strip()]


def read() -> Settings:
    """Raises ``SettingsError`` with one sentence for each invalid setting. The sentence never contains the value."""
    _refuse_unreadable_lines()
    try:
        return Settings()
    except ValidationError as error:
        problems = [
            _describe_error(list(map(str, part["loc"])), part["msg"]) for part in error.errors(include_input=False)
        ]
        raise SettingsError("; ".join(problems)) from None


def _refuse_unreadable_lines() -> None:
    """Without this check a line that the parser skips would leave its setting at the default, such as the sandbox."""
    if not ENV_FILE.is_file():
        return
    try:
        text = ENV_FILE.read_text(encoding=ENV_FILE_ENCODING)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # ASCII in UTF-16 without a byte order mark can be decoded
        message = f"{ENV_FILE} is not UTF-8 text: save it as UTF-8"
        raise SettingsError(message)
    lines = list(parse_stream(io.StringIO(text)))
    unreadable = [
        str(each.original.line + _count_leading_blank_lines(each.original.string))
        for each in lines
        if each.error or (each.key is not None and each.value is None)
    ]
    if unreadable:
        message = f"{ENV_FILE} line {', '.join(unreadable)} cannot be parsed; write NAME=value, comments after #"
        raise SettingsError(message)


def _count_leading_blank_lines(part: str) -> int:
    """The parser adds blank lines to the statement that follows them."""
    return part[: len(part) - len(part.lstrip())].count("\n")


def _describe_error(where: list[str], problem: str) -> str:
    problem = problem.removeprefix("Value error, ")
    return f"{where[0].upper()}: {problem}" if where else problem
