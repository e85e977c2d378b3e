"""Pages of other origins: nobody's unless they are named, and then without cookies."""

from __future__ import annotations

import pytest

from core.db.models.access import User
from tests.support.api_client import Api
from worker.config import api as api_settings
from worker.config.settings import SettingsError

PAGE = "https://app.acme.test"

one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def origins() -> list[str]:
    return [PAGE]


def preflight(api: Api, origin: str) -> tuple[int, str | None]:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,idempotency-key,content-type",
    }
    answer = api.http.options("/api/organizations", headers=asked)
    return answer.status_code, answer.headers.get("access-control-allow-origin")


@one_database
def test_a_page_that_is_named_may_call_and_another_may_not(api: Api) -> None:
    assert preflight(api, PAGE) == (200, PAGE)
    assert preflight(api, "https://evil.test") == (400, None)
    called = api.get("/api/organizations", api.as_("u1") | {"Origin": PAGE})
    assert called.headers["access-control-allow-origin"] == PAGE
    assert "access-control-allow-credentials" not in called.headers
    assert "x-request-id" in called.headers["access-control-expose-headers"].lower()
    assert called.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in api.get("/healthz", {"Origin": "https://evil.test"}).headers
    refused = api.get("/api/organizations", {"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


def test_origins_are_read_from_the_environment_and_everybody_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_CORS_ORIGINS", f"{PAGE}, http://localhost:3000")
    assert api_settings.read().cors_origins == [PAGE, "http://localhost:3000"]
    for wrong in ("*", "https://*.acme.test", "http://app.acme.test", f"{PAGE}/", "app.acme.test", f"{PAGE},null"):
        monkeypatch.setenv("API_CORS_ORIGINS", wrong)
        with pytest.raises(SettingsError, match="API_CORS_ORIGINS"):
            api_settings.read()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_answer_names_the_host_that_the_request_names(api: Api) -> None:
    for path in ("/api/organizations/", "/healthz/", "/auth/login/"):
        answer = api.get(path, api.as_service() | {"Host": "evil.example"})
        assert answer.status_code == 404
        assert "evil.example" not in str(dict(answer.headers))


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("email", ["a\x00b@acme.test", "a\ud800@acme.test", "a\u202eb@acme.test"])
def test_a_verified_address_that_cannot_be_stored_is_left_out(api: Api, email: str) -> None:
    token = api.oidc_provider.token("u1", name="a\x00\ud800b", email=email, email_verified=True)
    created = api.post("/api/organizations", {"name": "Acme"}, {"Authorization": f"Bearer {token}"})
    assert created.status_code == 201
    with api.database.read() as session:
        assert session.get_one(User, "u1").email is None
