"""An address that asks for TLS is verified by every client alike, and the reason of a refusal is named.

The servers are real ones behind real TLS, with certificates that are made for the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import structlog
from kombu import Connection
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from core.db.database import DatabaseError
from tests.support import console
from tests.support.deployment import free_port
from tests.support.doctor_harness import DoctorHarness
from tests.support.tls_servers import CertificateName, Certificates, make_certificates, tls_front
from worker.config import settings as settings_of
from worker.config.settings import Settings
from worker.shared.cache import RedisCache
from worker.wiring import broker_probe, celery_app
from worker.wiring.database import connect

REFUSALS: dict[CertificateName, str] = {
    "expired": "its certificate has expired",
    "unknown authority": "its certificate is of an unknown authority",
    "other host": "its certificate is for another host name",
}
WORDS = ("required", "CERT_REQUIRED", "none", "CERT_NONE")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@contextmanager
def secured(url: str, certificate: Path, words: str) -> Iterator[str]:
    """The same Redis or RabbitMQ with TLS before it."""
    parts = urlsplit(url)
    with tls_front((parts.hostname or "", parts.port or 5672), certificate) as port:
        user, at, _ = parts.netloc.rpartition("@")
        yield f"{parts.scheme}s://{user}{at}localhost:{port}{parts.path}?{words}"


@contextmanager
def secured_postgres(url: str, certificate: Path, words: str) -> Iterator[str]:
    parts = make_url(url)
    host, port = str(parts.query.get("host", parts.host)), int(str(parts.query.get("port", parts.port or 5432)))
    server = f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)
    with tls_front(server, certificate, is_postgres=True) as listening:
        user = f"{parts.username}:{parts.password or 'x'}"
        yield f"postgresql://{user}@localhost:{listening}/{parts.database}?{words}"


def settings(**values: str) -> Settings:
    return Settings.model_validate(values)


def can_publish(broker: Settings) -> bool:
    """With Celery's own connection, as relay, worker, beat and Flower open it."""
    with celery_app.build(broker).connection_for_write() as connection:
        return broker_connects(connection)


def broker_connects(connection: Connection) -> bool:
    try:
        connection.ensure_connection(max_retries=1, timeout=2)
    except BrokerError:
        return False
    return True


def cache_problems(broker: Settings) -> list[str]:
    """Of the client that the rate limiters and the cache share."""
    assert broker.redis is not None
    with capture_logs() as lines:
        cache = RedisCache(broker.redis, "test")
        cache.get("any")
        cache.close()
    return [str(line["error"]) for line in lines]


@pytest.mark.parametrize("name", REFUSALS)
def test_redis_with_a_wrong_certificate_is_refused_by_every_client_with_the_reason(
    certificates: Certificates, redis_url: str, name: CertificateName
) -> None:
    structlog.reset_defaults()
    with secured(redis_url, certificates.file(name), f"ssl_ca_certs={certificates.authority}") as url:
        broker = settings(redis_url=url)
        state = broker_probe.probe(broker)
        assert (state.responds, (state.tls_problem or "").startswith(REFUSALS[name])) == (False, True), state
        assert not can_publish(broker)
        (problem,) = cache_problems(broker)
        assert problem.startswith(f"ConnectionError: {REFUSALS[name]}")


@pytest.mark.parametrize("word", WORDS)
def test_both_spellings_of_a_word_mean_the_same_to_every_client(
    certificates: Certificates, redis_url: str, word: str
) -> None:
    structlog.reset_defaults()
    with secured(redis_url, certificates.file("unknown authority"), f"ssl_cert_reqs={word}") as url:
        broker, is_weak = settings(redis_url=url), "none" in word.lower()
        assert broker_probe.probe(broker).responds == is_weak
        assert can_publish(broker) == is_weak
        assert (cache_problems(broker) == []) == is_weak
        weakness = {"REDIS_URL": "ssl_cert_reqs=none verifies no certificate"} if is_weak else {}
        assert broker.weak_tls == weakness


