"""The sign-in service (OpenID Connect: Keycloak, Authentik): its metadata, its keys and the check of its tokens.

The algorithm is fixed by the settings, never taken from a token. Keys are looked up by their id, cached for minutes,
and fetched again when an unknown id appears, which is how a key rotation is noticed. While the service is down the
cached keys stay usable for a while. A token that cannot be checked gets 503, never 401.
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
from core.common.validation import InvalidChangeError
from core.organizations.validation import checked_user_id

TokenAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
TOKEN_ALGORITHMS: Final[tuple[TokenAlgorithm, ...]] = get_args(TokenAlgorithm)

ISSUER_TIMEOUT_SECONDS: Final = 5.0  # for a call to the sign-in service, up to the last byte
MAX_ISSUER_RESPONSE_BYTES: Final = 512 * 1024
JWKS_FRESH_SECONDS: Final = 300.0  # seconds
JWKS_USABLE_SECONDS: Final = 3600.0  # seconds, while the service does not respond
MIN_JWKS_FETCH_INTERVAL_SECONDS: Final = 5.0  # seconds between two fetches, however many unknown keys appear
TOKEN_CLOCK_SKEW_SECONDS: Final = 10.0  # seconds
# RFC 9068 2.1 for access tokens; most services write JWT.
_HEADER_TYPES: Final = frozenset({"jwt", "at+jwt"})
_OTHER_TOKEN_KINDS: Final = frozenset({"id", "refresh", "offline", "logout"})


class InvalidTokenError(Exception):
    """The token is not valid for us. The message says briefly why, and repeats nothing of the token."""


class IssuerUnavailableError(Exception):
    """The sign-in service does not respond, or its response cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """``issuer``: as spelled in its tokens. ``client_id`` and ``public_url`` (our origin) are for browser sign-in."""

    issuer: str
    audience: str
    algorithm: TokenAlgorithm = "RS256"
    client_id: str | None = None
    client_secret: SecretStr | None = None
    public_url: str | None = None


class IssuerMetadata(BaseModel):
    """The part of the service's discovery document that we use."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    jwks_uri: str
    authorization_endpoint: str
    token_endpoint: str


KeySet = Mapping[str | None, jwt.PyJWK]


class Issuer:
    """Thread-safe. One thread fetches the keys; the others continue with the cached ones."""

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
        """Return the user of an access token. Raises ``InvalidTokenError``, ``IssuerUnavailableError``.

        Keycloak writes the kind of its tokens into the claim ``typ``: an ID or refresh token is no access token.
        """
        claims = self.verified_claims(token, self.settings.audience)
        if str(claims.get("typ", "")).lower() in _OTHER_TOKEN_KINDS:
            message = "it is no access token"
            raise InvalidTokenError(message)
        return profile_from_claims(claims)

    def verified_claims(self, token: str, audience: str) -> dict[str, Any]:
        """Claims after checking signature, issuer, audience and times. Raises what ``verify_access_token`` raises."""
        claims = self._decode(token, audience)
        # Logout tokens and other security event tokens have it (RFC 8417 2.2), and no token that signs somebody in.
        if "events" in claims:
            message = "it reports an event, such as a logout"
            raise InvalidTokenError(message)
        return claims

    def _decode(self, token: str, audience: str) -> dict[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if str(header.get("typ", "JWT")).lower().removeprefix("application/") not in _HEADER_TYPES:
                message = "its header says that it is another kind of token"
                raise InvalidTokenError(message)
            return jwt.decode(
                token,
                self._signing_key(header.get("kid")),
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
            message = "it was issued for another audience or by another issuer"
            raise InvalidTokenError(message) from None
        except jwt.PyJWTError:
            message = "it is not a valid token"
            raise InvalidTokenError(message) from None

    def exchange_code(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Call the token endpoint. Raises ``InvalidTokenError`` if the code is rejected, ``IssuerUnavailableError``."""
        settings, secret = self.settings, self.settings.client_secret
        credentials = (settings.client_id or "", secret.get_secret_value()) if secret else None
        data = dict(form) if secret else {**form, "client_id": settings.client_id or ""}
        status, document = self._request("POST", self.metadata().token_endpoint, data=data, auth=credentials)
        if status in {httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            message = "the sign-in service rejected the code"
            raise InvalidTokenError(message)
        if status != httpx.codes.OK:
            raise IssuerUnavailableError
        return document

    def _signing_key(self, kid: object) -> jwt.PyJWK:
        """Find the key by its id. A service with one key may omit the id."""
        for fresh_for in (JWKS_FRESH_SECONDS, 0.0):
            keys = self._current_keys(fresh_for)
            if isinstance(kid, str) and kid in keys:
                return keys[kid]
            if kid is None and len(keys) == 1:
                return next(iter(keys.values()))
        message = "it is signed with a key that is not the sign-in service's"
        raise InvalidTokenError(message)

    def _current_keys(self, fresh_for: float) -> KeySet:
        """Keys at most ``fresh_for`` seconds old if possible. Raises ``IssuerUnavailableError`` if no key is usable."""
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
            return  # the cached keys stay usable until they are too old; the caller checks that
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
        """The keys for the configured algorithm; a set may contain keys for other uses."""
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
    """Raises ``InvalidTokenError`` if the subject cannot be stored as a user id."""
    subject = claims.get("sub")
    try:
        user_id = checked_user_id("sub", subject if isinstance(subject, str) else "")
    except InvalidChangeError:
        message = "its subject cannot be used as a user id"
        raise InvalidTokenError(message) from None
    name = claims.get("name") or claims.get("preferred_username")
    verified = claims.get("email_verified")
    email = claims.get("email") if verified is True else None
    return UserProfile(
        user_id=user_id,
        name=name if isinstance(name, str) else None,
        email=email if isinstance(email, str) else None,
        is_email_unverified=verified is not None and verified is not True,
    )
