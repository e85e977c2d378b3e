"""The sign-in service (OpenID Connect: Keycloak, Authentik): where it is, its keys, and whether a token is its own.

The algorithm is fixed by the settings, never taken from a token. Keys are looked up by their id, kept for minutes, and
fetched again when an unknown one shows up: that is how a rotation arrives. While the service is away the known keys
stay good for a while; who cannot be checked is not let in and told so (503), never refused (401).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import httpx
import jwt
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from core.access.users import UserProfile
from core.organizations.memberships import MAX_USER_ID_LENGTH

TokenAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
TOKEN_ALGORITHMS: Final[tuple[TokenAlgorithm, ...]] = get_args(TokenAlgorithm)

ISSUER_TIMEOUT_SECONDS: Final = 5.0  # a call to the sign-in service, its last byte included
MAX_ISSUER_RESPONSE_BYTES: Final = 512 * 1024
JWKS_FRESH_SECONDS: Final = 300.0  # seconds
JWKS_USABLE_SECONDS: Final = 3600.0  # seconds, while the service does not answer
MIN_JWKS_FETCH_INTERVAL_SECONDS: Final = 5.0  # seconds between two fetches, however many unknown keys show up
TOKEN_CLOCK_SKEW_SECONDS: Final = 10.0  # seconds


class InvalidTokenError(Exception):
    """Not a valid token of this service for us; the message says why in a word and repeats nothing of it."""


class IssuerUnavailableError(Exception):
    """The sign-in service does not answer, or answers what nobody can use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """``issuer`` as its tokens spell it. ``client_id`` and ``public_url``, our own origin: to sign in by browser."""

    issuer: str
    audience: str
    algorithm: TokenAlgorithm = "RS256"
    client_id: str | None = None
    client_secret: SecretStr | None = None
    public_url: str | None = None


