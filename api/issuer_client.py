"""Calls to the sign-in service: its discovery document, its keys and its token endpoint.

A call waits on the event loop, so it holds no thread, and it ends after ``ISSUER_TIMEOUT_SECONDS`` however slowly the
service sends. An error says for the operator what is wrong and what to do. It is not for callers of the API.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

import httpx
import jwt
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError, field_validator

from core.common.hosts import is_remote

TokenAlgorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
TOKEN_ALGORITHMS: Final[tuple[TokenAlgorithm, ...]] = get_args(TokenAlgorithm)

ISSUER_TIMEOUT_SECONDS: Final = 5.0  # for the discovery document and the keys together, and for a call with a code
MAX_ISSUER_RESPONSE_BYTES: Final = 512 * 1024
DISCOVERY_PATH: Final = "/.well-known/openid-configuration"
# Of the time of a call, for TCP and again for TLS. Both together end before the call does: httpcore would not close a
# connection whose TLS handshake is cancelled.
_CONNECT_SHARE: Final = 0.45
_MAX_SHOWN_CHARACTERS: Final = 200
_KEY_TYPES: Final = frozenset({"RSA", "EC", "OKP"})

IssuerProblem = Literal[
    "unreachable",
    "redirected",
    "no_discovery",
    "unusable_address",
    "unencrypted",
    "wrong_issuer",
    "no_key",
    "client_rejected",
    "busy",
    "failed",
]


class IssuerUnavailableError(Exception):
    """The sign-in service does not respond, or its response cannot be used. ``advice``: what an operator can do."""

    def __init__(self, problem: IssuerProblem, message: str, advice: str) -> None:
        super().__init__(problem, message, advice)
        self.problem, self.message, self.advice = problem, message, advice

    def __str__(self) -> str:
        return f"{self.message}; {self.advice}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """``issuer``: as spelled in its tokens. ``internal_url``: its address for our own calls, if it is another one.

    ``client_id`` and ``public_url`` (our origin) are for browser sign-in. ``trusts_emails``: an address counts as
    verified if a token does not say whether it is.
    """

    issuer: str
    audience: str
    algorithm: TokenAlgorithm = "RS256"
    internal_url: str | None = None
    trusts_emails: bool = False
    client_id: str | None = None
    client_secret: SecretStr | None = None
    public_url: str | None = None

    @property
    def discovery_url(self) -> str:
        return (self.internal_url or self.issuer).rstrip("/") + DISCOVERY_PATH


class IssuerMetadata(BaseModel):
    """The part of the service's discovery document that we use."""

    model_config = ConfigDict(frozen=True)

    issuer: str
    jwks_uri: str
    authorization_endpoint: str
    token_endpoint: str

    @field_validator("jwks_uri", "authorization_endpoint", "token_endpoint")
    @classmethod
    def _check_url(cls, url: str) -> str:
        if not _is_usable(url):
            problem = "must be an http address that can be called"
            raise ValueError(problem)
        return url


KeySet = Mapping[str | None, jwt.PyJWK]


