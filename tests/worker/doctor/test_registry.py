"""Each thing that is set up wrong is one finding, which names what to type."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import amqp
import psycopg
import pytest
import redis as redis_client
from kombu import Connection, Queue
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url, text, update

from core.common.clock import utc_now
from core.common.hosts import is_remote
from core.db.models.billing_links import BillingLink
from core.db.models.providers import ProviderStatus
from core.inbox import provider_webhooks
from core.org_manager import OrgManager
from providers.stripe.rights import STRIPE_RIGHTS, StripeRight
from tests.support import servers, smtp_server
from tests.support.doctor_harness import LAGO_SECRET, OUR_API, STRIPE_SECRET, DoctorHarness
from tests.support.oidc_provider import OidcProvider
from worker.config.settings import Settings
from worker.doctor import registry
from worker.doctor.findings import DoctorFinding, ok
from worker.doctor.inputs import DoctorInputs

pytestmark = pytest.mark.slow  # many cases of one kind

Break = Callable[[DoctorHarness], object]
CLOSED = "127.0.0.1:9"
MANY = "x" * 40
PROVIDER_SETTINGS = ("STRIPE_SECRET_KEY", "STRIPE_API_BASE", "LAGO_API_KEY", "LAGO_API_URL")


def sets(**values: str | None) -> Break:
    return lambda set_up: set_up.set(values)


def executes(*statements: str) -> Break:
    def execute(set_up: DoctorHarness) -> None:
        database = set_up.database()
        with database.write() as session:
            for statement in statements:
                session.execute(text(statement))
        database.close()

    return execute


def pins(account: str, *, livemode: bool | None = None) -> Break:
    def pin(set_up: DoctorHarness) -> None:
        database = set_up.database()
        with database.write() as session:
            session.execute(
                update(ProviderStatus)
                .where(ProviderStatus.provider == "stripe")
                .values(account_id=account, livemode=livemode)
            )
        database.close()

    return pin


def opens_breaker(set_up: DoctorHarness) -> None:
    database = set_up.database()
    with database.write() as session:
        session.execute(
            update(ProviderStatus)
            .where(ProviderStatus.provider == "lago")
            .values(breaker_reason="misconfigured", breaker_message="no such connection", open_since=utc_now())
        )
    database.close()


def stripe_endpoint(**fields: object) -> Break:
    document = {"url": f"{OUR_API}/webhooks/stripe", "secret": STRIPE_SECRET, **fields}
    return lambda set_up: set_up.sandbox.set_webhooks(stripe=document)


def lago_endpoint(**fields: object) -> Break:
    document = {"url": f"{OUR_API}/webhooks/lago", "secret": LAGO_SECRET, **fields}
    return lambda set_up: set_up.sandbox.set_webhooks(lago=document)


def sells_at_another_price(set_up: DoctorHarness) -> None:
    set_up.publish_plans()
    catalog = set_up.folder / "plans.toml"
    lines = catalog.read_text().splitlines()
    changed = [f"{line.split('=')[0]}= 123456" if line.startswith("amount") else line for line in lines]
    catalog.write_text("\n".join(changed))


def writes_env_file(set_up: DoctorHarness) -> None:
    file = set_up.folder / ".env"
    file.write_text("LOG_LEVEL=INFO\n")
    file.chmod(0o644)


def names_in_env_file(set_up: DoctorHarness) -> None:
    file = set_up.folder / ".env"
    file.write_text("LAGO_AP_URL=https://lago.example\n")
    file.chmod(0o600)


def is_no_database(set_up: DoctorHarness) -> None:
    set_up.database_file.write_text("no database at all" * 100)


BROKEN: list[tuple[str, Break, str, str]] = [
    ("settings", sets(STRIPE_SECRT_KEY="x"), "unknown_setting", "rename it to STRIPE_SECRET_KEY in the environment"),
    ("settings", names_in_env_file, "unknown_setting", "rename it to LAGO_API_URL in .env"),
    ("settings", sets(DATABSE_URL="x"), "unknown_setting", "rename it to DATABASE_URL"),
    ("settings", sets(STRIPE_SECRET_KEY="pk_test_1"), "publishable_key", "set STRIPE_SECRET_KEY to a secret (sk_…)"),
    ("settings", sets(STRIPE_WEBHOOK_SECRET=MANY), "wrong_webhook_secret", "set STRIPE_WEBHOOK_SECRET"),
    ("settings", sets(WEBHOOK_SIGNING_SECRET=MANY), "weak_secret", "`openssl rand -base64 32`"),
    ("settings", sets(LAGO_WEBHOOK_SECRET="short"), "weak_secret", "set LAGO_WEBHOOK_SECRET for every process"),
    ("settings", sets(POSTGRES_HOST="db", POSTGRES_PASSWORD="postgres"), "weak_secret", "set POSTGRES_PASSWORD"),
    ("settings", sets(LAGO_API_URL="http://lago.example.com"), "unencrypted_key", "set LAGO_API_URL to the https://"),
    ("settings", writes_env_file, "env_file_readable", "`chmod 600 .env`"),
    (
        "database",
        sets(DATABASE_URL=f"postgresql://me:word-of-mine@{CLOSED}/none"),
        "database_unreachable",
        "`python -m worker.health database`",
    ),
    ("database", is_no_database, "database_unreachable", "check DATABASE_URL"),
    ("database", executes("UPDATE alembic_version SET version_num = '8'"), "schema_older", "`billing-sync db upgrade`"),
    ("database", executes("DELETE FROM alembic_version"), "schema_older", "`billing-sync db upgrade`"),
    (
        "database",
        executes(
            "UPDATE alembic_version SET version_num = '99'", "UPDATE schema_compatibility SET lowest_revision = 99"
        ),
        "schema_newer",
        "`pip install --upgrade",
    ),
    ("processes", sets(), "no_up", "`billing-sync up`"),
    ("processes", lambda it: it.beats("up", at=utc_now().replace(year=2020)), "no_up", "`billing-sync up`"),
    ("processes", lambda it: it.beats("up", version="0.0.1"), "versions_differ", "`billing-sync worker`"),
    ("keys", sets(STRIPE_SECRET_KEY="sk_bad"), "stripe_key_rejected", "set STRIPE_SECRET_KEY to a valid key"),
    ("keys", sets(LAGO_API_KEY="bad"), "lago_key_rejected", "set LAGO_API_KEY to a valid key"),
    ("keys", sets(LAGO_STRIPE_PROVIDER_CODE=None), "providers_invalid", "`billing-sync doctor`"),
    ("keys", sets(STRIPE_API_BASE=f"http://{CLOSED}"), "stripe_unreachable", "check STRIPE_API_BASE"),
    ("keys", sets(LAGO_API_URL=f"http://{CLOSED}"), "lago_unreachable", "check LAGO_API_URL"),
    ("keys", pins("acct_other"), "stripe_wrong_account", "set STRIPE_SECRET_KEY to a key of acct_other"),
    ("keys", pins("acct_sandbox", livemode=True), "stripe_wrong_account", "another database in DATABASE_URL"),
    ("keys", sets(STRIPE_SECRET_KEY="any"), "stripe_key_form", "begins with sk_live_, sk_test_"),
    ("keys", opens_breaker, "lago_breaker_open", "`billing-sync retry --all`"),
    (
        "keys",
        sets(REDIS_URL="redis://h", **dict.fromkeys(PROVIDER_SETTINGS)),
        "providers_missing",
        "set STRIPE_SECRET_KEY, STRIPE_API_BASE, LAGO_API_KEY, LAGO_API_URL",
    ),
    ("plans", sets(), "plan_missing", "`billing-sync plans push`"),
    ("plans", sells_at_another_price, "plan_differs", "`billing-sync plans check`"),
    ("plans", sets(PLANS_FILE="none.toml"), "catalog_invalid", "`billing-sync plans check`"),
    ("payer", sets(LAGO_STRIPE_PROVIDER_CODE=None), "payer_missing", "LAGO_MANUAL_PAYMENTS=true"),
    ("broker", sets(REDIS_URL=f"redis://:word-of-mine@{CLOSED}/0"), "broker_unreachable", "`billing-sync status`"),
    ("redis", sets(CELERY_BROKER_URL=f"amqp://{CLOSED}"), "redis_not_shared", "set REDIS_URL for every process"),
    ("redis", sets(REDIS_URL=f"redis://{CLOSED}"), "redis_unreachable", "correct REDIS_URL"),
    (
        "provider webhooks",
        lambda it: it.sandbox.set_webhooks(stripe=None),
        "stripe_webhook_missing",
        "register https://YOUR-API/webhooks/stripe",
    ),
    (
        "provider webhooks",
        sets(API_PUBLIC_URL="https://billing.example", OIDC_CLIENT_ID="c", OIDC_ISSUER="https://i", OIDC_AUDIENCE="a"),
        "lago_webhook_missing",
        "register https://billing.example/webhooks/lago",
    ),
    ("provider webhooks", stripe_endpoint(disabled=True), "stripe_webhook_disabled", "enable http://127.0.0.1:8080/"),
    ("provider webhooks", stripe_endpoint(events=["invoice.paid"]), "stripe_webhook_events", "or choose all events"),
    ("provider webhooks", lago_endpoint(events=["invoice.voided"]), "lago_webhook_events", "or choose all events"),
    (
        "provider webhooks",
        sets(STRIPE_WEBHOOK_SECRET=None),
        "stripe_webhook_secret_missing",
        "set STRIPE_WEBHOOK_SECRET for the API",
    ),
    (
        "sign-in",
        sets(OIDC_ISSUER=f"http://{CLOSED}", OIDC_AUDIENCE="a"),
        "sign_in_unreachable",
        f"`curl http://{CLOSED}/.well-known/openid-configuration`",
    ),
    (
        "emails",
        sets(SMTP_HOST="127.0.0.1", SMTP_PORT="9", MAIL_FROM="a@b.example"),
        "smtp_failed",
        "`billing-sync doctor`",
    ),
    ("disk", lambda it: it.database_file.chmod(0o644), "database_file_readable", "`chmod 600 "),
    ("disk", sets(DATA_DIR="plans.toml"), "data_folder_invalid", "choose another folder in DATA_DIR"),
]


@pytest.mark.parametrize(
    ("subject", "breaks", "code", "advice"),
    BROKEN,
    ids=[f"{number}-{each[0]}-{each[2]}" for number, each in enumerate(BROKEN)],
)
def test_what_is_broken_is_named_with_what_to_type(
    set_up: DoctorHarness, subject: str, breaks: Break, code: str, advice: str
) -> None:
    breaks(set_up)
    found = {finding.code: finding for finding in set_up.examine(subject)}
    assert code in found, found
    assert found[code].level in {"warning", "error"}
    assert advice in found[code].advice
    assert found[code].consequence
    assert "word-of-mine" not in str(found)


@pytest.mark.parametrize("subject", ["settings", "database", "keys", "provider webhooks", "disk"])
def test_a_healthy_set_up_has_no_finding_to_act_on(set_up: DoctorHarness, subject: str) -> None:
    found = set_up.examine(subject)
    assert {finding.level for finding in found} == {"ok"}, found


def test_that_every_source_may_send_on_the_queue_is_a_note_and_no_failure(set_up: DoctorHarness) -> None:
    (finding,) = set_up.examine("event sources")
    assert finding.level == "not_set"
    assert "EVENT_SOURCES_ALLOWED" in finding.advice
    set_up.set({"EVENT_SOURCES_ALLOWED": "/signup, /shop"})
    (finding,) = set_up.examine("event sources")
    assert (finding.level, finding.message.rpartition("from ")[2]) == ("ok", "/shop, /signup")


RESTRICTED = "rk_test_doctor"


def restricts(set_up: DoctorHarness, without: str) -> None:
    """Gives the doctor a key with each right but this one."""
    granted = [each.id for each in STRIPE_RIGHTS if each.id != without]
    set_up.sandbox.settings(restricted_keys={RESTRICTED: granted})
    set_up.set({"STRIPE_SECRET_KEY": RESTRICTED})


def test_a_restricted_key_with_each_right_has_no_finding(set_up: DoctorHarness) -> None:
    restricts(set_up, without="")
    set_up.sandbox.reset_calls()
    (finding,) = set_up.examine("rights")
    assert (finding.level, finding.code) == ("ok", "rights")
    assert {call.method for call in set_up.sandbox.calls()} == {"GET"}
    assert {finding.level for finding in set_up.examine("keys")} == {"ok"}


@pytest.mark.parametrize("right", STRIPE_RIGHTS, ids=lambda right: right.id)
def test_each_right_that_a_key_lacks_is_named_with_what_it_stops(set_up: DoctorHarness, right: StripeRight) -> None:
    restricts(set_up, without=right.id)
    (finding,) = set_up.examine("rights")
    assert right.name in finding.message
    assert right.id.rpartition("_")[0] in finding.message
    if right.affects == "nothing":
        assert (finding.level, finding.advice) == ("not_set", "")
        assert right.consequence in finding.message
    else:
        assert finding.level == "error"
        assert finding.consequence == right.consequence
        assert "`billing-sync retry --error missing_permission`" in finding.advice
    assert RESTRICTED not in str(finding)


def test_a_key_whose_account_nobody_names_lacks_a_right_and_is_valid(set_up: DoctorHarness) -> None:
    refusal = {"error": {"message": "This key does not have the required permissions for this endpoint."}}
    set_up.sandbox.add_fault("stripe", "GET /v1/account", "status", status=403, body=json.dumps(refusal))
    (finding,) = (each for each in set_up.examine("keys") if each.level == "error")
    assert finding.code == "account_right_missing"
    assert finding.advice == "grant Accounts: Read to the key of STRIPE_SECRET_KEY in Stripe's dashboard"


def test_a_right_that_a_parked_link_names_is_named(set_up: DoctorHarness) -> None:
    restricts(set_up, without="")
    database = set_up.database()
    OrgManager(database_url=f"sqlite:///{set_up.database_file}").create_organization("Acme", "starter")
    with database.write() as session:
        message = "could not credit it: it lacks a permission (permission rak_credit_note_write, status 403)"
        session.execute(
            update(BillingLink)
            .where(BillingLink.provider == "stripe")
            .values(state="parked", error_kind="rejected", error_code="missing_permission", error_message=message)
        )
    database.close()
    (finding,) = set_up.examine("rights")
    assert (finding.code, finding.level) == ("right_refused", "error")
    assert "rak_credit_note_write" in finding.message


def test_a_key_that_is_not_restricted_has_each_right_and_nothing_is_read(set_up: DoctorHarness) -> None:
    set_up.sandbox.reset_calls()
    assert [finding.code for finding in set_up.examine("rights")] == ["rights_of_secret_key"]
    assert set_up.sandbox.calls() == []


def test_each_process_that_the_work_needs_is_missed(set_up: DoctorHarness, redis_url: str) -> None:
    set_up.set({"REDIS_URL": redis_url})
    codes = {finding.code: finding.advice for finding in set_up.examine("processes")}
    assert codes == {
        "no_worker": "`billing-sync worker`",
        "no_relay": "`billing-sync relay`",
        "no_beat": "`billing-sync beat`",
        "no_api": "if you need HTTP: `billing-sync api`",
    }
    set_up.beats("worker", "relay", "beat", "api")
    assert [finding.code for finding in set_up.examine("processes")] == ["processes"]


def test_a_redis_that_evicts_messages_is_found(set_up: DoctorHarness, redis_url: str) -> None:
    set_up.set({"REDIS_URL": redis_url})
    assert [finding.level for finding in (*set_up.examine("redis"), *set_up.examine("broker"))] == ["ok", "ok"]
    with redis_client.Redis.from_url(redis_url) as server:
        server.config_set("maxmemory-policy", "allkeys-lru")
        try:
            (finding,) = set_up.examine("redis")
        finally:
            server.config_set("maxmemory-policy", "noeviction")
    assert (finding.code, finding.level) == ("redis_evicts", "warning")
    assert "`redis-cli config set maxmemory-policy noeviction`" in finding.advice


@pytest.mark.parametrize(
    ("begin", "end", "codes"),
    [
        (("CONFIG SET maxmemory 1",), ("CONFIG SET maxmemory 0",), ["broker_refuses", "redis_refuses"]),
        (("REPLICAOF 127.0.0.1 1",), ("REPLICAOF NO ONE",), ["broker_refuses", "redis_refuses"]),
    ],
    ids=["full", "replica"],
)
def test_a_broker_that_refuses_messages_is_found(
    set_up: DoctorHarness, redis_url: str, begin: tuple[str], end: tuple[str], codes: list[str]
) -> None:
    set_up.set({"REDIS_URL": redis_url})
    with redis_client.Redis.from_url(redis_url) as server:
        server.execute_command(*begin[0].split())
        try:
            found = [*set_up.examine("broker"), *set_up.examine("redis")]
        finally:
            server.execute_command(*end[0].split())
    assert [finding.code for finding in found] == codes
    assert {finding.level for finding in found} == {"error"}
    assert [finding.level for finding in (*set_up.examine("broker"), *set_up.examine("redis"))] == ["ok", "ok"]


@pytest.mark.parametrize(("used", "code"), [(50, "redis"), (95, "redis_nearly_full")])
def test_a_redis_is_found_before_it_is_full(set_up: DoctorHarness, redis_url: str, used: int, code: str) -> None:
    set_up.set({"REDIS_URL": redis_url})
    with redis_client.Redis.from_url(redis_url) as server:
        limit = int(server.info("memory")["used_memory"]) * 100 // used
        server.config_set("maxmemory", str(limit))
        try:
            codes = [finding.code for finding in set_up.examine("redis")]
        finally:
            server.config_set("maxmemory", "0")
    assert codes == [code]


def test_links_that_wait_for_an_operator_are_found_with_their_entry_in_the_runbook(set_up: DoctorHarness) -> None:
    assert [finding.code for finding in set_up.examine("links")] == ["links"]
    manager = OrgManager(database_url=f"sqlite:///{set_up.database_file}")
    for name in ("Acme", "Beta"):
        manager.create_organization(name, "starter")
    manager.close()
    parks = "UPDATE billing_links SET state = 'parked', error_kind = 'rejected', error_code = 'unknown_plan'"
    executes(f"{parks} WHERE provider = 'lago'")(set_up)
    (finding,) = set_up.examine("links")
    assert (finding.code, finding.level) == ("links_parked", "warning")
    assert finding.message == "Lago: 2 links parked: unknown_plan"
    assert finding.advice == "`billing-sync parked`; docs/operations/runbook.md#unknown_plan"


def test_webhooks_that_the_api_refuses_are_found(set_up: DoctorHarness) -> None:
    database, since = set_up.database(), utc_now()
    provider_webhooks.record_refusal(database, "lago", since)
    database.close()
    (finding,) = [each for each in set_up.examine("provider webhooks") if each.level != "ok"]
    assert (finding.code, finding.level) == ("lago_webhooks_refused", "error")
    assert f"since {since:%Y-%m-%d %H:%M} UTC" in finding.message
    assert "set LAGO_WEBHOOK_SECRET for the API" in finding.advice


def test_a_queue_of_another_type_is_found_in_rabbitmq(set_up: DoctorHarness, rabbit_url: str) -> None:
    set_up.set({"CELERY_BROKER_URL": rabbit_url})
    with Connection(rabbit_url) as connection:
        queue = Queue("events", channel=connection.default_channel)
        queue.delete()
        before = set_up.examine("broker")
        queue.declare()
        try:
            (finding,) = [each for each in set_up.examine("broker") if each not in before]
        finally:
            queue.delete()
        assert (finding.code, finding.level) == ("queue_type", "error")
        assert "`rabbitmqctl delete_queue events --if-empty`" in finding.advice
        assert set_up.examine("broker") == before
        with pytest.raises(amqp.NotFound):  # the check itself made none
            queue.queue_declare(passive=True)
    assert [each.code for each in before] in (["broker"], ["rabbitmq_old"])


def test_a_postgres_database_is_described(set_up: DoctorHarness, postgres_url: str) -> None:
    set_up.set({"DATABASE_URL": postgres_url})
    (empty,) = set_up.examine("database")
    assert (empty.code, empty.level, empty.advice) == ("schema_older", "error", "run `billing-sync db upgrade`")


def test_a_postgres_database_that_accepts_no_write_is_found(
    set_up: DoctorHarness, postgres_server: str, postgres_template: str
) -> None:
    with servers.database(postgres_server, postgres_template) as url:
        set_up.set({"DATABASE_URL": url})
        (healthy,) = set_up.examine("database")
        assert (healthy.code, healthy.level) == ("database", "ok"), healthy
        with psycopg.connect(url, autocommit=True) as connection:
            name = SQL("ALTER DATABASE {} SET default_transaction_read_only = on")
            connection.execute(name.format(Identifier(connection.info.dbname)))
        (read_only,) = set_up.examine("database")
        set_up.set({"REDIS_URL": "redis://h"})
        (processes,) = set_up.examine("processes")
    assert (read_only.code, read_only.level) == ("read_only", "error")
    assert f"`ALTER DATABASE {make_url(url).database} RESET default_transaction_read_only`" in read_only.advice
    assert (processes.code, processes.level) == ("processes_unread", "not_checked")


def test_a_postgres_database_of_another_encoding_is_found(set_up: DoctorHarness, postgres_server: str) -> None:
    with psycopg.connect(postgres_server, autocommit=True) as owner:
        owner.execute("CREATE DATABASE doctor_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        try:
            set_up.set(
                {
                    "DATABASE_URL": make_url(postgres_server)
                    .set(database="doctor_ascii")
                    .render_as_string(hide_password=False)
                }
            )
            codes = [finding.code for finding in set_up.examine("database")]
        finally:
            owner.execute("DROP DATABASE doctor_ascii WITH (FORCE)")
    assert codes == ["encoding"]


def test_services_that_respond_are_fine(set_up: DoctorHarness) -> None:
    with OidcProvider() as oidc, smtp_server.smtp_server() as smtp:
        set_up.set(
            {
                "OIDC_ISSUER": oidc.issuer,
                "OIDC_AUDIENCE": "a",
                "SMTP_HOST": "127.0.0.1",
                "SMTP_PORT": str(smtp.port),
                "SMTP_TLS": "none",
                "MAIL_FROM": "a@b.example",
            }
        )
        levels = [finding.level for finding in (*set_up.examine("sign-in"), *set_up.examine("emails"))]
    assert levels == ["ok", "ok"]
    assert smtp.received == []


@pytest.mark.parametrize(
    ("document", "algorithm", "code", "advice"),
    [
        ({"issuer": "https://id.test"}, "RS256", "sign_in_wrong_issuer", "set OIDC_ISSUER to https://id.test"),
        ({"jwks_uri": None}, "RS256", "sign_in_no_discovery", "curl"),
        ({"jwks_uri": "http://127.0.0.1:99999/"}, "RS256", "sign_in_unusable_address", "own host name and port"),
        ({"token_endpoint": "http://id.test/token"}, "RS256", "sign_in_unencrypted", "Keycloak: `proxy-headers`"),
        ({}, "ES256", "sign_in_no_key", "set OIDC_ALGORITHM to the algorithm of the tokens"),
    ],
)
def test_each_wrong_setting_of_a_sign_in_service_is_a_finding(
    set_up: DoctorHarness, document: dict[str, str | None], algorithm: str, code: str, advice: str
) -> None:
    with OidcProvider() as oidc:
        oidc.document.update(document)
        set_up.set({"OIDC_ISSUER": oidc.issuer, "OIDC_AUDIENCE": "a", "OIDC_ALGORITHM": algorithm})
        (finding,) = set_up.examine("sign-in")
    assert (finding.code, finding.level) == (code, "error")
    assert advice in finding.advice


def test_a_sign_in_service_that_redirects_is_a_finding(set_up: DoctorHarness) -> None:
    with OidcProvider() as oidc:
        oidc.redirects_to = f"{oidc.issuer}/elsewhere"
        set_up.set({"OIDC_ISSUER": oidc.issuer, "OIDC_AUDIENCE": "a"})
        (finding,) = set_up.examine("sign-in")
    assert (finding.code, finding.level) == ("sign_in_redirected", "error")
    assert f"redirects to {oidc.issuer}/elsewhere (302)" in finding.message
    assert f"try `curl -L {oidc.issuer}/.well-known/openid-configuration`, then set OIDC_ISSUER" in finding.advice


def test_a_sign_in_service_is_reached_by_its_inner_address(set_up: DoctorHarness) -> None:
    with OidcProvider(named="https://id.acme.test/realms/acme") as oidc:
        set_up.set({"OIDC_ISSUER": oidc.issuer, "OIDC_INTERNAL_URL": oidc.address, "OIDC_AUDIENCE": "a"})
        (finding,) = set_up.examine("sign-in")
    assert finding.level == "ok"


class _LagoServer(BaseHTTPRequestHandler):
    """Responds with a version of Lago and a Date of another time."""

    version = "1.52.0"
    ahead_seconds = 0.0

    def do_GET(self) -> None:
        body = json.dumps({"version": self.version}).encode()
        self.send_response_only(200)
        self.send_header("Date", formatdate(time.time() + self.ahead_seconds, usegmt=True))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Log nothing, since a test's output is for failures."""


