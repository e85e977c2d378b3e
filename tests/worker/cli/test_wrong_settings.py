"""A value that no process can use is one sentence with the name of its setting and without the value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.support import console, servers

pytestmark = pytest.mark.processes

SECRET = "secret-word"
PROVIDERS = {
    "STRIPE_SECRET_KEY": f"sk_test_{SECRET}",
    "STRIPE_API_BASE": "http://127.0.0.1:9",
    "LAGO_API_KEY": SECRET,
    "LAGO_API_URL": "http://127.0.0.1:9",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.mark.parametrize(
    ("command", "settings", "sentence"),
    [
        ("status", {"DATABASE_URL": f"'sqlite:///{SECRET}.db'"}, "DATABASE_URL: is in quotes"),
        ("api", {"OIDC_ISSUER": '"https://secret-word"', "OIDC_AUDIENCE": "a"}, "OIDC_ISSUER: is in quotes"),
        ("up", {"STRIPE_SECRET_KEY": " \n"}, "STRIPE_SECRET_KEY: is blank: give it a value, or remove it"),
        ("worker", {"DATABASE_URL": f"postgresql://me:{SECRET}@a@db/x"}, "in the user name or password write @"),
        (
            "relay",
            {"DATABASE_URL": f"postgresql://me:{SECRET}@12:3@db/x"},
            "in the user name or password write @ as %40",
        ),
        ("beat", {"DATABASE_URL": f"postgresql://me@db:{SECRET}/x"}, "DATABASE_URL: is not a valid URL"),
        (
            "api",
            {"DATABASE_URL": f"postgresql://me:{SECRET}@db,b:{SECRET}/x"},
            "has a host or a port that is not valid",
        ),
        ("up", {"DATABASE_URL": f"{SECRET}:x@db/x"}, "DATABASE_URL: is not a valid URL"),
        ("flower", {"DATABASE_URL": "mysql://me@db/x"}, "DATABASE_URL: names mysql; only sqlite:// and postgresql://"),
        (
            "status",
            {"DATABASE_URL": "postgresql+asyncpg://me@db/x?ssl=require"},
            "has the parameter ssl, which Postgres",
        ),
        (
            "worker",
            {"REDIS_URL": f"redis://:12/{SECRET}@127.0.0.1"},
            "REDIS_URL: has a host or a port that is not valid",
        ),
        ("relay", {"REDIS_URL": f"redis://:12#{SECRET}@127.0.0.1"}, "in a user name or password write / as %2F"),
        ("beat", {"POSTGRES_HOST": f"me:{SECRET}@db"}, "POSTGRES_HOST: must be a host name or an address alone"),
        (
            "flower",
            {"CELERY_BROKER_URL": f"amqp://me:12?{SECRET}@127.0.0.1"},
            "CELERY_BROKER_URL: has a host or a port",
        ),
        ("api", {"REDIS_URL": "amqp://127.0.0.1"}, "REDIS_URL: has the scheme amqp"),
        ("status", {"REDIS_URL": f"redis://:{SECRET}\n@127.0.0.1"}, "REDIS_URL: contains a space, a line break"),
        ("status", {**PROVIDERS, "LAGO_API_URL": "lago.example.com:3000"}, "LAGO_API_URL: must be an address such as"),
        ("worker", {**PROVIDERS, "STRIPE_API_BASE": "//api.stripe.com"}, "STRIPE_API_BASE: must be an address such as"),
        ("up", {**PROVIDERS, "STRIPE_API_BASE": "https://api.stripe.com/v1"}, "the bare origin, without /v1"),
        ("up", {**PROVIDERS, "STRIPE_SECRET_KEY": "sk_test_ключ"}, "STRIPE_SECRET_KEY: contains a space, a line break"),
        ("api", {**PROVIDERS, "LAGO_API_KEY": f"{SECRET}\nb"}, "LAGO_API_KEY: contains a space, a line break"),
        ("worker", {"REDIS_URL": "rediss://127.0.0.1?ssl_ca_certs=none.pem"}, "has an ssl_ca_certs that is not a file"),
        ("worker", {"REDIS_URL": "rediss://127.0.0.1?ssl_cert_reqs=maybe"}, "ssl_cert_reqs is required or none"),
        ("worker", {"REDIS_URL": "redis://127.0.0.1/0?foo=1"}, "REDIS_URL: has the parameter foo, which is not known"),
        ("api", {"REDIS_URL": "redis://127.0.0.1/jobs"}, "REDIS_URL: has a path that is no number of a database"),
        ("api", {"DATABASE_URL": "postgresql://me:\udcff@db/x"}, "DATABASE_URL: is not UTF-8 text"),
        ("worker", {**PROVIDERS, "LAGO_API_URL": "https://lago..example"}, "LAGO_API_URL: must be an address such as"),
        ("worker", {"REDIS_URL": "redis://127.0.0.1?ssl_cert_reqs=none"}, "redis:// uses no TLS: write rediss://"),
        (
            "worker",
            {"CELERY_BROKER_URL": "amqps://a;amqps://b"},
            "has several servers, which only RabbitMQ without TLS (amqp://) may have",
        ),
        (
            "relay",
            {"CELERY_BROKER_URL": "redis://a:1/1;redis://b:1/1"},
            "CELERY_BROKER_URL: has several servers, which only RabbitMQ without TLS (amqp://) may have",
        ),
        ("worker", {"REDIS_URL": "unix:///tmp/redis.sock"}, "REDIS_URL: unix:// leads to no broker: set CELERY_BROKER"),
        ("up", {"REDIS_URL": "redis://127.0.0.1?db=1&db=3"}, "REDIS_URL: has db twice"),
        ("worker", {"REDIS_URL": "redis://127.0.0.1?db=one"}, "REDIS_URL: has a db that is not valid"),
        ("beat", {"CELERY_BROKER_URL": "amqp://127.0.0.1?heartbeat=x"}, "has a heartbeat that is not valid"),
        (
            "status",
            {"DATABASE_URL": f"postgresql://svc@{SECRET}.iam@/db?host=/cloudsql/a"},
            "in the user name or password write @ as %40",
        ),
        ("status", {"DATABASE_URL": "postgresql://me@db/x?sslmode=on"}, "has an sslmode that Postgres does not know"),
        (
            "worker",
            {"POSTGRES_HOST": "db", "POSTGRES_PASSWORD": SECRET, "PGSSLMODE": "on"},
            "the database of POSTGRES_HOST takes an sslmode from PGSSLMODE that Postgres does not know",
        ),
        (
            "relay",
            {"DATABASE_URL": f"postgresql://me:{SECRET}@db/x", "DATABASE_DIRECT_URL": "sqlite:///x.db"},
            "DATABASE_DIRECT_URL: names a SQLite file: it is for a Postgres behind a pooler; remove it",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_named_by_the_process_and_by_doctor(
    folder: Path, command: str, settings: Mapping[str, str], sentence: str
) -> None:
    failed = console.run(folder, command, settings=settings)
    assert sentence in failed.stderr
    assert failed.stderr.startswith("billing-sync: ")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (2, "", 1)
    shown = console.run(folder, "doctor", "--json", settings=settings)
    found = [each for subject in json.loads(shown.stdout)["subjects"] for each in subject["findings"]]
    assert any(sentence in each["message"] for each in found)
    assert SECRET not in failed.stderr + shown.stdout + shown.stderr
    assert "12" not in failed.stderr


def test_line_ends_and_byte_order_marks_around_a_value_are_dropped(folder: Path) -> None:
    settings = {
        "DATABASE_URL": "\ufeffsqlite:///kept.db \r\n",
        "LOG_LEVEL": "INFO\n",
        "LAGO_MANUAL_PAYMENTS": "true\r\n",
    }
    upgraded = console.run(folder, "db", "upgrade", settings=settings)
    assert (upgraded.returncode, upgraded.stderr) == (0, "")
    assert (folder / "kept.db").is_file()


def test_an_env_file_of_windows_is_read(folder: Path) -> None:
    (folder / ".env").write_bytes("\ufeffDATABASE_URL=sqlite:///kept.db\r\nLOG_LEVEL=INFO\r\n".encode())
    assert console.run(folder, "db", "upgrade").returncode == 0
    assert (folder / "kept.db").is_file()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_an_env_file_in_utf_16_is_refused_by_name(folder: Path, encoding: str) -> None:
    (folder / ".env").write_bytes("DATABASE_URL=sqlite:///kept.db\r\n".encode(encoding))
    failed = console.run(folder, "status")
    assert (failed.returncode, failed.stderr) == (2, "billing-sync: .env is not UTF-8 text: save it as UTF-8\n")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+asyncpg", "postgresql+psycopg2", "PostgreSQL"])
def test_a_postgres_address_of_another_driver_is_read(folder: Path, postgres_server: str, scheme: str) -> None:
    with servers.database(postgres_server) as url:
        assert _upgrade(folder, f"{scheme}{url.removeprefix('postgresql')}") == 0


@pytest.mark.parametrize("password", ["a%40b", "a:b", "a%b", "100%", "a/b"])
def test_a_password_of_a_server_may_have_each_character(folder: Path, postgres_server: str, password: str) -> None:
    with servers.database(postgres_server) as url:
        parts = make_url(url)
        place = f"/{parts.database}?host={parts.query.get('host', parts.host)}&port={parts.port or 5432}"
        assert _upgrade(folder, f"postgresql://{parts.username}:{password}@{place}") == 0


def _upgrade(folder: Path, url: str) -> int:
    upgraded = console.run(folder, "db", "upgrade", settings={"DATABASE_URL": url})
    assert upgraded.stderr == ""
    return upgraded.returncode