class IssuerMetadata(BaseModel):
    """The part of the service's discovery document that is used here."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    jwks_uri: str
    authorization_endpoint: str
    token_endpoint: str


KeySet = Mapping[str | None, jwt.PyJWK]


class Issuer:
    """Safe for many threads; one of them fetches, the others go on with what is known."""

    def __init__(self, settings: IssuerSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._monotonic = monotonic
        self._http = httpx.Client(timeout=ISSUER_TIMEOUT_SECONDS, trust_env=False, follow_redirects=False)
        self._fetching = threading.Lock()
        self._metadata: IssuerMetadata | None = None
        self._keys: KeySet = {}
        self._fetched_at = self._tried_at = float("-inf")

    def close(self) -> None:
        self._http.close()

    def metadata(self) -> IssuerMetadata:
        """Raises ``IssuerUnavailableError``."""
        self._current_keys(JWKS_FRESH_SECONDS)
        if self._metadata is None:
            raise IssuerUnavailableError
        return self._metadata

    def verify_access_token(self, token: str) -> UserProfile:
        """Whose access token this is. Raises ``InvalidTokenError``, ``IssuerUnavailableError``."""
        return profile_from_claims(self.verified_claims(token, self.settings.audience))

    def verified_claims(self, token: str, audience: str) -> dict[str, Any]:
        """What the token says, once its signature, issuer, audience and times are right; raises as ``person`` does."""
        try:
            return jwt.decode(
                token,
                self._signing_key(jwt.get_unverified_header(token).get("kid")),
                algorithms=[self.settings.algorithm],
                audience=audience,
                issuer=self.settings.issuer,
                leeway=TOKEN_CLOCK_SKEW_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            message = "it has expired"
            raise InvalidTokenError(message) from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            message = "it was made for somebody else"
            raise InvalidTokenError(message) from None
        except jwt.PyJWTError:
            message = "it is not a valid token"
            raise InvalidTokenError(message) from None

    def exchange_code(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Ask the token endpoint. Raises ``InvalidTokenError`` for what it refuses, else ``IssuerUnavailableError``."""
        settings, secret = self.settings, self.settings.client_secret
        credentials = (settings.client_id or "", secret.get_secret_value()) if secret else None
        data = dict(form) if secret else {**form, "client_id": settings.client_id or ""}
        status, document = self._request("POST", self.metadata().token_endpoint, data=data, auth=credentials)
        if status in {httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            message = "the sign-in service did not accept it"
            raise InvalidTokenError(message)
        if status != httpx.codes.OK:
            raise IssuerUnavailableError
        return document

    def _signing_key(self, kid: object) -> jwt.PyJWK:
        """By id; a service with one key may leave the id out."""
        for fresh_for in (JWKS_FRESH_SECONDS, 0.0):
            keys = self._current_keys(fresh_for)
            if isinstance(kid, str) and kid in keys:
                return keys[kid]
            if kid is None and len(keys) == 1:
                return next(iter(keys.values()))
        message = "its key is not one of the sign-in service's"
        raise InvalidTokenError(message)

    def _current_keys(self, fresh_for: float) -> KeySet:
        """Fetched within that many seconds where possible. Raises ``IssuerUnavailableError`` where there are none to
        use.
        """
        if self._monotonic() - self._fetched_at >= fresh_for and self._fetching.acquire(blocking=not self._keys):
            try:
                self._refresh(fresh_for)
            finally:
                self._fetching.release()
        if not self._keys or self._monotonic() - self._fetched_at > JWKS_USABLE_SECONDS:
            raise IssuerUnavailableError
        return self._keys

    def _refresh(self, fresh_for: float) -> None:
        now = self._monotonic()
        if now - self._fetched_at < fresh_for or now - self._tried_at < MIN_JWKS_FETCH_INTERVAL_SECONDS:
            return
        self._tried_at = now
        try:
            metadata = self._discover()
            self._keys = self._usable_keys(self._get(metadata.jwks_uri))
        except IssuerUnavailableError:
            return  # what is known stays good until it is too old; the caller looks
        self._metadata, self._fetched_at = metadata, now

    def _discover(self) -> IssuerMetadata:
        document = self._get(f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
        try:
            metadata = IssuerMetadata.model_validate(document)
        except ValidationError:
            raise IssuerUnavailableError from None
        if metadata.issuer != self.settings.issuer:
            raise IssuerUnavailableError
        return metadata

    def _usable_keys(self, document: dict[str, Any]) -> KeySet:
        """Keys for the one algorithm; a set may hold others, for other uses."""
        keys: dict[str | None, jwt.PyJWK] = {}
        listed = document.get("keys")
        for jwk in listed if isinstance(listed, list) else []:
            if not isinstance(jwk, dict) or jwk.get("use", "sig") != "sig" or jwk.get("kty") == "oct":
                continue
            if jwk.get("alg", self.settings.algorithm) != self.settings.algorithm:
                continue
            try:
                keys[jwk.get("kid")] = jwt.PyJWK.from_dict(jwk, self.settings.algorithm)
            except jwt.PyJWTError:
                continue
        if not keys:
            raise IssuerUnavailableError
        return keys

    def _get(self, url: str) -> dict[str, Any]:
        status, document = self._request("GET", url)
        if status != httpx.codes.OK:
            raise IssuerUnavailableError
        return document

    def _request(
        self, method: str, url: str, *, data: dict[str, str] | None = None, auth: tuple[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        content = b""
        deadline = self._monotonic() + ISSUER_TIMEOUT_SECONDS
        try:
            with self._http.stream(method, url, data=data, auth=auth) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > MAX_ISSUER_RESPONSE_BYTES or self._monotonic() > deadline:
                        raise IssuerUnavailableError
            document = json.loads(content) if content else {}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
            raise IssuerUnavailableError from error
        return response.status_code, document if isinstance(document, dict) else {}


def profile_from_claims(claims: Mapping[str, Any]) -> UserProfile:
    """Raises ``InvalidTokenError`` where the subject is none that can be stored."""
    user_id = claims.get("sub")
    if not isinstance(user_id, str) or not 0 < len(user_id) <= MAX_USER_ID_LENGTH or not user_id.isprintable():
        message = "its subject cannot be used as a user id"
        raise InvalidTokenError(message)
    name = claims.get("name") or claims.get("preferred_username")
    email = claims.get("email") if claims.get("email_verified") is True else None
    return UserProfile(
        user_id=user_id,
        name=name if isinstance(name, str) else None,
        email=email if isinstance(email, str) else None,
    )
