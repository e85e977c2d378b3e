"""Signing in by browser: the code flow with state, nonce and PKCE; the first sign-in makes an organization.

State, nonce and PKCE verifier are made of one random secret that only the browser's cookie holds: nothing is stored
here, any process may finish what another began, and a callback without the cookie of its own beginning opens nothing.
The code itself can be used once, by the sign-in service's own rule.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from http import HTTPStatus
from typing import Annotated, Final, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.responses import RedirectResponse

from api import problems
from api.context import Runtime, TheRuntime
from api.oidc import Issuer, IssuerAwayError, IssuerSettings, TokenRefusedError, profile
from api.problems import ProblemError
from api.schemas import responses
from api.schemas.responses import Organization
from core.access import users
from core.access.users import Profile
from core.events.event_types import Cause, Change
from core.organizations import queries

router = APIRouter(tags=["sign-in"])

COOKIE_SECONDS: Final = 600
CALLBACK: Final = "/auth/callback"

Purpose = Literal["state", "nonce", "verifier"]
Shown = Annotated[str | None, Query(max_length=4096)]


class SignedIn(BaseModel):
    """Send ``access_token`` as `Authorization: Bearer …`. ``created``: the organization that this sign-in made."""

    user_id: str
    created: str | None
    organizations: list[Organization]
    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int | None


@router.get("/auth/login", status_code=303, response_class=RedirectResponse)
def begin(runtime: TheRuntime) -> Response:
    """Send the browser to the sign-in service."""
    issuer, client_id, origin = _flow(runtime)
    secret = secrets.token_urlsafe(32)
    asked = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": origin + CALLBACK,
        "scope": "openid profile email",
        "state": _derived(secret, "state"),
        "nonce": _derived(secret, "nonce"),
        "code_challenge": _digest(_derived(secret, "verifier")),
        "code_challenge_method": "S256",
    }
    try:
        endpoint = issuer.metadata().authorization_endpoint
    except IssuerAwayError:
        raise _away() from None
    mark = "&" if "?" in endpoint else "?"
    answer = RedirectResponse(f"{endpoint}{mark}{urlencode(asked)}", HTTPStatus.SEE_OTHER)
    secure = origin.startswith("https:")
    answer.set_cookie(
        _cookie(origin), secret, max_age=COOKIE_SECONDS, path="/", secure=secure, httponly=True, samesite="lax"
    )
    return answer


@router.get(CALLBACK)
def finish(  # noqa: PLR0913 - what the sign-in service may send
    *,
    request: Request,
    response: Response,
    runtime: TheRuntime,
    code: Shown = None,
    state: Shown = None,
    iss: Shown = None,
    error: Shown = None,
) -> SignedIn:
    """Where the sign-in service sends the browser back to."""
    issuer, client_id, origin = _flow(runtime)
    secret = request.cookies.get(_cookie(origin))
    if secret is None or state is None or not hmac.compare_digest(state.encode(), _derived(secret, "state").encode()):
        detail = "This is not the end of a sign-in that this browser began: begin again at /auth/login."
        raise _refused(detail)
    if error is not None or code is None or iss not in {None, issuer.settings.issuer}:
        detail = "The sign-in service did not let you in: begin again at /auth/login."
        raise _refused(detail)
    try:
        tokens = issuer.exchange(
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": origin + CALLBACK,
                "code_verifier": _derived(secret, "verifier"),
            }
        )
        person = _person(issuer, client_id, tokens, secret)
    except TokenRefusedError as refusal:
        detail = f"The sign-in could not be finished ({refusal}): begin again at /auth/login."
        raise _refused(detail) from None
    except IssuerAwayError:
        raise _away() from None
    response.delete_cookie(_cookie(origin), path="/", secure=origin.startswith("https:"), httponly=True, samesite="lax")
    return _welcomed(runtime, person, tokens, request.state.request_id)


def _flow(runtime: Runtime) -> tuple[Issuer, str, str]:
    settings: IssuerSettings | None = runtime.issuer.settings if runtime.issuer else None
    if runtime.issuer is None or settings is None or settings.client_id is None or settings.public_url is None:
        detail = (
            "Signing in by browser is not set up here (OIDC_CLIENT_ID, API_PUBLIC_URL); bring an access token or a key."
        )
        raise problems.not_found(detail)
    return runtime.issuer, settings.client_id, settings.public_url


def _person(issuer: Issuer, client_id: str, tokens: dict[str, object], secret: str) -> Profile:
    identity = tokens.get("id_token")
    if not isinstance(identity, str) or not isinstance(tokens.get("access_token"), str):
        raise IssuerAwayError
    claims = issuer.claims(identity, client_id)
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), _derived(secret, "nonce").encode()):
        message = "its nonce is another one's"
        raise TokenRefusedError(message)
    return profile(claims)


def _welcomed(runtime: Runtime, person: Profile, tokens: dict[str, object], request_id: str) -> SignedIn:
    cause = Cause(actor=person.user_id, source="api", caused_by=f"request:{request_id}")
    with runtime.database.write() as session:
        created = users.sign_in(Change(session, runtime.clock(), cause), person, runtime.catalog)
        session.flush()
        own = [responses.organization(entry) for entry in queries.seats(session, person.user_id)]
    lifetime = tokens.get("expires_in")
    return SignedIn(
        user_id=person.user_id,
        created=created.id if created else None,
        organizations=own,
        access_token=str(tokens["access_token"]),
        token_type="Bearer",  # noqa: S106 - the scheme's name
        expires_in=lifetime if isinstance(lifetime, int) else None,
    )


def _cookie(origin: str) -> str:
    """The prefix has browsers refuse it from anybody but this very host."""
    return "__Host-sign-in" if origin.startswith("https:") else "sign-in"


def _derived(secret: str, purpose: Purpose) -> str:
    return _encoded(hmac.digest(secret.encode(), purpose.encode(), "sha256"))


def _digest(verifier: str) -> str:
    return _encoded(hashlib.sha256(verifier.encode()).digest())


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _refused(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, "sign-in-refused", detail)


def _away() -> ProblemError:
    return problems.unavailable("The sign-in service does not answer. Try again.")
