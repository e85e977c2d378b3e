"""A sign-in service that accepts connections and answers nothing: only who needs it waits, for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from api.issuer_client import ISSUER_TIMEOUT_SECONDS
from api.oidc import MAX_REQUESTS_WAITING_FOR_ISSUER
from tests.support.api_client import Api, begin, browser
from tests.support.oidc_provider import Key, OidcProvider

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)

FORGED = 60
OTHERS_SECONDS = 2.0
ENOUGH_SECONDS = ISSUER_TIMEOUT_SECONDS + 3
Timed = tuple[httpx.Response, float]


@pytest.fixture
def hangs(oidc_provider: OidcProvider) -> Iterator[None]:
    """From before the API starts."""
    with oidc_provider.hold():
        yield


def timed(call: Callable[[], httpx.Response]) -> Timed:
    began = time.monotonic()
    return call(), time.monotonic() - began


@contextmanager
def sent_beside(api: Api, count: int, path: str, headers: dict[str, str]) -> Iterator[list[Timed]]:
    """These requests at once, each on a connection of its own; their answers are there after the ``with`` block."""
    answers: list[Timed] = []
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=0)
    with (
        httpx.Client(base_url=api.url, trust_env=False, timeout=60, limits=limits) as http,
        ThreadPoolExecutor(count) as pool,
    ):
        sent = [pool.submit(timed, lambda: http.get(path, headers=headers)) for _ in range(count)]
        time.sleep(0.5)
        yield answers
        answers += [each.result() for each in sent]


def others_wait_for_nothing(api: Api, headers: dict[str, str]) -> None:
    for _ in range(5):
        answer, took = timed(lambda: api.get("/api/organizations", headers))
        assert answer.status_code == 200
        assert took < OTHERS_SECONDS


def forged(api: Api) -> dict[str, str]:
    return {"Authorization": f"Bearer {api.oidc_provider.token(key=Key('unheard of'))}"}


@pytest.mark.slow
@pytest.mark.usefixtures("hangs")
def test_forged_tokens_keep_no_service_waiting(api: Api) -> None:
    service = api.as_service()
    with sent_beside(api, FORGED, "/api/organizations", forged(api)) as answers:
        others_wait_for_nothing(api, service)
    assert {answer.status_code for answer, _ in answers} == {503}
    assert {answer.headers["retry-after"] for answer, _ in answers} == {"2"}
    assert max(took for _, took in answers) < ENOUGH_SECONDS
    assert len(api.oidc_provider.asked) <= 2  # at the start, and for all of them together


@pytest.mark.slow
@pytest.mark.usefixtures("hangs")
def test_tokens_beyond_number_are_answered_at_once(api: Api) -> None:
    count = MAX_REQUESTS_WAITING_FOR_ISSUER + 30
    with sent_beside(api, count, "/api/organizations", forged(api)) as answers:
        others_wait_for_nothing(api, api.as_service())
    assert {answer.status_code for answer, _ in answers} == {503}
    waited = sum(took > OTHERS_SECONDS for _, took in answers)  # for the fetch that began with the API
    assert 0 < waited <= MAX_REQUESTS_WAITING_FOR_ISSUER


def test_users_whose_key_is_known_go_on(api: Api) -> None:
    known = api.as_("u1")
    assert api.get("/api/organizations", known).status_code == 200
    with api.oidc_provider.hold(), sent_beside(api, FORGED, "/api/organizations", forged(api)):
        others_wait_for_nothing(api, known)


@pytest.mark.slow
def test_sign_ins_by_browser_keep_nobody_waiting(api: Api) -> None:
    with browser(api) as each:
        own = begin(each)
        cookie = f"sign-in={each.cookies['sign-in']}"
    path = f"/auth/callback?{httpx.QueryParams(own)}"
    with api.oidc_provider.hold():
        with sent_beside(api, FORGED, path, {"Cookie": cookie}) as answers:
            others_wait_for_nothing(api, api.as_service())
            others_wait_for_nothing(api, api.as_("u1"))
        assert {answer.status_code for answer, _ in answers} == {503}
        assert max(took for _, took in answers) < ENOUGH_SECONDS


@pytest.mark.slow
def test_a_waiting_request_checks_its_token_without_the_service(api: Api) -> None:
    org_id = api.organization(u1="owner")
    headers = api.as_("u1")
    assert api.get("/api/organizations", headers).status_code == 200
    with api.oidc_provider.hold():
        answer, took = timed(lambda: api.get(f"/api/organizations/{org_id}/sync", headers, wait="2s"))
    assert answer.status_code == 200
    assert took < 2 + OTHERS_SECONDS