def test_a_broker_beside_another_redis_is_probed_by_itself(certificates: Certificates, redis_url: str) -> None:
    words = f"ssl_ca_certs={certificates.authority}"
    with secured(redis_url, certificates.file("good"), words) as url, redis.Redis.from_url(redis_url) as server:
        broker = settings(celery_broker_url=url, redis_url="redis://127.0.0.1:9/0")
        server.config_set("maxmemory", "1")
        try:
            assert broker_probe.probe(broker).refusal == "its memory is full"
        finally:
            server.config_set("maxmemory", "0")


def test_redis_with_a_good_certificate_is_used_by_every_client(certificates: Certificates, redis_url: str) -> None:
    with secured(redis_url, certificates.file("good"), f"ssl_ca_certs={certificates.authority}") as url:
        broker = settings(redis_url=url)
        assert broker_probe.probe(broker).responds
        assert can_publish(broker)
        assert cache_problems(broker) == []
        assert broker.weak_tls == {}


def test_a_redis_of_another_host_is_used_only_if_the_address_says_so(
    certificates: Certificates, redis_url: str
) -> None:
    words = f"ssl_ca_certs={certificates.authority}&ssl_check_hostname=false"
    with secured(redis_url, certificates.file("other host"), words) as url:
        broker = settings(redis_url=url)
        assert broker_probe.probe(broker).responds
        assert can_publish(broker)
        assert cache_problems(broker) == []
        assert "not that it belongs to this host" in broker.weak_tls["REDIS_URL"]


def test_a_redis_without_tls_is_named_as_such(redis_url: str) -> None:
    state = broker_probe.probe(settings(redis_url=redis_url.replace("redis://", "rediss://")))
    assert not state.responds
    assert state.tls_problem is not None
    assert "TLS" in state.tls_problem


@pytest.mark.slow
@pytest.mark.parametrize("name", ["good", *REFUSALS])
def test_rabbitmq_is_verified_as_redis_is(certificates: Certificates, rabbit_url: str, name: CertificateName) -> None:
    with secured(rabbit_url, certificates.file(name), f"ssl_ca_certs={certificates.authority}") as url:
        broker = settings(celery_broker_url=url)
        state = broker_probe.probe(broker)
        assert state.responds == can_publish(broker) == (name == "good")
        assert (state.tls_problem or "").startswith(REFUSALS.get(name, "")), state
    for word in ("ssl_cert_reqs=CERT_NONE", f"ssl_ca_certs={certificates.authority}&ssl_check_hostname=false"):
        with secured(rabbit_url, certificates.file("other host"), word) as url:
            broker = settings(celery_broker_url=url)
            assert broker_probe.probe(broker).responds
            assert can_publish(broker)
            assert set(broker.weak_tls) == {"CELERY_BROKER_URL"}


@pytest.mark.parametrize("mode", ["require", "verify-full"])
@pytest.mark.parametrize("name", ["good", "expired", "unknown authority", "other host"])
def test_postgres_is_verified_where_its_address_asks_for_tls(
    certificates: Certificates, postgres_template: str, postgres_server: str, name: CertificateName, mode: str
) -> None:
    template = make_url(postgres_server).set(database=postgres_template).render_as_string(hide_password=False)
    words = f"sslmode={mode}&sslrootcert={certificates.authority}"
    with secured_postgres(template, certificates.file(name), words) as url, ExitStack() as closing:
        database = connect(settings(database_url=url), pool_size=1)
        closing.callback(database.close)
        if name == "good":
            database.ensure_schema()
            return
        with pytest.raises(DatabaseError) as refused:
            database.ensure_schema()
        expected = 'does not match host name "localhost"' if name == "other host" else REFUSALS[name]
        assert expected in str(refused.value)
        with pytest.raises(OperationalError) as failed, database.read() as session:
            session.connection()
        assert expected in str(failed.value.orig)


@pytest.mark.parametrize(("mode", "name"), [("prefer", "unknown authority"), ("verify-ca", "other host")])
def test_postgres_is_verified_less_only_by_a_word_in_its_address(
    certificates: Certificates, postgres_url: str, mode: str, name: CertificateName
) -> None:
    words = f"sslmode={mode}" + (f"&sslrootcert={certificates.authority}" if mode == "verify-ca" else "")
    with secured_postgres(postgres_url, certificates.file(name), words) as url, ExitStack() as closing:
        weak = settings(database_url=url)
        assert weak.weak_tls["DATABASE_URL"].startswith(f"sslmode={mode} verifies")
        database = connect(weak, pool_size=1)
        closing.callback(database.close)
        database.upgrade()


