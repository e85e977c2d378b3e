"""An OpenID Connect provider on loopback: real HTTP, real keys, and one user signed in at its page at a time.

It is as strict as a real one: a code works once, for its client, with its redirect address and its PKCE verifier.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

CLIENT_ID = "billing-sync"
CLIENT_SECRET = "the client's secret"
AUDIENCE = "billing-sync-api"
LIFETIME = 300
LONGEST_HOLD_SECONDS = 30.0
DRIP_SECONDS = 0.05


@dataclass
class Key:
    kid: str
    private: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    algorithm: str | None = None

    def public(self) -> dict[str, Any]:
        jwk = {**RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True), "kid": self.kid, "use": "sig"}
        return jwk | ({"alg": self.algorithm} if self.algorithm else {})


class OidcProvider:
    """A context manager. ``asked`` lists the paths of all requests; ``away`` makes it respond 503 to everything.

    ``hold()`` lets it accept requests and not answer them. ``drip`` lets it send byte after byte and never end.
    ``document`` replaces parts of its discovery document, and ``redirects_to`` has that document at another address.
    ``named``: the issuer as it names itself and writes it into its tokens, if it is behind a proxy.
    """

    def __init__(self, named: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.named = named
        self.drip: Literal["headers", "body"] | None = None
        self.document: dict[str, Any] = {}
        self.redirects_to: str | None = None
        self.seconds_to_answer = 0.0
        self._may_answer = threading.Event()
        self._may_answer.set()
        self.keys = [Key("first")]
        self.signs_in: dict[str, Any] = {"sub": "alice", "name": "Alice"}
        self.away = False
        self.asked: list[str] = []
        self.nonce_is: str | None = None
        self._codes: dict[str, dict[str, str]] = {}
        provider = self

        class OidcProviderHandler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with suppress(ConnectionError):  # the client did not wait
                    provider.answer(self, urlsplit(self.path).path, urlsplit(self.path).query)

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                with suppress(ConnectionError):
                    provider.answer(self, urlsplit(self.path).path, self.rfile.read(length).decode())

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
                """Log nothing, since a test's output is for failures."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), OidcProviderHandler)
        self._server.daemon_threads = True
        self._scheme = "https" if tls else "http"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def address(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/realms/acme"

    @property
    def issuer(self) -> str:
        return self.named or self.address

    def reset(self) -> None:
        """It answers again as a healthy one."""
        self.away, self.drip, self.document, self.redirects_to = False, None, {}, None
        self.seconds_to_answer = 0.0
        self._may_answer.set()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, it accepts requests and does not answer them."""
        self._may_answer.clear()
        try:
            yield
        finally:
            self._may_answer.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._may_answer.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def token(
        self,
        sub: str = "alice",
        *,
        key: Key | None = None,
        header_type: str = "JWT",
        **claims: Any,  # noqa: ANN401 - any claim
    ) -> str:
        """An access token as the provider creates it, with ``claims`` changed; a claim that is None is left out."""
        now = int(time.time())
        payload = {"iss": self.issuer, "aud": AUDIENCE, "sub": sub, "iat": now, "exp": now + LIFETIME} | claims
        signer = key or self.keys[-1]
        return jwt.encode(
            {name: value for name, value in payload.items() if value is not None},
            signer.private,
            algorithm="RS256",
            headers={"kid": signer.kid, "typ": header_type},
        )

    def rotate(self) -> None:
        """Sign with a new key from now on; the old key is no longer published."""
        self.keys = [Key(secrets.token_hex(4))]

    def answer(self, request: BaseHTTPRequestHandler, path: str, words: str) -> None:
        self.asked.append(path)
        asked = {name: values[0] for name, values in parse_qs(words).items()}
        self._may_answer.wait(LONGEST_HOLD_SECONDS)
        time.sleep(self.seconds_to_answer)
        if self.drip is not None:
            _drip(request, in_headers=self.drip == "headers")
        elif self.away:
            _send(request, 503, {})
        elif path.endswith("/.well-known/openid-configuration") and self.redirects_to is not None:
            request.send_response(302)
            request.send_header("Location", self.redirects_to)
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif path.endswith("/.well-known/openid-configuration"):
            _send(request, 200, self._metadata() | self.document)
        elif path.endswith("/keys"):
            _send(request, 200, {"keys": [each.public() for each in self.keys]})
        elif path.endswith("/authorize"):
            code = secrets.token_urlsafe(16)
            self._codes[code] = asked
            back = urlencode({"code": code, "state": asked["state"]})
            request.send_response(302)
            request.send_header("Location", f"{asked['redirect_uri']}?{back}")
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif path.endswith("/token"):
            _send(request, *self._tokens(asked, request.headers.get("Authorization", "")))
        else:
            _send(request, 404, {})

    def _metadata(self) -> dict[str, str]:
        return {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}/keys",
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
        }

    def _tokens(self, asked: dict[str, str], login: str) -> tuple[int, dict[str, Any]]:
        started = self._codes.pop(asked.get("code", ""), None)
        expected = "Basic " + base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        if login != expected:
            return 401, {"error": "invalid_client"}
        digest = hashlib.sha256(asked.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if (
            started is None
            or started["code_challenge"] != challenge
            or started["redirect_uri"] != asked["redirect_uri"]
        ):
            return 400, {"error": "invalid_grant"}
        nonce = self.nonce_is or started["nonce"]
        identity = self.token(**self.signs_in, aud=CLIENT_ID, nonce=nonce)
        access = self.token(**self.signs_in)
        return 200, {"id_token": identity, "access_token": access, "token_type": "Bearer", "expires_in": LIFETIME}


def _drip(request: BaseHTTPRequestHandler, *, in_headers: bool) -> None:
    """A byte each 50 ms, until the client closes the connection."""
    head = b"HTTP/1.1 200 OK\r\nX-Endless: " if in_headers else b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    request.wfile.write(head)
    for _ in range(int(LONGEST_HOLD_SECONDS / DRIP_SECONDS)):
        request.wfile.write(b" ")
        time.sleep(DRIP_SECONDS)


def _send(request: BaseHTTPRequestHandler, status: int, document: dict[str, Any]) -> None:
    content = json.dumps(document).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    request.wfile.write(content)