@contextmanager
def lago_server(version: str = "1.52.0", ahead_seconds: float = 0.0) -> Iterator[str]:
    handler = type("Handler", (_LagoServer,), {"version": version, "ahead_seconds": ahead_seconds})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("version", "code", "advice"),
    [
        ("1.29.3", "lago_version_unsafe", "upgrade Lago to v1.48 or newer"),
        ("v1.47.1", "lago_version_old", "upgrade Lago to v1.48 or newer"),
        ("v1.48.0", "lago_version", ""),
        ("sandbox", "lago_version_unknown", ""),
    ],
)
def test_an_old_lago_is_found_by_its_version(set_up: DoctorHarness, version: str, code: str, advice: str) -> None:
    with lago_server(version) as url:
        set_up.set({"LAGO_API_URL": url})
        found = {finding.code: finding for finding in set_up.examine("clocks and Lago")}
    assert advice in found[code].advice


@pytest.mark.parametrize(
    ("ahead_seconds", "level"), [(0, "ok"), (3, "ok"), (60, "warning"), (-60, "warning"), (600, "error")]
)
def test_a_clock_that_differs_from_a_providers_is_found(
    set_up: DoctorHarness, ahead_seconds: float, level: str
) -> None:
    with lago_server(ahead_seconds=ahead_seconds) as url:
        set_up.set({"LAGO_API_URL": url})
        _, finding, _ = set_up.examine("clocks and Lago")
    assert finding.level == level, finding
    assert (level == "ok") or "`timedatectl set-ntp true`" in finding.advice


