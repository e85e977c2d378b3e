"""The sign-in service (OpenID Connect: Keycloak, Authentik): the cache of its keys and the check of its tokens.

The algorithm is fixed by the settings, never taken from a token. Keys are looked up by their id, cached for minutes,
and fetched again when an unknown id appears, which is how a key rotation is noticed. While the service is down the
cached keys stay usable for a while. A token that cannot be checked gets 503, never 401: also one with an unknown key id
that may be issued since the last fetch.

A token is checked with the cached keys only, so no thread waits for the service. Before the check, ``prepare`` fetches
the keys that it lacks, on the event loop: one fetch at a time, whose outcome all requests share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import httpx
import jwt
import structlog
from jwt import exceptions as jwt_exceptions

from api.issuer_client import (
    ISSUER_TIMEOUT_SECONDS,
    IssuerClient,
    IssuerMetadata,
    IssuerSettings,
    IssuerUnavailableError,
    KeySet,
)
from core.access.users import UserProfile
from core.common.error_place import raised_at
from core.common.validation import InvalidChangeError
from core.organizations.validation import checked_user_id

log = structlog.get_logger()

JWKS_FRESH_SECONDS: Final = 300.0  # seconds
JWKS_USABLE_SECONDS: Final = 3600.0  # seconds, while the service does not respond
# Seconds from the end of a fetch to the next one, however many unknown keys appear.
MIN_JWKS_FETCH_INTERVAL_SECONDS: Final = 5.0
TOKEN_CLOCK_SKEW_SECONDS: Final = 10.0  # seconds
# Requests that wait for keys, and as many sign-ins by browser; further ones get 503 at once.
MAX_REQUESTS_WAITING_FOR_ISSUER: Final = 64
MAX_CODES_SENT_AT_ONCE: Final = 4  # calls of the token endpoint; the others wait for one to end
# RFC 9068 2.1 for access tokens; most services write JWT.
_HEADER_TYPES: Final = frozenset({"jwt", "at+jwt"})
_OTHER_TOKEN_KINDS: Final = frozenset({"id", "refresh", "offline", "logout"})
# RFC 6749 5.2: the settings of our client are wrong, not the code.
_CLIENT_ERRORS: Final = frozenset({"invalid_client", "unauthorized_client", "unsupported_grant_type"})

_TOKEN_ERRORS: Final[Mapping[type[jwt.PyJWTError], str]] = {
    jwt.InvalidAudienceError: "its claim `aud` is for another audience",
    jwt.InvalidIssuerError: "its claim `iss` is not OIDC_ISSUER",
    jwt_exceptions.InvalidSubjectError: "its claim `sub` is no text",
    jwt_exceptions.InvalidJTIError: "its claim `jti` is no text",
    jwt.InvalidSignatureError: "its signature is wrong",
}


class InvalidTokenError(Exception):
    """The token is not valid for us. The message says briefly why, and repeats nothing of the token."""


class UnknownKeyError(IssuerUnavailableError):
    """The key of the token may be newer than the cached ones. ``retry_after``: seconds until they are fetched again."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("busy", "the token may be signed with a key that was not fetched yet", "send it again later")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedKeys:
    """``fetched_at``: when the fetch began."""

    metadata: IssuerMetadata
    keys: KeySet
    fetched_at: float

    def find(self, kid: object) -> jwt.PyJWK | None:
        """A service with one key may omit the id."""
        if kid is None and len(self.keys) == 1:
            return next(iter(self.keys.values()))
        return self.keys.get(kid) if isinstance(kid, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTokens:
    """What a code is exchanged for; nothing of it is checked yet. ``expires_in``: seconds."""

    id_token: str
    access_token: str
    expires_in: int | None


class Issuer:
    """The coroutines belong to one event loop. Any thread may check tokens."""

    def __init__(self, settings: IssuerSettings, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._monotonic = monotonic
        self._client = IssuerClient(settings)
        self._cached: CachedKeys | None = None
        self._fetch: asyncio.Task[None] | None = None
        self._fetches_again_at = float("-inf")
        self._fetch_error: IssuerUnavailableError | None = None
        self._code_error: IssuerUnavailableError | None = None
        self._waiting_for_keys = self._waiting_with_code = 0
        self._codes = asyncio.Semaphore(MAX_CODES_SENT_AT_ONCE)

    def begin_fetch(self) -> asyncio.Task[None] | None:
        """The fetch that runs, or a new one; ``None`` for a few seconds after a fetch. It raises nothing.

        Wait for it with ``asyncio.wait``: other requests wait for it, too, and what it raises is not theirs.
        """
        if self._fetch is None and self._monotonic() >= self._fetches_again_at:
            self._fetch = asyncio.get_running_loop().create_task(self._fetch_keys())
            self._fetch.add_done_callback(self._end_fetch)
        return self._fetch

    async def prepare(self, token: str) -> None:
        """Wait for the keys that a check of this token lacks, for ``ISSUER_TIMEOUT_SECONDS`` at most; raises nothing.

        A token that a cached key can check waits only to replace keys that are not fresh any more, and not at all if
        the service did not respond to the last fetch.
        """
        try:
            kid = self._key_id(token)
        except InvalidTokenError:
            return  # no key can make it valid
        cached = self._usable_cache()
        await self._refresh(cached, is_sufficient=cached is not None and cached.find(kid) is not None)

    async def metadata(self) -> IssuerMetadata:
        """Raises ``IssuerUnavailableError``."""
        cached = self._usable_cache()
        await self._refresh(cached, is_sufficient=cached is not None)
        if (cached := self._usable_cache()) is None:
            raise self._unavailable()
        return cached.metadata

    async def exchange_code(self, form: Mapping[str, str]) -> CodeTokens:
        """Call the token endpoint. Raises ``InvalidTokenError`` if the code is rejected, ``IssuerUnavailableError``."""
        metadata = await self.metadata()
        if self._waiting_with_code >= MAX_REQUESTS_WAITING_FOR_ISSUER:
            raise _busy()
        self._waiting_with_code += 1
        try:
            return await self._send_code(metadata, form)
        finally:
            self._waiting_with_code -= 1

    def verify_access_token(self, token: str) -> UserProfile:
        """Return the user of an access token. Raises ``InvalidTokenError``, ``IssuerUnavailableError``.

        Keycloak writes the kind of its tokens into the claim ``typ``: an ID or refresh token is no access token.
        """
        claims = self.verified_claims(token, self.settings.audience)
        if str(claims.get("typ", "")).lower() in _OTHER_TOKEN_KINDS:
            message = "it is no access token"
            raise InvalidTokenError(message)
        return self.profile(claims)

    def verified_claims(self, token: str, audience: str) -> dict[str, Any]:
        """Claims after checking signature, issuer, audience and times. Raises what ``verify_access_token`` raises."""
        claims = self._decode(token, audience)
        # Logout tokens and other security event tokens have it (RFC 8417 2.2), and no token that signs somebody in.
        if "events" in claims:
            message = "it reports an event, such as a logout"
            raise InvalidTokenError(message)
        return claims

    def profile(self, claims: Mapping[str, Any]) -> UserProfile:
        """Raises ``InvalidTokenError`` if the subject cannot be stored as a user id."""
        subject = claims.get("sub")
        try:
            user_id = checked_user_id("sub", subject if isinstance(subject, str) else "")
        except InvalidChangeError:
            message = "its claim `sub` cannot be used as a user id"
            raise InvalidTokenError(message) from None
        name = claims.get("name") or claims.get("preferred_username")
        verified = claims.get("email_verified")
        email = claims.get("email") if verified is True or (verified is None and self.settings.trusts_emails) else None
        return UserProfile(
            user_id=user_id,
            name=name if isinstance(name, str) else None,
            email=email if isinstance(email, str) else None,
            is_email_unverified=verified is not None and verified is not True,
        )

    async def _refresh(self, cached: CachedKeys | None, *, is_sufficient: bool) -> None:
        is_fresh = cached is not None and self._monotonic() - cached.fetched_at < JWKS_FRESH_SECONDS
        if is_sufficient and is_fresh:
            return
        fetch = self.begin_fetch()
        if fetch is None or (is_sufficient and self._fetch_error is not None):
            return
        if self._waiting_for_keys >= MAX_REQUESTS_WAITING_FOR_ISSUER:
            return
        self._waiting_for_keys += 1
        try:
            await asyncio.wait({fetch})
        finally:
            self._waiting_for_keys -= 1

    async def _fetch_keys(self) -> None:
        began_at = self._monotonic()
        try:
            metadata, keys = await self._client.fetch()
        except IssuerUnavailableError as error:
            self._fetch_error = _log_change(self._fetch_error, error)
        else:
            self._cached = CachedKeys(metadata=metadata, keys=keys, fetched_at=began_at)
            self._fetch_error = _log_change(self._fetch_error, None)

    def _end_fetch(self, fetch: asyncio.Task[None]) -> None:
        """Runs before those who wait for the fetch go on. An error that nobody foresaw leaves the keys in use, too."""
        if not fetch.cancelled() and (error := fetch.exception()) is not None:
            self._fetch_error = _log_change(self._fetch_error, _failed(error))
        self._fetch, self._fetches_again_at = None, self._monotonic() + MIN_JWKS_FETCH_INTERVAL_SECONDS

    async def _send_code(self, metadata: IssuerMetadata, form: Mapping[str, str]) -> CodeTokens:
        deadline = asyncio.get_running_loop().time() + ISSUER_TIMEOUT_SECONDS
        try:
            async with asyncio.timeout(ISSUER_TIMEOUT_SECONDS / 2):  # the other half is for the call
                await self._codes.acquire()
        except TimeoutError:
            raise _busy() from None
        try:
            tokens = _tokens(*await self._client.send_code(metadata, form, deadline))
        except IssuerUnavailableError as error:
            self._code_error = _log_change(self._code_error, error)
            raise
        finally:
            self._codes.release()
        self._code_error = _log_change(self._code_error, None)
        return tokens

    def _usable_cache(self) -> CachedKeys | None:
        cached = self._cached
        return cached if cached and self._monotonic() - cached.fetched_at <= JWKS_USABLE_SECONDS else None

    def _unavailable(self) -> IssuerUnavailableError:
        """Why there is no key: the reason of the last fetch, or the fetch has not ended."""
        return _copy(self._fetch_error) if self._fetch_error else _busy()

    def _key_id(self, token: str) -> object:
        """Raises ``InvalidTokenError`` for a token that no key can make valid."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            message = "it is not a valid token"
            raise InvalidTokenError(message) from None
        if str(header.get("typ", "JWT")).lower().removeprefix("application/") not in _HEADER_TYPES:
            message = "its header says that it is another kind of token"
            raise InvalidTokenError(message)
        if header.get("alg") != self.settings.algorithm:
            message = f"it is not signed with {self.settings.algorithm} (OIDC_ALGORITHM)"
            raise InvalidTokenError(message)
        return header.get("kid")

    def _signing_key(self, token: str) -> jwt.PyJWK:
        kid, cached = self._key_id(token), self._usable_cache()
        if cached is None:
            raise self._unavailable()
        if (key := cached.find(kid)) is not None:
            return key
        # The service may have a new key that could not be fetched.
        if self._fetch_error is not None or self._fetch is not None:
            raise self._unavailable()
        if kid is None:
            message = "its header has no `kid`, and the sign-in service has several keys"
            raise InvalidTokenError(message)
        if self._may_be_newer(token, cached):
            raise UnknownKeyError(max(1.0, self._fetches_again_at - self._monotonic()))
        message = "it is signed with a key that is not the sign-in service's"
        raise InvalidTokenError(message)

    def _may_be_newer(self, token: str, cached: CachedKeys) -> bool:
        """Whether the token may be issued after these keys were fetched, by its claim `iat`, which nobody has verified.

        A token without that claim is invalid, whatever key it is signed with. A forged one gains nothing by it.
        """
        try:
            issued_at = jwt.decode(token, options={"verify_signature": False}).get("iat")
        except jwt.PyJWTError:
            return False
        fetched_at = time.time() - (self._monotonic() - cached.fetched_at)
        return isinstance(issued_at, int | float) and fetched_at - TOKEN_CLOCK_SKEW_SECONDS <= issued_at

    def _decode(self, token: str, audience: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                self._signing_key(token),
                algorithms=[self.settings.algorithm],
                audience=audience,
                issuer=self.settings.issuer,
                leeway=TOKEN_CLOCK_SKEW_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise InvalidTokenError(_explain(error, token)) from None


def _tokens(status: int, document: dict[str, Any]) -> CodeTokens:
    if (code := str(document.get("error"))) in _CLIENT_ERRORS:
        message = f"the sign-in service rejects the client OIDC_CLIENT_ID ({code})"
        advice = "correct OIDC_CLIENT_ID and OIDC_CLIENT_SECRET, or allow the client the code flow there"
        raise IssuerUnavailableError("client_rejected", message, advice)
    if status in {httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        message = "the sign-in service rejected the code"
        raise InvalidTokenError(message)
    identity, access, lifetime = (document.get(name) for name in ("id_token", "access_token", "expires_in"))
    if status != httpx.codes.OK or not isinstance(identity, str) or not isinstance(access, str):
        message = f"the token endpoint of the sign-in service answers {status} without an ID token and an access token"
        raise IssuerUnavailableError("unreachable", message, "check the service, and whether it knows the scope openid")
    return CodeTokens(
        id_token=identity, access_token=access, expires_in=lifetime if isinstance(lifetime, int) else None
    )


def _explain(error: jwt.PyJWTError, token: str) -> str:
    """Names the claim. PyJWT checks the claims after the signature, so they are the service's own."""
    match error:
        case jwt.ExpiredSignatureError():
            return f"it expired {-_seconds_ahead(token, 'exp')} s ago"
        case jwt.ImmatureSignatureError() if "(iat)" in str(error):
            return (
                f"it was issued in the future: its claim `iat` is {_seconds_ahead(token, 'iat')} s ahead of our clock"
            )
        case jwt.ImmatureSignatureError():
            return f"it is not valid yet: its claim `nbf` is {_seconds_ahead(token, 'nbf')} s ahead of our clock"
        case jwt.MissingRequiredClaimError():
            return f"its claim `{error.claim}` is missing"
    wrong_times = [f"its claim `{name}` is no number" for name in ("exp", "iat", "nbf") if f"({name})" in str(error)]
    reasons = [reason for kind, reason in _TOKEN_ERRORS.items() if isinstance(error, kind)]
    return next(iter(wrong_times + reasons), "it is not a valid token")


def _seconds_ahead(token: str, name: Literal["exp", "iat", "nbf"]) -> int:
    """How far a time in the token, which PyJWT has read, is ahead of our clock."""
    return int(jwt.decode(token, options={"verify_signature": False})[name]) - int(time.time())


def _busy() -> IssuerUnavailableError:
    message = "too many requests wait for the sign-in service"
    return IssuerUnavailableError("busy", message, "check whether the service responds slowly")


def _failed(error: BaseException) -> IssuerUnavailableError:
    message = f"its keys cannot be fetched: {type(error).__name__} at {raised_at(error)}"
    return IssuerUnavailableError("failed", message, "check OIDC_ISSUER and OIDC_INTERNAL_URL, and report the error")


def _log_change(
    previous: IssuerUnavailableError | None, error: IssuerUnavailableError | None
) -> IssuerUnavailableError | None:
    """Log a reason once, not for each request. Returns the reason to remember."""
    if error is not None and str(error) != str(previous):
        log.warning("sign_in_service_unusable", problem=error.problem, reason=error.message, advice=error.advice)
    if error is None and previous is not None:
        log.info("sign_in_service_usable")
    return None if error is None else _copy(error)


def _copy(error: IssuerUnavailableError) -> IssuerUnavailableError:
    """Without its traceback, which grows each time that an error is raised."""
    return IssuerUnavailableError(error.problem, error.message, error.advice)
