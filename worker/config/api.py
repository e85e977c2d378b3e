"""Settings of the API, from the same environment and ``.env``. Without a sign-in service only API keys are accepted."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Final, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsConfigDict

from api.issuer_client import IssuerSettings, TokenAlgorithm
from api.rate_limit import DEFAULT_CLIENT_RATE
from core.access.limits import UserLimits
from core.common.hosts import LOOPBACK_HOSTS, is_remote
from providers.lago.webhooks import JwtCheck
from worker.config.settings import ENV_FILE, ENV_FILE_ENCODING, SettingsError, split_list
from worker.config.values import CleanedSettings

DEFAULT_API_PORT: Final = 8080


class ApiSettings(CleanedSettings):
    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding=ENV_FILE_ENCODING, env_ignore_empty=True, extra="ignore", frozen=True
    )

    api_host: str = Field(
        default="127.0.0.1", description="Address on which the API listens; 0.0.0.0 inside a container."
    )
    api_port: int | None = Field(default=None, ge=0, le=65_535, description="Default: 8080.")
    api_public_url: str | None = Field(
        default=None, description="Public origin of the API as browsers see it, https://…."
    )
    api_cors_origins: str | None = Field(
        default=None, description="Origins whose pages may call the API from a browser, comma-separated; default: none."
    )
    api_rate_limit: float = Field(
        default=DEFAULT_CLIENT_RATE,
        gt=0,
        le=100_000,
        description="Requests per second per caller; bursts of twice as many.",
    )
    trusted_proxies: str | None = Field(
        default=None,
        description="Addresses or networks of proxies in front of the API, comma-separated; default: none. Their "
        "X-Forwarded-For names the client, so limits hold for each client and not for the proxy.",
    )
    user_organizations_per_hour: int = Field(
        default=10, ge=1, le=100_000, description="Organizations that one user may create within an hour."
    )
    user_invitations_per_hour: int = Field(
        default=50, ge=1, le=100_000, description="Invitations that one user may send within an hour."
    )
    recipient_invitations_per_hour: int = Field(
        default=10,
        ge=1,
        le=100_000,
        description="Invitations that one address or user may get within an hour, from all organizations together.",
    )
    oidc_issuer: str | None = Field(default=None, description="OIDC issuer, exactly as in its tokens.")
    oidc_internal_url: str | None = Field(
        default=None, description="Address at which the API reaches the issuer; default: OIDC_ISSUER."
    )
    oidc_audience: str | None = Field(default=None, description="Audience of access tokens for this API.")
    oidc_algorithm: TokenAlgorithm = Field(default="RS256", description="Signing algorithm of the issuer's tokens.")
    oidc_trust_emails: bool = Field(
        default=False,
        description="An email address in a token counts as verified if the token has no email_verified.",
    )
    oidc_client_id: str | None = Field(default=None, description="Client id for /auth/login; requires API_PUBLIC_URL.")
    lago_webhook_algorithm: Literal["hmac", "jwt"] = Field(
        default="hmac", description="How Lago signs its webhooks; never read from the webhook itself."
    )
    lago_webhook_public_key: str | None = Field(
        default=None, description="For jwt: a PEM, or its base64 as Lago's /api/v1/webhooks/json_public_key returns it."
    )
    oidc_client_secret: SecretStr | None = Field(default=None, description="Client secret, if the client has one.")

    @field_validator("api_public_url", "oidc_issuer")
    @classmethod
    def _check_https_url(cls, url: str | None) -> str | None:
        problem = "must be an https:// address (http:// only on this machine)"
        parts = _split(url or "https://none", problem)
        if not parts.hostname or not (parts.scheme == "https" or parts.hostname in LOOPBACK_HOSTS):
            raise ValueError(problem)
        return url

    @field_validator("oidc_internal_url")
    @classmethod
    def _check_internal_url(cls, url: str | None) -> str | None:
        problem = "must be an https:// address, or http:// with a host of your own network, such as http://keycloak"
        parts = _split(url or "https://none", problem)
        is_private = parts.scheme == "http" and not is_remote(parts.hostname)
        if not parts.hostname or not (parts.scheme == "https" or is_private):
            raise ValueError(problem)
        return url

    @field_validator("oidc_issuer", "oidc_internal_url")
    @classmethod
    def _check_plain_url(cls, url: str | None) -> str | None:
        """It is compared with what tokens say, and shown."""
        if url is not None and any(character in url for character in "@?#"):
            problem = "must have no user name, no password, no ? and no #"
            raise ValueError(problem)
        return url

    @field_validator("api_cors_origins")
    @classmethod
    def _check_origins(cls, text: str | None) -> str | None:
        for origin in split_list(text):
            parts = urlsplit(origin)
            is_exact = f"{parts.scheme}://{parts.netloc}" == origin and "*" not in origin and "@" not in origin
            if not (is_exact and parts.hostname and (parts.scheme == "https" or parts.hostname in LOOPBACK_HOSTS)):
                problem = "must be origins like https://app.example.com, comma-separated; no path and no *"
                raise ValueError(problem)
        return text

    @field_validator("trusted_proxies")
    @classmethod
    def _check_networks(cls, text: str | None) -> str | None:
        for network in split_list(text):
            try:
                ip_network(network)
            except ValueError:
                problem = "must be addresses or networks like 10.0.0.5, 10.1.0.0/16, comma-separated; no names and no *"
                raise ValueError(problem) from None
        return text

    @field_validator("lago_webhook_public_key")
    @classmethod
    def _check_public_key(cls, key: str | None) -> str | None:
        if key is not None:
            try:
                JwtCheck(key)
            except ValueError:
                problem = "is not an RSA public key: give the PEM, or its base64 as Lago returns it"
                raise ValueError(problem) from None
        return key

    @model_validator(mode="after")
    def _check_lago_webhook_settings_complete(self) -> ApiSettings:
        if (self.lago_webhook_algorithm == "jwt") != (self.lago_webhook_public_key is not None):
            problem = "LAGO_WEBHOOK_ALGORITHM=jwt and LAGO_WEBHOOK_PUBLIC_KEY must be set together or both omitted"
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_oidc_settings_complete(self) -> ApiSettings:
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            problem = "OIDC_ISSUER and OIDC_AUDIENCE must be set together or both omitted"
            raise ValueError(problem)
        if self.oidc_internal_url is not None and self.oidc_issuer is None:
            problem = "OIDC_INTERNAL_URL needs OIDC_ISSUER: set the issuer as the tokens have it, or omit both"
            raise ValueError(problem)
        if (self.oidc_client_id is None) != (self.api_public_url is None) or (
            self.oidc_client_id is not None and self.oidc_issuer is None
        ):
            problem = "OIDC_CLIENT_ID, API_PUBLIC_URL and OIDC_ISSUER must be set together, for browser sign-in"
            raise ValueError(problem)
        return self

    @property
    def cors_origins(self) -> list[str]:
        return split_list(self.api_cors_origins)

    @property
    def proxies(self) -> list[str]:
        return split_list(self.trusted_proxies)

    @property
    def user_limits(self) -> UserLimits:
        return UserLimits(
            organizations=self.user_organizations_per_hour,
            invitations=self.user_invitations_per_hour,
            invitations_to_recipient=self.recipient_invitations_per_hour,
        )

    @property
    def is_https(self) -> bool:
        return self.api_public_url is not None and self.api_public_url.startswith("https:")

    @property
    def issuer(self) -> IssuerSettings | None:
        if self.oidc_issuer is None or self.oidc_audience is None:
            return None
        return IssuerSettings(
            issuer=self.oidc_issuer,
            audience=self.oidc_audience,
            algorithm=self.oidc_algorithm,
            internal_url=self.oidc_internal_url,
            trusts_emails=self.oidc_trust_emails,
            client_id=self.oidc_client_id,
            client_secret=self.oidc_client_secret,
            public_url=self.api_public_url.rstrip("/") if self.api_public_url else None,
        )


def read() -> ApiSettings:
    """Raises ``SettingsError`` with one sentence for each invalid setting. The sentence never contains the value."""
    try:
        return ApiSettings()
    except ValidationError as error:
        raise SettingsError("; ".join(map(_describe_error, error.errors(include_input=False)))) from None


def _split(url: str, problem: str) -> SplitResult:
    """Raises ``ValueError`` with ``problem``."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError(problem) from None
    return parts


def _describe_error(error: ErrorDetails) -> str:
    problem = error["msg"].removeprefix("Value error, ")
    return f"{str(error['loc'][0]).upper()}: {problem}" if error["loc"] else problem
