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

from core.access.users import Profile
from core.organizations.memberships import USER_ID_LIMIT

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = get_args(Algorithm)

SECONDS: Final = 5.0  # a call to the sign-in service, its last byte included
LARGEST_ANSWER: Final = 512 * 1024
KEYS_ARE_FRESH: Final = 300.0  # seconds
KEYS_ARE_USABLE: Final = 3600.0  # seconds, while the service does not answer
PAUSE: Final = 5.0  # seconds between two fetches, however many unknown keys show up
CLOCKS_MAY_DIFFER: Final = 10.0  # seconds


class TokenRefusedError(Exception):
    """Not a valid token of this service for us; the message says why in a word and repeats nothing of it."""


class IssuerAwayError(Exception):
    """The sign-in service does not answer, or answers what nobody can use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """``issuer`` as its tokens spell it. ``client_id`` and ``public_url``, our own origin: to sign in by browser."""

    issuer: str
    audience: str
    algorithm: Algorithm = "RS256"
    client_id: str | None = None
    client_secret: SecretStr | None = None
    public_url: str | None = None


class Metadata(BaseModel):
    """The part of the service's discovery document that is used here."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    jwks_uri: str
    authorization_endpoint: str
    token_endpoint: str


Keys = Mapping[str | None, jwt.PyJWK]


class Issuer:
    """Safe for many threads; one of them fetches, the others go on with what is known."""

    def __init__(self, settings: IssuerSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._monotonic = monotonic
        self._http = httpx.Client(timeout=SECONDS, trust_env=False, follow_redirects=False)
        self._fetching = threading.Lock()
        self._metadata: Metadata | None = None
        self._keys: Keys = {}
        self._fetched_at = self._tried_at = float("-inf")

    def close(self) -> None:
        self._http.close()

    def metadata(self) -> Metadata:
        """Raises ``IssuerAwayError``."""
        self._known_keys(KEYS_ARE_FRESH)
        if self._metadata is None:
            raise IssuerAwayError
        return self._metadata

    def person(self, token: str) -> Profile:
        """Whose access token this is. Raises ``TokenRefusedError``, ``IssuerAwayError``."""
        return profile(self.claims(token, self.settings.audience))

    def claims(self, token: str, audience: str) -> dict[str, Any]:
        """What the token says, once its signature, issuer, audience and times are right; raises as ``person`` does."""
        try:
            return jwt.decode(
                token,
                self._key(jwt.get_unverified_header(token).get("kid")),
                algorithms=[self.settings.algorithm],
                audience=audience,
                issuer=self.settings.issuer,
                leeway=CLOCKS_MAY_DIFFER,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            message = "it has expired"
            raise TokenRefusedError(message) from None
        except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
            message = "it was made for somebody else"
            raise TokenRefusedError(message) from None
        except jwt.PyJWTError:
            message = "it is not a valid token"
            raise TokenRefusedError(message) from None

    def exchange(self, form: Mapping[str, str]) -> dict[str, Any]:
        """Ask the token endpoint. Raises ``TokenRefusedError`` for what it refuses, else ``IssuerAwayError``."""
        settings, secret = self.settings, self.settings.client_secret
        login = (settings.client_id or "", secret.get_secret_value()) if secret else None
        data = dict(form) if secret else {**form, "client_id": settings.client_id or ""}
        status, answer = self._call("POST", self.metadata().token_endpoint, data=data, auth=login)
        if status in {httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            message = "the sign-in service did not accept it"
            raise TokenRefusedError(message)
        if status != httpx.codes.OK:
            raise IssuerAwayError
        return answer

    def _key(self, kid: object) -> jwt.PyJWK:
        """By id; a service with one key may leave the id out."""
        for fresh_for in (KEYS_ARE_FRESH, 0.0):
            keys = self._known_keys(fresh_for)
            if isinstance(kid, str) and kid in keys:
                return keys[kid]
            if kid is None and len(keys) == 1:
                return next(iter(keys.values()))
        message = "its key is not one of the sign-in service's"
        raise TokenRefusedError(message)

    def _known_keys(self, fresh_for: float) -> Keys:
        """Fetched within that many seconds where possible. Raises ``IssuerAwayError`` where there are none to use."""
        if self._monotonic() - self._fetched_at >= fresh_for and self._fetching.acquire(blocking=not self._keys):
            try:
                self._refresh(fresh_for)
            finally:
                self._fetching.release()
        if not self._keys or self._monotonic() - self._fetched_at > KEYS_ARE_USABLE:
            raise IssuerAwayError
        return self._keys

    def _refresh(self, fresh_for: float) -> None:
        now = self._monotonic()
        if now - self._fetched_at < fresh_for or now - self._tried_at < PAUSE:
            return
        self._tried_at = now
        try:
            metadata = self._discover()
            self._keys = self._usable(self._get(metadata.jwks_uri))
        except IssuerAwayError:
            return  # what is known stays good until it is too old; the caller looks
        self._metadata, self._fetched_at = metadata, now

    def _discover(self) -> Metadata:
        document = self._get(f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration")
        try:
            metadata = Metadata.model_validate(document)
        except ValidationError:
            raise IssuerAwayError from None
        if metadata.issuer != self.settings.issuer:
            raise IssuerAwayError
        return metadata

    def _usable(self, document: dict[str, Any]) -> Keys:
        """Keys for the one algorithm; a set may hold others, for other uses."""
        found: dict[str | None, jwt.PyJWK] = {}
        listed = document.get("keys")
        for each in listed if isinstance(listed, list) else []:
            if not isinstance(each, dict) or each.get("use", "sig") != "sig" or each.get("kty") == "oct":
                continue
            if each.get("alg", self.settings.algorithm) != self.settings.algorithm:
                continue
            try:
                found[each.get("kid")] = jwt.PyJWK.from_dict(each, self.settings.algorithm)
            except jwt.PyJWTError:
                continue
        if not found:
            raise IssuerAwayError
        return found

    def _get(self, url: str) -> dict[str, Any]:
        status, document = self._call("GET", url)
        if status != httpx.codes.OK:
            raise IssuerAwayError
        return document

    def _call(
        self, method: str, url: str, *, data: dict[str, str] | None = None, auth: tuple[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        content = b""
        ends = self._monotonic() + SECONDS
        try:
            with self._http.stream(method, url, data=data, auth=auth) as answer:
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > LARGEST_ANSWER or self._monotonic() > ends:
                        raise IssuerAwayError
            document = json.loads(content) if content else {}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, RecursionError) as error:
            raise IssuerAwayError from error
        return answer.status_code, document if isinstance(document, dict) else {}


def profile(claims: Mapping[str, Any]) -> Profile:
    """Raises ``TokenRefusedError`` where the subject is none that can be stored."""
    user_id = claims.get("sub")
    if not isinstance(user_id, str) or not 0 < len(user_id) <= USER_ID_LIMIT or not user_id.isprintable():
        message = "its subject cannot be used as a user id"
        raise TokenRefusedError(message)
    name = claims.get("name") or claims.get("preferred_username")
    email = claims.get("email") if claims.get("email_verified") is True else None
    return Profile(
        user_id=user_id,
        name=name if isinstance(name, str) else None,
        email=email if isinstance(email, str) else None,
    )