def test_doctor_names_the_reason_and_reads_several_hosts(
    set_up: DoctorHarness, certificates: Certificates, postgres_url: str
) -> None:
    words = f"sslmode=verify-full&sslrootcert={certificates.authority}"
    with secured_postgres(postgres_url, certificates.file("expired"), words) as url:
        set_up.set({"DATABASE_URL": url})
        (finding,) = set_up.examine("database")
        assert finding.message.endswith("certificate verify failed: its certificate has expired")
    with secured_postgres(postgres_url, certificates.file("good"), words) as url:
        set_up.set({"DATABASE_URL": url.replace("@", "@127.0.0.1:9,")})
        (finding,) = set_up.examine("database")
        assert finding.code == "schema_older"


def test_doctor_names_the_reason_and_what_is_not_verified(
    set_up: DoctorHarness, certificates: Certificates, redis_url: str
) -> None:
    with secured(redis_url, certificates.file("expired"), f"ssl_ca_certs={certificates.authority}") as url:
        set_up.set({"REDIS_URL": url})
        found = [*set_up.examine("broker"), *set_up.examine("redis")]
        assert [each.code for each in found] == ["broker_tls", "redis_tls"]
        assert all(each.message.endswith("its certificate has expired") for each in found)
        set_up.set({"REDIS_URL": f"{url.partition('?')[0]}?ssl_cert_reqs=none"})
        assert settings_of.read().weak_tls
        assert [each.code for each in set_up.examine("settings")] == ["weak_tls"]


@pytest.mark.processes
@pytest.mark.parametrize("command", ["worker", "relay", "beat", "api", "up", "flower"])
def test_each_process_warns_at_its_start_of_what_it_does_not_verify(tmp_path: Path, command: str) -> None:
    address = f"rediss://127.0.0.1:{free_port()}/0?ssl_cert_reqs=CERT_NONE"
    with console.running(
        console.prepare(tmp_path), command, settings={"REDIS_URL": address, "API_PORT": "0"}
    ) as process:
        process.wait_for_output("billing-sync: REDIS_URL: ssl_cert_reqs=none verifies no certificate")


@pytest.mark.processes
@pytest.mark.parametrize("name", REFUSALS)
def test_status_names_the_reason(
    certificates: Certificates, redis_url: str, tmp_path: Path, name: CertificateName
) -> None:
    folder = console.prepare(tmp_path)
    with secured(redis_url, certificates.file(name), f"ssl_ca_certs={certificates.authority}") as url:
        assert console.run(folder, "db", "upgrade", settings={"REDIS_URL": url}).returncode == 0
        shown = console.run(folder, "status", settings={"REDIS_URL": url})
    assert f"broker: TLS fails: {REFUSALS[name]}" in shown.stdout


WAYS_OUT: dict[CertificateName, str] = {
    "expired": "renew the certificate of the server",
    "unknown authority": "add `sslrootcert=FILE` with the certificate of its authority to DATABASE_URL (Amazon RDS: ",
    "other host": "use the host that its certificate names, or in DATABASE_URL `sslmode=verify-ca`",
}


@pytest.mark.parametrize("name", WAYS_OUT)
def test_a_refused_certificate_of_postgres_is_named_with_the_way_out(
    set_up: DoctorHarness, certificates: Certificates, postgres_url: str, name: CertificateName
) -> None:
    words = f"sslmode=require&sslrootcert={certificates.authority}"
    with secured_postgres(postgres_url, certificates.file(name), words) as secured_url:
        url = secured_url.replace(":x@", ":word-of-mine@")
        set_up.set({"DATABASE_URL": url})
        (finding,) = set_up.examine("database")
        assert finding.code == "database_tls"
        assert finding.advice.startswith(WAYS_OUT[name])
        for command in (("db", "upgrade"), ("status",)):
            ended = console.run(set_up.folder, *command, settings={"DATABASE_URL": url})
            assert (ended.returncode, WAYS_OUT[name] in ended.stderr) == (2, True), ended.stderr
            assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("form", ["DATABASE_URL", "POSTGRES_HOST"])