def test_a_payer_that_lago_linked_shows_that_the_connection_is_right(set_up: DoctorHarness) -> None:
    assert [finding.code for finding in set_up.examine("payer")] == ["payer_unproved"]
    database = set_up.database()
    OrgManager(database_url=f"sqlite:///{set_up.database_file}").create_organization("Acme", "starter")
    with database.write() as session:
        session.execute(
            update(BillingLink).where(BillingLink.provider == "lago").values(payer_id="cus_1", synced_at=utc_now())
        )
    database.close()
    assert [finding.code for finding in set_up.examine("payer")] == ["payer"]


def test_an_error_in_a_check_is_a_finding_and_the_others_go_on(set_up: DoctorHarness) -> None:
    def fails(_: DoctorInputs) -> list[DoctorFinding]:
        secret = "word-of-mine"
        raise KeyError(secret)

    inputs = DoctorInputs(settings=Settings(), api_settings=None, version="1")
    reports = registry.run(inputs, {"a": fails, "b": lambda _: [ok("fine", "fine")]})
    assert set_up.folder.exists()
    assert [(each.subject, each.findings[0].code) for each in reports] == [("a", "check_failed"), ("b", "fine")]
    assert "KeyError" in reports[0].findings[0].message
    assert "word-of-mine" not in str(reports)


