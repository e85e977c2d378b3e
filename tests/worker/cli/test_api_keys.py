"""Keys of services on the command line, and the API that they open, as an operator meets both."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest

from tests.support import console

pytestmark = pytest.mark.processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


def make(folder: Path, *scopes: str) -> str:
    words = [word for scope in scopes for word in ("--scope", scope)]
    made = console.run(folder, "keys", "create", "signup", *words)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


def test_a_key_is_shown_once_and_listed_without_itself(folder: Path) -> None:
    key = make(folder, "organizations:read", "events:write")
    assert key.startswith("bsk_")
    assert "\n" not in key
    listed = console.run(folder, "keys", "list", "--json")
    (report,) = json.loads(listed.stdout)["keys"]
    assert (report["name"], report["scopes"]) == ("signup", ["organizations:read", "events:write"])
    assert key not in listed.stdout + console.run(folder, "keys", "list").stdout
    assert console.run(folder, "keys", "revoke", report["id"]).returncode == 0
    assert json.loads(console.run(folder, "keys", "list", "--json").stdout)["keys"][0]["revoked_at"] is not None


def test_a_key_is_replaced_by_another_of_its_account(folder: Path) -> None:
    make(folder, "events:write")
    words = ("keys", "create", "signup-2027", "--scope", "events:write", "--account", "signup", "--expires-in", "30")
    made = json.loads(console.run(folder, *words, "--json").stdout)
    first, second = json.loads(console.run(folder, "keys", "list", "--json").stdout)["keys"]
    assert (second["account_id"], second["account_name"]) == (first["account_id"], "signup")
    assert (first["expires_at"], second["expires_at"] is not None) == (None, True)
    assert made["id"] == second["id"]
    assert console.run(folder, "inbox", "sources").stdout.startswith("No source")
    assert console.run(folder, "inbox", "bind", "/signup", "--account", first["account_id"]).returncode == 0
    (source,) = json.loads(console.run(folder, "inbox", "sources", "--json").stdout)["sources"]
    assert (source["source"], source["account_name"]) == ("/signup", "signup")
    unknown = console.run(folder, "inbox", "bind", "/signup", "--account", "nobody")
    assert (unknown.returncode, "there is no service account 'nobody'" in unknown.stderr) == (2, True)


def test_an_endpoint_is_given_to_an_account(folder: Path) -> None:
    make(folder, "webhooks:write")
    secret = {"WEBHOOK_SIGNING_SECRET": "x1y2z3" * 8}
    words = ("webhooks", "add", "https://hooks.example.com", "--json")
    made = json.loads(console.run(folder, *words, settings=secret).stdout)
    assert made["account_id"] is None
    assert console.run(folder, "webhooks", "assign", made["id"], "--account", "signup").returncode == 0
    (listed,) = json.loads(console.run(folder, "webhooks", "list", "--json").stdout)["webhooks"]
    assert listed["account_id"] is not None


def test_what_is_no_key_or_scope_is_said_so(folder: Path) -> None:
    unknown = console.run(folder, "keys", "revoke", "nothing")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    wrong = console.run(folder, "keys", "create", "signup", "--scope", "everything")
    assert (wrong.returncode, "scope must be one of organizations:read" in wrong.stderr) == (2, True)
    assert console.run(folder, "keys", "create", "signup").returncode == 2
    assert console.run(folder, "keys", "list").stdout.startswith("There are no keys")


def api_url(running: console.ConsoleProcess) -> str:
    running.wait_for_output("/docs;")
    return next(
        word.rstrip(";").removeprefix("(") for word in running.output.split() if word.rstrip(";").endswith("/docs")
    )[:-5]


def test_up_serves_the_api_and_says_when_both_billers_hold_a_change(folder: Path) -> None:
    with (
        console.running(folder, "up") as up,
        httpx.Client(base_url=api_url(up), trust_env=False, timeout=60) as http,
    ):
        key = {"Authorization": f"Bearer {make(folder, 'organizations:write', 'organizations:read')}"}
        made = http.post("/api/organizations", json={"name": "Acme"}, headers=key).json()
        through = made["sync"]["version"]
        path = f"/api/organizations/{made['org_id']}/sync"
        receipt = http.get(path, params={"version": through, "wait": "30s"}, headers=key).json()
        assert receipt["in_sync"] is True
        assert http.get("/readyz").is_success
        assert up.stop() == 0
        assert "Traceback" not in up.output


def test_the_api_alone_answers_logs_and_ends_when_told_to(folder: Path) -> None:
    settings = {"LOG_FORMAT": "json"}
    with console.running(folder, "api", "--port", "0", settings=settings) as api:
        url = api_url(api)
        key = make(folder, "organizations:read")
        answer = httpx.get(f"{url}/api/organizations", headers={"Authorization": f"Bearer {key}"}, trust_env=False)
        assert answer.json()["count"] == 0
        assert api.stop() == 0
        lines = [json.loads(line) for line in api.output.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["event"] == "request"]
    assert (line["route"], line["status"], line["role"]) == ("/api/organizations", 200, "service")
    assert key not in api.output
    assert "Traceback" not in api.output


def test_a_port_that_was_asked_for_and_is_taken_is_said_so(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = console.run(folder, "api", "--port", str(taken.getsockname()[1]))
        embedded = console.run(folder, "up", settings={"API_PORT": str(taken.getsockname()[1])})
    assert (refused.returncode, "that port is in use: choose another with --port" in refused.stderr) == (2, True)
    assert (embedded.returncode, "that port is in use: choose another in API_PORT" in embedded.stderr) == (2, True)


def test_a_database_of_another_schema_is_refused(folder: Path, postgres_url: str) -> None:
    refused = console.run(folder, "api", "--port", "0", settings={"DATABASE_URL": postgres_url})
    assert (refused.returncode, "run `billing-sync db upgrade`" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"OIDC_ISSUER": "https://id.test"}, "OIDC_ISSUER and OIDC_AUDIENCE must be set together"),
        ({"OIDC_ISSUER": "http://id.test", "OIDC_AUDIENCE": "a"}, "OIDC_ISSUER: must be an https:// address"),
        ({"OIDC_CLIENT_ID": "me"}, "OIDC_CLIENT_ID, API_PUBLIC_URL and OIDC_ISSUER must be set together"),
        ({"OIDC_ISSUER": "https://id.test", "OIDC_AUDIENCE": "a", "OIDC_ALGORITHM": "HS256"}, "OIDC_ALGORITHM: "),
        ({"OIDC_ALGORITHM": "none"}, "OIDC_ALGORITHM: "),
        ({"OIDC_INTERNAL_URL": "http://keycloak:8080"}, "OIDC_INTERNAL_URL needs OIDC_ISSUER"),
        (
            {"OIDC_ISSUER": "https://id.test", "OIDC_AUDIENCE": "a", "OIDC_INTERNAL_URL": "http://8.8.8.8/"},
            "OIDC_INTERNAL_URL: must be an https:// address, or http:// with a host of your own network",
        ),
        (
            {"OIDC_ISSUER": "https://me:secret@id.test", "OIDC_AUDIENCE": "a"},
            "OIDC_ISSUER: must have no user name, no password, no ? and no #",
        ),
        ({"OIDC_ISSUER": "https://[id.test", "OIDC_AUDIENCE": "a"}, "OIDC_ISSUER: must be an https:// address"),
        ({"OIDC_TRUST_EMAILS": "perhaps"}, "OIDC_TRUST_EMAILS: "),
    ],
)
def test_a_sign_in_that_would_not_hold_is_refused_at_the_start(
    folder: Path, settings: dict[str, str], sentence: str
) -> None:
    refused = console.run(folder, "api", "--port", "0", settings=settings)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert sentence in refused.stderr
