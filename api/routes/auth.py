"""Browser sign-in: the code flow with state, nonce and PKCE. The first sign-in creates an organization.

State, nonce and PKCE verifier are derived from one random secret that is only in the browser's cookie. So nothing is
stored here, any process may complete a sign-in that another started, and a callback without its own cookie is
rejected. The code can be used only once, as the sign-in service ensures.
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
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse

from api import problems
from api.context import ApiContext, ContextDep
from api.issuer_client import IssuerSettings, IssuerUnavailableError
from api.oidc import CodeTokens, InvalidTokenError, Issuer, UnknownKeyError
from api.problems import ProblemError
from api.routes.invitations import ReceivedInvitationResponse, received_invitation_responses
from api.routing import ApiRoute
from api.schemas import responses
from api.schemas.responses import OrganizationResponse
from core.access import users
from core.access.users import UserProfile
from core.events.event_types import Cause, ChangeContext
from core.organizations import queries

router = APIRouter(tags=["sign-in"], route_class=ApiRoute)

SIGN_IN_COOKIE_SECONDS: Final = 600
CALLBACK_PATH: Final = "/auth/callback"
_NEW_KEY: Final = (
    "The sign-in service may sign with a new key, which the API has not fetched yet. Start again at /auth/login after "
    "the number of seconds in Retry-After."
)
SIGN_IN_UNAVAILABLE: Final = (
    "The sign-in service does not respond as expected. Start again at /auth/login later. An operator finds the reason "
    "in the log of the API and with `billing-sync doctor`."
)

SecretPurpose = Literal["state", "nonce", "verifier"]
CallbackParameter = Annotated[str | None, Query(max_length=4096)]


class SignInResponse(BaseModel):
    """Send ``access_token`` as `Authorization: Bearer …`.

    ``created``: the organization created by this sign-in, the first one of a user without an organization. None is
    created for a user with invitations, who accepts or declines them: `POST /api/organizations` creates one later.
    """

    user_id: str
    created: str | None
    organizations: list[OrganizationResponse]
    invitations: list[ReceivedInvitationResponse]
    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int | None


@router.get("/auth/login", status_code=303, response_class=RedirectResponse)
async def login(context: ContextDep) -> Response:
    """Redirect to the sign-in service."""
    issuer, client_id, origin = _browser_sign_in_settings(context)
    secret = secrets.token_urlsafe(32)
    parameters = {
        "response_type": "code",
        "client_id": client_id,
        "redirect_uri": origin + CALLBACK_PATH,
        "scope": "openid profile email",
        "state": _derive(secret, "state"),
        "nonce": _derive(secret, "nonce"),
        "code_challenge": _code_challenge(_derive(secret, "verifier")),
        "code_challenge_method": "S256",
    }
    try:
        endpoint = (await issuer.metadata()).authorization_endpoint
    except IssuerUnavailableError:
        raise _issuer_unavailable() from None
    separator = "&" if "?" in endpoint else "?"
    response = RedirectResponse(f"{endpoint}{separator}{urlencode(parameters)}", HTTPStatus.SEE_OTHER)
    secure = origin.startswith("https:")
    response.set_cookie(
        _cookie_name(origin),
        secret,
        max_age=SIGN_IN_COOKIE_SECONDS,
        path="/",
        secure=secure,
        httponly=True,
        samesite="lax",
    )
    return response


@router.get(CALLBACK_PATH)
async def callback(  # noqa: PLR0913 - what the sign-in service may send
    *,
    request: Request,
    response: Response,
    context: ContextDep,
    code: CallbackParameter = None,
    state: CallbackParameter = None,
    iss: CallbackParameter = None,
    error: CallbackParameter = None,
) -> SignInResponse:
    """Redirect target of the sign-in service."""
    issuer, client_id, origin = _browser_sign_in_settings(context)
    secret = request.cookies.get(_cookie_name(origin))
    if secret is None or state is None or not hmac.compare_digest(state.encode(), _derive(secret, "state").encode()):
        detail = "This browser did not start this sign-in. Start again at /auth/login."
        raise _sign_in_refused(detail)
    if error is not None or code is None or iss not in {None, issuer.settings.issuer}:
        detail = "The sign-in service rejected the sign-in. Start again at /auth/login."
        raise _sign_in_refused(detail)
    try:
        tokens = await issuer.exchange_code(
            {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": origin + CALLBACK_PATH,
                "code_verifier": _derive(secret, "verifier"),
            }
        )
        user = await _user_from_tokens(issuer, client_id, tokens, secret)
    except InvalidTokenError as refusal:
        detail = f"The sign-in could not be completed ({refusal}). Start again at /auth/login."
        raise _sign_in_refused(detail) from None
    except UnknownKeyError as unknown:
        raise problems.unavailable(_NEW_KEY, unknown.retry_after) from None
    except IssuerUnavailableError:
        raise _issuer_unavailable() from None
    response.delete_cookie(
        _cookie_name(origin), path="/", secure=origin.startswith("https:"), httponly=True, samesite="lax"
    )
    return await run_in_threadpool(_sign_in, context, user, tokens, request.state.request_id)


def _browser_sign_in_settings(context: ApiContext) -> tuple[Issuer, str, str]:
    settings: IssuerSettings | None = context.issuer.settings if context.issuer else None
    if context.issuer is None or settings is None or settings.client_id is None or settings.public_url is None:
        detail = (
            "Browser sign-in is not configured (OIDC_CLIENT_ID, API_PUBLIC_URL). Use an access token or an API key."
        )
        raise problems.not_found(detail)
    return context.issuer, settings.client_id, settings.public_url


async def _user_from_tokens(issuer: Issuer, client_id: str, tokens: CodeTokens, secret: str) -> UserProfile:
    await issuer.prepare(tokens.id_token)
    claims = issuer.verified_claims(tokens.id_token, client_id)
    nonce = claims.get("nonce")
    if not isinstance(nonce, str) or not hmac.compare_digest(nonce.encode(), _derive(secret, "nonce").encode()):
        message = "its nonce belongs to another sign-in"
        raise InvalidTokenError(message)
    return issuer.profile(claims)


def _sign_in(context: ApiContext, user: UserProfile, tokens: CodeTokens, request_id: str) -> SignInResponse:
    cause = Cause(actor=user.user_id, source="api", caused_by=f"request:{request_id}")
    with context.database.write() as session:
        created = users.sign_in(ChangeContext(session, context.clock(), cause), user, context.catalog)
        session.flush()
        organizations = [
            responses.organization_response(entry) for entry in queries.memberships_of_user(session, user.user_id)
        ]
        invitations = received_invitation_responses(session, user, context.clock())
    return SignInResponse(
        user_id=user.user_id,
        created=created.id if created else None,
        organizations=organizations,
        invitations=invitations,
        access_token=tokens.access_token,
        token_type="Bearer",  # noqa: S106 - the scheme's name
        expires_in=tokens.expires_in,
    )


def _cookie_name(origin: str) -> str:
    """With the prefix, browsers accept the cookie from this very host only."""
    return "__Host-sign-in" if origin.startswith("https:") else "sign-in"


def _derive(secret: str, purpose: SecretPurpose) -> str:
    return _base64url(hmac.digest(secret.encode(), purpose.encode(), "sha256"))


def _code_challenge(verifier: str) -> str:
    return _base64url(hashlib.sha256(verifier.encode()).digest())


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _sign_in_refused(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, "sign-in-refused", detail)


def _issuer_unavailable() -> ProblemError:
    return problems.unavailable(SIGN_IN_UNAVAILABLE)
