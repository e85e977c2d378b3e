"""Which tokens open: those of the one sign-in service, for us, in time, by its present keys; and which keys."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from sqlalchemy import update

from api.issuer_client import IssuerSettings, IssuerUnavailableError
from api.oidc import (
    MIN_JWKS_FETCH_INTERVAL_SECONDS,
    TOKEN_CLOCK_SKEW_SECONDS,
    InvalidTokenError,
    Issuer,
    UnknownKeyError,
)
from core.access import api_keys
from core.access.users import UserProfile
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


def verified(issuer: Issuer, token: str) -> UserProfile:
    """As a request has its token checked."""

    async def check() -> UserProfile:
        await issuer.prepare(token)
        return issuer.verify_access_token(token)

    return asyncio.run(check())


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
    assert verified(issuer, oidc_provider.token("u1", name="Una")).name == "Una"
    assert verified(issuer, oidc_provider.token("u1", aud=["other", AUDIENCE])).user_id == "u1"


@pytest.mark.parametrize("header_type", ["JWT", "jwt", "at+jwt", "application/at+JWT"])
def test_a_token_of_a_kind_that_signs_in_opens(issuer: Issuer, oidc_provider: OidcProvider, header_type: str) -> None:
    token = oidc_provider.token("u1", header_type=header_type, typ="Bearer")
    assert verified(issuer, token).user_id == "u1"


@pytest.mark.parametrize("header_type", ["logout+jwt", "secevent+jwt", "dpop+jwt", "id+jwt"])
def test_a_token_whose_header_names_another_kind_is_refused(
    issuer: Issuer, oidc_provider: OidcProvider, header_type: str
) -> None:
    with pytest.raises(InvalidTokenError):
        verified(issuer, oidc_provider.token("u1", header_type=header_type))


@pytest.mark.parametrize("claims", BAD_CLAIMS, ids=lambda claims: str(next(iter(claims))))
def test_a_token_with_a_wrong_claim_is_refused(
    issuer: Issuer, oidc_provider: OidcProvider, claims: dict[str, Any]
) -> None:
    with pytest.raises(InvalidTokenError):
        verified(issuer, oidc_provider.token(**{"sub": "u1", **claims}))


@pytest.mark.parametrize(
    "forged",
    [
        lambda oidc_provider: unsigned(oidc_provider.token()),
        by_our_public_key,
        lambda oidc_provider: oidc_provider.token(key=Key(oidc_provider.keys[0].kid)),
        lambda oidc_provider: oidc_provider.token(key=Key("unheard of"), iat=int(time.time()) - 60),
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
        verified(issuer, forged(oidc_provider))


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"sub": None}, "its claim `sub` is missing"),
        ({"sub": 7}, "its claim `sub` is no text"),
        ({"sub": "a\x00"}, "its claim `sub` cannot be used as a user id"),
        ({"aud": None}, "its claim `aud` is missing"),
        ({"aud": "secret"}, "its claim `aud` is for another audience"),
        ({"iss": "https://secret.test"}, "its claim `iss` is not OIDC_ISSUER"),
        ({"iat": None}, "its claim `iat` is missing"),
        (
            {"iat": int(time.time()) + 9999},
            r"it was issued in the future: its claim `iat` is \d+ s ahead of our clock",
        ),
        ({"nbf": int(time.time()) + 86_400}, r"it is not valid yet: its claim `nbf` is \d+ s ahead of our clock"),
        ({"exp": int(time.time()) - 60}, r"it expired \d\d+ s ago"),
        ({"exp": "secret"}, "its claim `exp` is no number"),
        ({"nbf": "secret"}, "its claim `nbf` is no number"),
        ({"iat": "secret"}, "its claim `iat` is no number"),
        ({"jti": 5}, "its claim `jti` is no text"),
    ],
)
def test_the_claim_that_is_wrong_is_named_and_not_repeated(
    issuer: Issuer, oidc_provider: OidcProvider, claims: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        verified(issuer, oidc_provider.token(**{"sub": "u1", **claims}))
    assert re.fullmatch(said, str(caught.value))


def test_nothing_is_said_of_the_claims_of_a_token_that_the_service_did_not_sign(
    issuer: Issuer, oidc_provider: OidcProvider
) -> None:
    forged = Key(oidc_provider.keys[0].kid)
    with pytest.raises(InvalidTokenError) as caught:
        verified(issuer, oidc_provider.token("u1", key=forged, aud="another"))
    assert str(caught.value) == "its signature is wrong"


@pytest.mark.parametrize(
    ("email_verified", "trusts", "email"),
    [
        (True, False, "u1@acme.test"),
        (None, False, None),
        (None, True, "u1@acme.test"),
        (False, True, None),
        ("true", True, None),
    ],
)
def test_an_address_without_email_verified_counts_only_if_the_settings_say_so(
    oidc_provider: OidcProvider, email_verified: object, *, trusts: bool, email: str | None
) -> None:
    issuer = Issuer(IssuerSettings(issuer=oidc_provider.issuer, audience=AUDIENCE, trusts_emails=trusts))
    token = oidc_provider.token("u1", email="u1@acme.test", email_verified=email_verified)
    profile = verified(issuer, token)
    assert profile.email == email
    assert profile.is_email_unverified is (email_verified in {False, "true"})


class TokenClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticking() -> TokenClock:
    return TokenClock()


@pytest.fixture
def keyed(oidc_provider: OidcProvider, ticking: TokenClock) -> Issuer:
    return Issuer(IssuerSettings(issuer=oidc_provider.issuer, audience=AUDIENCE), ticking)


def fetches(oidc_provider: OidcProvider) -> int:
    return sum(path.endswith("/keys") for path in oidc_provider.asked)


def test_keys_are_fetched_once_and_a_rotation_is_noticed(
    keyed: Issuer, oidc_provider: OidcProvider, ticking: TokenClock
) -> None:
    for _ in range(5):
        verified(keyed, oidc_provider.token())
    assert fetches(oidc_provider) == 1
    old = oidc_provider.token(iat=int(time.time()) - 60)
    oidc_provider.rotate()
    ticking.now += 10
    verified(keyed, oidc_provider.token())
    assert fetches(oidc_provider) == 2
    ticking.now += 10
    with pytest.raises(InvalidTokenError):
        verified(keyed, old)


def test_unknown_keys_do_not_have_us_knock_at_the_service_again_and_again(
    keyed: Issuer, oidc_provider: OidcProvider, ticking: TokenClock
) -> None:
    verified(keyed, oidc_provider.token())
    ticking.now += 10
    unknown = Key("unheard of")
    for number in range(20):
        with pytest.raises(InvalidTokenError):
            verified(keyed, oidc_provider.token(key=unknown, iat=int(time.time()) - 60))
        with pytest.raises(UnknownKeyError):
            verified(keyed, oidc_provider.token(key=unknown, iat=int(time.time()) + number))
    assert fetches(oidc_provider) == 2


def test_a_valid_token_of_a_new_key_is_not_refused_between_two_fetches(
    keyed: Issuer, oidc_provider: OidcProvider, ticking: TokenClock
) -> None:
    verified(keyed, oidc_provider.token())
    oidc_provider.rotate()
    ticking.now += 1.5
    token = oidc_provider.token("u1")
    with pytest.raises(UnknownKeyError) as caught:
        verified(keyed, token)
    assert caught.value.retry_after == MIN_JWKS_FETCH_INTERVAL_SECONDS - 1.5
    assert fetches(oidc_provider) == 1
    ticking.now += caught.value.retry_after
    assert verified(keyed, token).user_id == "u1"


@pytest.mark.parametrize(
    ("issued", "error"),
    [
        (lambda now: now - TOKEN_CLOCK_SKEW_SECONDS - 5, InvalidTokenError),
        (lambda now: now - TOKEN_CLOCK_SKEW_SECONDS + 5, UnknownKeyError),  # its clock may be behind ours
        (lambda now: now + 9999, UnknownKeyError),
        (lambda _: float("inf"), UnknownKeyError),
        (lambda _: float("nan"), InvalidTokenError),
        (lambda _: 10**400, UnknownKeyError),
        (str, InvalidTokenError),
        (lambda _: None, InvalidTokenError),
        (lambda _: [], InvalidTokenError),
    ],
)
def test_a_token_of_an_unknown_key_is_refused_only_if_it_is_older_than_the_keys(
    issuer: Issuer, oidc_provider: OidcProvider, issued: Callable[[int], object], error: type[Exception]
) -> None:
    token = oidc_provider.token(key=Key("unheard of"), iat=issued(int(time.time())), exp=int(time.time()) + 99)
    with pytest.raises((InvalidTokenError, UnknownKeyError)) as caught:
        verified(issuer, token)
    assert type(caught.value) is error


@pytest.mark.slow
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_token_of_a_new_key_gets_503_until_the_keys_are_fetched_again(api: Api) -> None:
    assert api.get("/api/organizations", api.as_("u1")).status_code == 200
    known = api.oidc_provider.keys
    api.oidc_provider.rotate()
    try:
        headers = api.as_("u1")
        answer = api.get("/api/organizations", headers)
        assert answer.status_code == 503
        assert 1 <= int(answer.headers["retry-after"]) <= MIN_JWKS_FETCH_INTERVAL_SECONDS
        assert "which the API has not fetched yet" in answer.json()["detail"]
        time.sleep(int(answer.headers["retry-after"]))
        assert api.get("/api/organizations", headers).status_code == 200
    finally:
        api.oidc_provider.keys = known


def test_known_keys_outlast_a_short_absence_of_the_service(
    keyed: Issuer, oidc_provider: OidcProvider, ticking: TokenClock
) -> None:
    verified(keyed, oidc_provider.token())
    oidc_provider.away = True
    ticking.now += 1800
    assert verified(keyed, oidc_provider.token("u1")).user_id == "u1"
    ticking.now += 1801
    with pytest.raises(IssuerUnavailableError):
        verified(keyed, oidc_provider.token())
    oidc_provider.away = False
    ticking.now += 10
    verified(keyed, oidc_provider.token())


@pytest.fixture
def away(oidc_provider: OidcProvider) -> None:
    """The service is away before the API starts."""
    oidc_provider.away = True


@pytest.mark.usefixtures("away")
def test_nobody_is_refused_because_the_service_is_away(api: Api) -> None:
    answer = api.get("/api/organizations", api.as_("u1"))
    assert answer.status_code == 503
    assert api.get("/api/organizations", api.as_service()).is_success
    (line,) = [line for line in api.log if line["event"] == "sign_in_service_unusable"]
    assert line["reason"] == f"{api.oidc_provider.issuer}/.well-known/openid-configuration answers 503"


def test_a_token_that_names_no_key_is_said_so_if_there_are_several(issuer: Issuer, oidc_provider: OidcProvider) -> None:
    nameless = jwt.encode({"sub": "u1"}, oidc_provider.keys[0].private, algorithm="RS256")
    oidc_provider.keys.append(Key("second"))
    try:
        with pytest.raises(InvalidTokenError, match="its header has no `kid`"):
            verified(issuer, nameless)
    finally:
        oidc_provider.keys.pop()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_what_does_not_open_is_answered_401_with_the_way_in(api: Api) -> None:
    nobodys = f"{api_keys.API_KEY_PREFIX}{'0' * 16}_{'A' * 43}"
    shown = ["", "Basic dTpw", "Bearer", "Bearer x", "Bearer bsk_x", f"Bearer {nobodys}", f"Basic {nobodys}"]
    for word in shown:
        answer = api.get("/api/organizations", {"Authorization": word} if word else None)
        assert answer.status_code == 401, word
        assert answer.headers["www-authenticate"].startswith('Bearer realm="billing-sync"')
    expired = {"Authorization": f"Bearer {api.oidc_provider.token('u1', exp=int(time.time()) - 60)}"}
    assert re.search(r"it expired 6\d s ago", api.get("/api/organizations", expired).json()["detail"])


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