class IssuerClient:
    """Works on any event loop: each call has a connection of its own. All raise ``IssuerUnavailableError``."""

    def __init__(self, settings: IssuerSettings) -> None:
        self._settings = settings
        self._tls = httpx.create_ssl_context()  # SSL_CERT_FILE is honoured, as by the calls of providers

    async def fetch(self) -> tuple[IssuerMetadata, KeySet]:
        """The metadata, with each endpoint at the address where it is called, and the keys."""
        deadline = asyncio.get_running_loop().time() + ISSUER_TIMEOUT_SECONDS
        metadata = self._metadata(await self._get(self._settings.discovery_url, deadline))
        self._refuse_unencrypted(metadata)
        return metadata, self._usable_keys(await self._get(metadata.jwks_uri, deadline), metadata)

    async def send_code(
        self, metadata: IssuerMetadata, form: Mapping[str, str], deadline: float
    ) -> tuple[int, dict[str, Any]]:
        """The status and the document of the token endpoint. ``deadline``: a time of the event loop."""
        client_id, secret = self._settings.client_id or "", self._settings.client_secret
        credentials = (client_id, secret.get_secret_value()) if secret else None
        data = dict(form) if secret else {**form, "client_id": client_id}
        response, content = await self._request("POST", metadata.token_endpoint, deadline, data=data, auth=credentials)
        self._refuse_redirect(metadata.token_endpoint, response)
        return response.status_code, _to_document(content)

    def _metadata(self, document: dict[str, Any]) -> IssuerMetadata:
        settings = self._settings
        try:
            metadata = IssuerMetadata.model_validate(document)
        except ValidationError as error:
            raise self._invalid_document(document, error) from None
        # A service may name itself by the address at which it is called. Its tokens are checked against OIDC_ISSUER.
        outer, inner = settings.issuer, settings.internal_url
        names_inner_address = inner is not None and metadata.issuer.rstrip("/") == inner.rstrip("/")
        if metadata.issuer != outer and not names_inner_address:
            raise self._wrong_issuer(metadata.issuer)
        if inner is None:
            return metadata
        return metadata.model_copy(
            update={
                "jwks_uri": _moved(metadata.jwks_uri, outer, inner),
                "token_endpoint": _moved(metadata.token_endpoint, outer, inner),
                "authorization_endpoint": _moved(metadata.authorization_endpoint, inner, outer),
            }
        )

    def _invalid_document(self, document: dict[str, Any], error: ValidationError) -> IssuerUnavailableError:
        url = _shown(self._settings.discovery_url)
        types = {str(item["loc"][0]): item["type"] for item in error.errors(include_input=False)}
        if set(types.values()) != {"value_error"}:
            message = f"{url} is no discovery document of OpenID Connect: it has no valid {', '.join(sorted(types))}"
            return IssuerUnavailableError("no_discovery", message, self._address_advice(self._settings.discovery_url))
        named = ", ".join(f"{field} {_shown(document[field])}" for field in sorted(types))
        message = f"the discovery document {url} names an address that cannot be used: {named}"
        advice = "correct the service's own host name and port in its settings, or OIDC_ISSUER if it is another service"
        return IssuerUnavailableError("unusable_address", message, advice)

    def _refuse_unencrypted(self, metadata: IssuerMetadata) -> None:
        """Who is on the path could read the client's secret, the codes and the verifiers, and replace the keys."""
        endpoints = {"jwks_uri": metadata.jwks_uri, "token_endpoint": metadata.token_endpoint}
        named = [f"{field} {_shown(url)}" for field, url in endpoints.items() if _is_readable_on_the_way(url)]
        if named:
            url = _shown(self._settings.discovery_url)
            message = f"the discovery document {url} names an http:// address of another network: {', '.join(named)}"
            advice = (
                "have the service name https:// addresses: correct the headers of the proxy in front of it, and its "
                "host name (Keycloak: `proxy-headers` and `hostname`)"
            )
            raise IssuerUnavailableError("unencrypted", message, advice)

    def _wrong_issuer(self, named: str) -> IssuerUnavailableError:
        settings = self._settings
        difference = " (only the slash at the end differs)" if named.rstrip("/") == settings.issuer.rstrip("/") else ""
        message = (
            f"{_shown(settings.discovery_url)} names the issuer {_shown(named)}, and OIDC_ISSUER is "
            f"{_shown(settings.issuer)}{difference}"
        )
        advice = f"set OIDC_ISSUER to {_shown(named)}, exactly as the tokens have it"
        if not difference and settings.internal_url is None:
            advice += f", and OIDC_INTERNAL_URL to {_shown(settings.issuer)} if the API reaches the service only there"
        return IssuerUnavailableError("wrong_issuer", message, advice)

    def _usable_keys(self, document: dict[str, Any], metadata: IssuerMetadata) -> KeySet:
        """The keys for the configured algorithm; a set may contain keys for other uses."""
        algorithm = self._settings.algorithm
        listed = document.get("keys")
        signing_keys = [
            jwk
            for jwk in (listed if isinstance(listed, list) else [])
            if isinstance(jwk, dict) and jwk.get("use", "sig") == "sig" and jwk.get("kty") != "oct"
        ]
        keys: dict[str | None, jwt.PyJWK] = {}
        for jwk in signing_keys:
            kid = jwk.get("kid")
            if jwk.get("alg", algorithm) != algorithm or not (kid is None or isinstance(kid, str)):
                continue
            try:
                keys[kid] = jwt.PyJWK.from_dict(jwk, algorithm)
            except jwt.PyJWTError:
                continue
        if not keys:
            offered = sorted({_key_kind(jwk) for jwk in signing_keys})
            found = f"only for {', '.join(offered)}" if offered else "and no other signing key"
            message = f"{_shown(metadata.jwks_uri)} has no key for OIDC_ALGORITHM={algorithm}, {found}"
            advice = f"set OIDC_ALGORITHM to the algorithm of the tokens, or have the service sign with {algorithm}"
            raise IssuerUnavailableError("no_key", message, advice)
        return keys

    async def _get(self, url: str, deadline: float) -> dict[str, Any]:
        response, content = await self._request("GET", url, deadline)
        self._refuse_redirect(url, response)
        if response.status_code != httpx.codes.OK:
            message = f"{_shown(url)} answers {response.status_code}"
            problem: IssuerProblem = "unreachable" if response.is_server_error else "no_discovery"
            raise IssuerUnavailableError(problem, message, self._address_advice(url))
        return _to_document(content)

    def _refuse_redirect(self, url: str, response: httpx.Response) -> None:
        if response.is_redirect:
            target = _shown(response.headers.get("Location", "")) or "nowhere"
            message = f"{_shown(url)} redirects to {target} ({response.status_code}), and redirects are not followed"
            advice = self._address_advice(url)
            if url == self._settings.discovery_url:
                advice = f"try `curl -L {_shown(url)}`, then set OIDC_ISSUER to the issuer that it names"
            raise IssuerUnavailableError("redirected", message, advice)

    async def _request(
        self,
        method: str,
        url: str,
        deadline: float,
        *,
        data: dict[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> tuple[httpx.Response, bytes]:
        content = b""
        remaining = max(0.0, deadline - asyncio.get_running_loop().time())
        http = httpx.AsyncClient(
            timeout=httpx.Timeout(remaining, connect=_CONNECT_SHARE * remaining),
            verify=self._tls,
            trust_env=False,
            follow_redirects=False,
        )
        try:
            # The deadline covers everything, also headers that arrive byte by byte.
            async with (
                asyncio.timeout_at(deadline),
                http,
                http.stream(method, url, data=data, auth=auth) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_ISSUER_RESPONSE_BYTES:
                        raise self._unreachable(url, f"sends more than {MAX_ISSUER_RESPONSE_BYTES // 1024} KiB")
        except httpx.ConnectTimeout:
            raise self._unreachable(url, "accepts no connection in time") from None
        except (TimeoutError, httpx.TimeoutException):
            raise self._unreachable(url, f"did not respond within {ISSUER_TIMEOUT_SECONDS:.0f} s") from None
        # UnicodeError: httpx also reads the address that a redirect names.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise self._failure(url, error) from error
        return response, content

    def _failure(self, url: str, error: httpx.HTTPError | httpx.InvalidURL | UnicodeError) -> IssuerUnavailableError:
        cause: BaseException | None = error
        while cause is not None:
            match cause:
                case ssl.SSLCertVerificationError():
                    message = f"{_shown(url)} has a certificate that is not trusted ({cause.verify_message})"
                    advice = "if it is of an authority of your own, set SSL_CERT_FILE to its certificate for the API"
                    return IssuerUnavailableError("unreachable", message, advice)
                case ssl.SSLError():
                    return self._unreachable(url, "does not speak TLS as expected")
                case ConnectionRefusedError():
                    return self._unreachable(url, "refuses the connection")
                case socket.gaierror():
                    return self._unreachable(url, "has a host name that cannot be resolved")
            cause = cause.__cause__ or cause.__context__
        return self._unreachable(url, f"does not respond ({type(error).__name__})")

    def _unreachable(self, url: str, reason: str) -> IssuerUnavailableError:
        return IssuerUnavailableError("unreachable", f"{_shown(url)} {reason}", self._address_advice(url))

    def _address_advice(self, url: str) -> str:
        if self._settings.internal_url is not None:
            return f"try `curl {_shown(url)}`, then correct OIDC_INTERNAL_URL or OIDC_ISSUER"
        return (
            f"try `curl {_shown(url)}`, then correct OIDC_ISSUER, or set OIDC_INTERNAL_URL if the API reaches the "
            "service by another address"
        )


def _to_document(content: bytes) -> dict[str, Any]:
    """Empty if it is no JSON object."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _key_kind(jwk: dict[str, Any]) -> str:
    for name in (jwk.get("alg"), jwk.get("kty")):
        if isinstance(name, str) and (name in TOKEN_ALGORITHMS or name in _KEY_TYPES):
            return name
    return "others"


def _is_usable(url: str) -> bool:
    """Whether it can be called. Everything but the host is printable ASCII, and the host is ASCII or an IDNA name."""
    if re.search(r"[\x00-\x20\x7f]", url):
        return False
    try:
        parts, host = urlsplit(url), httpx.URL(url).host
        port = parts.port
    except (ValueError, httpx.InvalidURL):
        return False
    rest = (parts.netloc.rpartition("@")[0], parts.path, parts.query, parts.fragment)
    return parts.scheme in {"http", "https"} and host != "" and port != 0 and "".join(rest).isascii()


def _is_readable_on_the_way(url: str) -> bool:
    address = httpx.URL(url)
    return address.scheme == "http" and is_remote(address.host)


def _moved(url: str, source: str, target: str) -> str:
    """The same endpoint at another address of the service: below ``source`` or, else, at its host."""
    path = source.rstrip("/")
    if url == path or url.startswith(f"{path}/"):
        return target.rstrip("/") + url[len(path) :]
    source_origin, target_origin = _origin(source), _origin(target)
    return target_origin + url[len(source_origin) :] if _origin(url) == source_origin else url


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _shown(url: str) -> str:
    """An address that another program sent, for a line of a log or a terminal: no secrets, no control characters."""
    address = re.sub(r"//[^/]*@", "//", url.split("?", maxsplit=1)[0].split("#", maxsplit=1)[0])
    return json.dumps(address[:_MAX_SHOWN_CHARACTERS])[1:-1]