def test_the_variable_of_libpq_counts_as_the_word_in_the_address(
    certificates: Certificates, postgres_url: str, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("PGSSLROOTCERT", str(certificates.authority))
    monkeypatch.setenv("PGSSLMODE", "require")
    names: tuple[CertificateName, ...] = ("good", *REFUSALS)
    for name in names:
        with secured_postgres(postgres_url, certificates.file(name), "") as url, ExitStack() as closing:
            used = settings(**(in_parts(url) if form == "POSTGRES_HOST" else {"database_url": url}))
            assert used.weak_tls == {}
            database = connect(used, pool_size=1)
            closing.callback(database.close)
            if name == "good":
                database.upgrade()
                continue
            with pytest.raises(DatabaseError, match="TLS with the database fails: "):
                database.ensure_schema()
    monkeypatch.setenv("PGSSLMODE", "prefer")
    monkeypatch.delenv("PGSSLROOTCERT")  # libpq would verify the authority with it
    with secured_postgres(postgres_url, certificates.file("unknown authority"), "") as url, ExitStack() as closing:
        used = settings(**(in_parts(url) if form == "POSTGRES_HOST" else {"database_url": url}))
        assert used.weak_tls["PGSSLMODE"].startswith("sslmode=prefer verifies no certificate")
        database = connect(used, pool_size=1)
        closing.callback(database.close)
        database.ensure_schema()
    monkeypatch.setenv("PGSSLMODE", "sometimes")
    with pytest.raises(ValueError, match="takes an sslmode from PGSSLMODE that Postgres does not know: use sslmode="):
        settings(**(in_parts(url) if form == "POSTGRES_HOST" else {"database_url": url}))


def in_parts(url: str) -> dict[str, str]:
    parts = make_url(url)
    return {
        "postgres_host": str(parts.host),
        "postgres_port": str(parts.port),
        "postgres_user": str(parts.username),
        "postgres_password": str(parts.password),
        "postgres_db": str(parts.database),
    }


def test_the_variable_of_libpq_does_no_harm_where_there_is_no_tls(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a socket of the system, and for SQLite."""
    monkeypatch.setenv("PGSSLMODE", "require")
    if not str(make_url(postgres_url).query.get("host", "")).startswith("/"):
        pytest.skip("this Postgres has no socket")
    database = connect(settings(database_url=postgres_url), pool_size=1)
    database.upgrade()
    database.close()
    assert settings(database_url="sqlite:///any.db").weak_tls == {}


@pytest.mark.processes
@pytest.mark.parametrize("command", ["worker", "relay", "beat"])
def test_each_process_that_waits_for_the_broker_says_that_tls_fails(
    certificates: Certificates, redis_url: str, tmp_path: Path, command: str
) -> None:
    folder = console.prepare(tmp_path)
    with secured(redis_url, certificates.file("expired"), f"ssl_ca_certs={certificates.authority}") as url:
        process_settings = {"REDIS_URL": url, "LOG_FORMAT": "json"}
        assert console.run(folder, "db", "upgrade", settings=process_settings).returncode == 0
        with console.running(folder, command, settings=process_settings) as process:
            process.wait_for_output(f"fails: {REFUSALS['expired']}; renew the certificate, correct the host in")
            if command == "beat":
                process.wait_for_output('"beat_waits_for_broker"')
                (line, *_) = (line for line in process.output.splitlines() if "beat_waits_for_broker" in line)
                assert REFUSALS["expired"] in line
            assert process.output.count("renew the certificate") == 1


@pytest.mark.parametrize("authorities", ["system", "own"])
def test_without_a_file_in_the_address_the_authorities_of_this_machine_count(
    certificates: Certificates, postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authorities: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if authorities == "own":
        (tmp_path / ".postgresql").mkdir()
        (tmp_path / ".postgresql" / "root.crt").write_bytes(certificates.authority.read_bytes())
    else:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    names: tuple[CertificateName, ...] = ("good", "expired")
    for name in names:
        with secured_postgres(postgres_url, certificates.file(name), "sslmode=require") as url, ExitStack() as closing:
            database = connect(settings(database_url=url), pool_size=1)
            closing.callback(database.close)
            if name == "good":
                database.upgrade()
                continue
            with pytest.raises(DatabaseError, match="its certificate has expired"):
                database.ensure_schema()
