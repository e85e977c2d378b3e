"""Signing in by browser against a real provider: state, nonce and PKCE hold; the first time makes an organization."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from api.oidc import MIN_JWKS_FETCH_INTERVAL_SECONDS
from tests.support.api_client import Api, begin, browser


def sign_in(api: Api) -> httpx.Response:
    with browser(api) as each:
        return each.get("/auth/callback", params=begin(each))


def test_the_first_sign_in_makes_an_organization_and_later_ones_none(api: Api) -> None:
    first = sign_in(api).json()
    assert (first["user_id"], first["token_type"]) == ("alice", "Bearer")
    assert [(each["id"], each["name"], each["role"]) for each in first["organizations"]] == [
        (first["created"], "Alice's Organization", "owner")
    ]
    token = {"Authorization": f"Bearer {first['access_token']}"}
    assert api.get(f"/api/organizations/{first['created']}", token).is_success
    second = sign_in(api).json()
    assert (second["created"], len(second["organizations"])) == (None, 1)


def test_of_two_first_sign_ins_at_the_same_moment_one_makes_the_organization(api: Api) -> None:
    with browser(api) as one, browser(api) as other:
        ready = [(each, begin(each)) for each in (one, other)]
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda pair: pair[0].get("/auth/callback", params=pair[1]), ready))
    assert [answer.status_code for answer in answers] == [200, 200]
    created = [answer.json()["created"] for answer in answers]
    assert sorted(each is None for each in created) == [False, True]
    assert api.get("/api/users/alice/organizations", api.as_("alice")).json()["count"] == 1


def test_the_secret_of_a_sign_in_stays_in_the_browser(api: Api) -> None:
    with browser(api) as each:
        sent = each.get("/auth/login")
        cookie = sent.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        asked = parse_qs(urlsplit(sent.headers["location"]).query)
        assert asked["code_challenge_method"] == ["S256"]
        secret = each.cookies["sign-in"]
        assert secret not in sent.headers["location"]
        assert len({asked[name][0] for name in ("state", "nonce", "code_challenge")}) == 3


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_callback_that_this_browser_did_not_begin_opens_nothing(api: Api) -> None:
    with browser(api) as mine, browser(api) as theirs:
        stolen = begin(theirs)
        assert mine.get("/auth/callback", params=stolen).status_code == 400
        begin(mine)
        assert mine.get("/auth/callback", params=stolen).status_code == 400
        own = begin(mine)
        denied = {"error": "access_denied", "state": own["state"]}
        for changed in (own | {"state": "x"}, own | {"state": "é"}, own | {"code": stolen["code"]}, denied):
            assert mine.get("/auth/callback", params=changed).status_code == 400, changed
        del own["code"]
        assert mine.get("/auth/callback", params=own).status_code == 400
    assert api.get("/api/organizations", api.as_service()).json()["count"] == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_code_works_once_and_a_foreign_nonce_not_at_all(api: Api) -> None:
    with browser(api) as each:
        own = begin(each)
        cookie = dict(each.cookies)
        assert each.get("/auth/callback", params=own).is_success
        assert "sign-in" not in each.cookies
        each.cookies.update(cookie)
        assert each.get("/auth/callback", params=own).status_code == 400
    with browser(api) as each:
        api.oidc_provider.nonce_is = "another"
        refused = each.get("/auth/callback", params=begin(each))
    assert refused.status_code == 400
    assert "nonce" in refused.json()["detail"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_provider_that_is_away_is_said_to_be_away(api: Api) -> None:
    with browser(api) as each:
        own = begin(each)
        api.oidc_provider.away = True
        answer = each.get("/auth/callback", params=own)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_sign_in_with_a_key_that_is_not_fetched_yet_may_start_again(api: Api) -> None:
    known = api.oidc_provider.keys
    with browser(api) as each:
        own = begin(each)
        api.oidc_provider.rotate()
        try:
            answer = each.get("/auth/callback", params=own)
        finally:
            api.oidc_provider.keys = known
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["retry-after"]) <= MIN_JWKS_FETCH_INTERVAL_SECONDS
    assert "Start again at /auth/login after the number of seconds" in answer.json()["detail"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_only_a_verified_address_becomes_the_billing_email(api: Api) -> None:
    api.oidc_provider.signs_in = {"sub": "a", "name": "A", "email": "a@acme.test"}
    first = sign_in(api).json()["created"]
    api.oidc_provider.signs_in = {"sub": "b", "name": "B", "email": "b@acme.test", "email_verified": True}
    second = sign_in(api).json()["created"]
    emails = [
        api.get(f"/api/v1/org/{org_id}/settings", api.as_service()).json()["settings"]["billing_email"]
        for org_id in (first, second)
    ]
    assert emails == [None, "b@acme.test"]
