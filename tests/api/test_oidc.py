"""Which tokens open: those of the one sign-in service, for us, in time, by its present keys; and which keys."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from sqlalchemy import update

from api.oidc import InvalidTokenError, Issuer, IssuerSettings, IssuerUnavailableError
from core.access import api_keys
from core.common.clock import utc_now
from core.db.models.access import ApiKey
from tests.support.api_client import Api
from tests.support.oidc_provider import AUDIENCE, Key, OidcProvider

BAD_CLAIMS: list[dict[str, Any]] = [
    {"iss": "http://127.0.0.1:1/realms/acme"},
    {"aud": "another"},
    {"aud": None},
    {"exp": int(time.time()) - 60},
    {"exp": None},
    {"iat": None},
    {"iat": int(time.time()) + 86_400},
    {"nbf": int(time.time()) + 86_400},
    {"sub": None},
    {"sub": ""},
    {"sub": 7},
    {"sub": "x" * 256},
    {"sub": "a\x00"},
    {"exp": "soon"},
    {"typ": "ID"},
    {"typ": "Refresh"},
    {"typ": "Logout"},
    {"typ": "Offline"},
    {"events": {"http://schemas.openid.net/event/backchannel-logout": {}}},
    {"events": 1},
    {"sub": " u1"},
]


def unsigned(token: str) -> str:
    head = base64.urlsafe_b64encode(json.dumps({"alg": "none", "typ": "JWT"}).encode()).decode().rstrip("=")
    return f"{head}.{token.split('.')[1]}."


def by_our_public_key(oidc_provider: OidcProvider) -> str:
    """What fools a checker that takes the algorithm from the token: HMAC with the public key as its secret."""
    public = oidc_provider.keys[0].private.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    payload = jwt.decode(oidc_provider.token(), options={"verify_signature": False})
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT", "kid": oidc_provider.keys[0].kid}, payload)
    ]
    hmac = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = hmac.sign(".".join(parts).encode(), pem)
    return ".".join([*parts, base64.urlsafe_b64encode(signature).decode().rstrip("=")])


def test_a_token_of_the_service_for_us_opens(issuer: Issuer, oidc_provider: OidcProvider) -> None:
    assert issuer.verify_access_token(oidc_provider.token("u1", name="Una")).name == "Una"
    assert issuer.verify_access_token(oidc_provider.token("u1", aud=["other", AUDIENCE])).user_id == "u1"


@pytest.mark.parametrize("header_type", ["JWT", "jwt", "at+jwt", "application/at+JWT"])
def test_a_token_of_a_kind_that_signs_in_opens(issuer: Issuer, oidc_provider: OidcProvider, header_type: str) -> None:
    token = oidc_provider.token("u1", header_type=header_type, typ="Bearer")
    assert issuer.verify_access_token(token).user_id == "u1"


@pytest.mark.parametrize("header_type", ["logout+jwt", "secevent+jwt", "dpop+jwt", "id+jwt"])
def test_a_token_whose_header_names_another_kind_is_refused(
    issuer: Issuer, oidc_provider: OidcProvider, header_type: str
) -> None:
    with pytest.raises(InvalidTokenError):
        issuer.verify_access_token(oidc_provider.token("u1", header_type=header_type))


@pytest.mark.parametrize("claims", BAD_CLAIMS, ids=lambda claims: str(next(iter(claims))))
def test_a_token_with_a_wrong_claim_is_refused(
    issuer: Issuer, oidc_provider: OidcProvider, claims: dict[str, Any]
) -> None:
    with pytest.raises(InvalidTokenError):
        issuer.verify_access_token(oidc_provider.token(**{"sub": "u1", **claims}))


@pytest.mark.parametrize(
    "forged",
    [
        lambda oidc_provider: unsigned(oidc_provider.token()),
        by_our_public_key,
        lambda oidc_provider: oidc_provider.token(key=Key(oidc_provider.keys[0].kid)),
        lambda oidc_provider: oidc_provider.token(key=Key("unheard of")),
        lambda oidc_provider: oidc_provider.token()[:-8] + "AAAAAAAA",
        lambda oidc_provider: oidc_provider.token().replace(".", "", 1),
        lambda _: "x",
        lambda _: "",
        lambda _: "é.é.é",
    ],
)
def test_a_token_that_was_not_signed_by_the_service_is_refused(
    issuer: Issuer, oidc_provider: OidcProvider, forged: Callable[[OidcProvider], str]
) -> None:
    with pytest.raises(InvalidTokenError):
        issuer.verify_access_token(forged(oidc_provider))


class TokenClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticking() -> TokenClock:
    return TokenClock()


@pytest.fixture
def keyed(oidc_provider: OidcProvider, ticking: TokenClock) -> Iterator[Issuer]:
    opened = Issuer(IssuerSettings(issuer=oidc_provider.issuer, audience=AUDIENCE), ticking)
    yield opened
    opened.close()


def fetches(oidc_provider: OidcProvider) -> int:
    return sum(path.endswith("/keys") for path in oidc_provider.asked)


def test_keys_are_fetched_once_and_a_rotation_is_noticed(
    keyed: Issuer, oidc_provider: OidcProvider, ticking: TokenClock
) -> None:
    for _ in range(5):
        keyed.verify_access_token(oidc_provider.token())
    assert fetches(oidc_provider) == 1
    old = oidc_provider.token()
    oidc_provider.rotate()
    ticking.now += 10
    keyed.verify_access_token(oidc_provider.token())
    assert fetches(oidc_provider) == 2
    ticking.now += 10
    with pytest.raises(InvalidTokenError):
        keyed.verify_access_token(old)


def test_unknown_keys_do_not_have_us_knock_at_the_service_again_and_again(
    keyed: Issuer, oidc_provider: OidcProvider, ticking: TokenClock
) -> None:
    keyed.verify_access_token(oidc_provider.token())
    ticking.now += 10
    for _ in range(20):
        with pytest.raises(InvalidTokenError):
            keyed.verify_access_token(oidc_provider.token(key=Key("unheard of")))
    assert fetches(oidc_provider) == 2


def test_known_keys_outlast_a_short_absence_of_the_service(
    keyed: Issuer, oidc_provider: OidcProvider, ticking: TokenClock
) -> None:
    keyed.verify_access_token(oidc_provider.token())
    oidc_provider.away = True
    ticking.now += 1800
    assert keyed.verify_access_token(oidc_provider.token("u1")).user_id == "u1"
    ticking.now += 1801
    with pytest.raises(IssuerUnavailableError):
        keyed.verify_access_token(oidc_provider.token())
    oidc_provider.away = False
    ticking.now += 10
    keyed.verify_access_token(oidc_provider.token())


def test_nobody_is_refused_because_the_service_is_away(api: Api) -> None:
    api.oidc_provider.away = True
    answer = api.get("/api/organizations", api.as_("u1"))
    assert answer.status_code == 503
    assert api.get("/api/organizations", api.as_service()).is_success


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_does_not_open_is_answered_401_with_the_way_in(api: Api) -> None:
    nobodys = f"{api_keys.API_KEY_PREFIX}{'0' * 16}_{'A' * 43}"
    shown = ["", "Basic dTpw", "Bearer", "Bearer x", "Bearer bsk_x", f"Bearer {nobodys}", f"Basic {nobodys}"]
    for word in shown:
        answer = api.get("/api/organizations", {"Authorization": word} if word else None)
        assert answer.status_code == 401, word
        assert answer.headers["www-authenticate"].startswith('Bearer realm="billing-sync"')
    expired = {"Authorization": f"Bearer {api.oidc_provider.token('u1', exp=int(time.time()) - 60)}"}
    assert "it has expired" in api.get("/api/organizations", expired).json()["detail"]


def test_a_key_opens_until_it_expires(api: Api) -> None:
    headers = api.as_service("organizations:read")
    assert api.get("/api/organizations", headers).is_success
    with api.database.write() as session:
        session.execute(update(ApiKey).values(expires_at=utc_now()))
    refused = api.get("/api/organizations", headers)
    assert (refused.status_code, refused.json()["detail"]) == (
        401,
        "The API key is unknown, has been revoked or has expired.",
    )


def test_a_key_opens_until_it_is_revoked(api: Api) -> None:
    headers = api.as_service("organizations:read")
    assert api.get("/api/organizations", headers).is_success
    with api.database.write() as session:
        for report in api_keys.list_all(session):
            api_keys.revoke(session, report.id, utc_now())
    assert api.get("/api/organizations", headers).status_code == 401