@pytest.mark.parametrize(
    ("host", "remote"),
    [
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("redis", False),
        ("redis.internal", False),
        (None, False),
        ("8.8.8.8", True),
        ("redis.example.com", True),
        ("2606:4700::1111", True),
        ("fd00::1", False),
    ],
)
def test_a_host_of_another_network_is_remote(host: str | None, *, remote: bool) -> None:
    assert is_remote(host) is remote


def test_names_that_others_set_are_not_ours(set_up: DoctorHarness) -> None:
    """Kubernetes and Docker name the address of each service in the environment of each container."""
    set_up.set({"LAGO_SERVICE_HOST": "1", "LAGO_API_PORT_80_TCP_ADDR": "1", "REDIS_PORT_6379_TCP": "1", "API_KEY": "1"})
    assert {finding.level for finding in set_up.examine("settings")} == {"ok"}


def test_an_address_that_no_database_can_have_is_no_bug(postgres_url: str) -> None:
    """As if a setting had changed after it was checked."""
    settings = Settings.model_construct(database_url=postgres_url, database_direct_url="sqlite:///x.db")
    inputs = DoctorInputs(settings=settings, api_settings=None, version="1")
    (finding,) = registry.CHECKS["database"](inputs)
    assert finding.code == "database_unusable"
    assert finding.message.startswith("DATABASE_DIRECT_URL names a SQLite file: ")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("STRIPE_API_KEY", "STRIPE_SECRET_KEY"),
        ("LAGO_URL", "LAGO_API_URL"),
        ("LAGO_APP_URL", "LAGO_API_URL"),
        ("OIDC_ISSUER_URL", "OIDC_ISSUER"),
        ("SMTP_USERNAME", "SMTP_USER"),
        ("LAGO_QQ", None),
        ("SMTP_SERVER", None),
        ("SMTP_SECURE", None),
    ],
)
def test_a_name_that_may_be_of_another_program_is_a_note_and_no_failure(
    set_up: DoctorHarness, name: str, meant: str | None
) -> None:
    set_up.set({name: "word-of-mine"})
    (finding,) = set_up.examine("settings")
    what = "remove it from" if meant is None else f"rename it to {meant} in"
    assert (finding.code, finding.level) == ("unknown_setting", "not_set")
    assert finding.message == f"{name} is no setting" + (f", the nearest one is {meant}" if meant else "")
    assert finding.advice == f"{what} the environment, unless another program reads it"
