"""What the commands answer from rows alone, on both databases: as a table for people, as JSON for programs."""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import Connection, Engine, event, select, update
from typer.testing import CliRunner, Result

from core.catalog.plans import DEFAULT_PLANS_FILE, Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.email import Email
from core.db.models.events import Event
from core.db.models.organizations import Organization
from core.db.models.providers import BreakerReason, ProviderStatus
from core.drift import report_store
from core.flow_control import circuit_breaker
from core.inbox import provider_webhooks, service_events
from core.org_manager import OrgManager
from core.ports import arrangement
from core.ports.arrangement import Arrangement
from core.ports.errors import MisconfiguredError, RetryableError
from core.reporting import heartbeats
from core.reporting.heartbeats import ProcessKind, ProcessStart
from tasks.base import BillingApp
from worker.cli.app import app
from worker.cli.exit_codes import UsageError
from worker.config.settings import Settings
from worker.processes.relay import Relay
from worker.wiring.celery_app import build

pytestmark = pytest.mark.slow  # many cases of one kind

ROOT = Path(__file__).resolve().parents[2]
Type = Callable[..., Result]
NONE: Mapping[str, str] = {}
EMBEDDED = {
    "plans_file": DEFAULT_PLANS_FILE,
    "stripe_secret_key": "sk_test_nobody",
    "stripe_api_base": "http://127.0.0.1:1",
    "lago_api_key": "nobody",
    "lago_api_url": "http://127.0.0.1:1",
    "lago_stripe_provider_code": "stripe_main",
}

UNSET_VARIABLES = (
    "STRIPE_SECRET_KEY",
    "LAGO_API_KEY",
    "REDIS_URL",
    "CELERY_BROKER_URL",
    "STRIPE_API_BASE",
    "LAGO_API_URL",
)


@pytest.fixture
def manager(database: Database) -> Iterator[OrgManager]:
    opened = OrgManager(database_url=database.url.render_as_string(hide_password=False))
    yield opened
    opened.close()


def address_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


@pytest.fixture
def types(database: Database, tmp_path: Path) -> Type:
    """Type a command; the answer's exit code and standard output."""
    own_settings: dict[str, str | None] = {
        **dict.fromkeys(UNSET_VARIABLES),
        "DATABASE_URL": address_of(database),
        "DATA_DIR": str(tmp_path),
    }

    def typed(
        *words: str, columns: int = 120, plans: Path = DEFAULT_PLANS_FILE, settings: Mapping[str, str] = NONE
    ) -> Result:
        env = {**own_settings, "COLUMNS": str(columns), "PLANS_FILE": str(plans), **settings}
        return CliRunner().invoke(app, list(words), env=env)

    return typed


def json_of(result: Result) -> Any:  # noqa: ANN401 - JSON
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def put(database: Database, org_id: str, provider: str, **values: object) -> None:
    with database.write() as session:
        session.execute(
            update(BillingLink)
            .where(BillingLink.org_id == org_id, BillingLink.provider == provider)
            .values(**values)
            .execution_options(synchronize_session=False)
        )


def sync(database: Database, org_id: str, provider: str, customer_id: str) -> None:
    put(
        database,
        org_id,
        provider,
        applied_version=BillingLink.desired_version,
        customer_id=customer_id,
        subscription_id="sub-1" if provider == "lago" else None,
        plan_state="applied" if provider == "lago" else "unknown",
        applied_plan="starter" if provider == "lago" else None,
        synced_at=utc_now(),
        error_kind=None,
    )


def park(database: Database, org_id: str, provider: str, code: str | None = "resource_missing") -> None:
    put(
        database,
        org_id,
        provider,
        state="parked",
        error_kind="rejected",
        error_code=code,
        error_message="Stripe knows no customer cus_1; correct the id",
        error_request_id="req_1",
        error_at=utc_now() - timedelta(minutes=5),
    )


def test_orgs_lists_plan_ids_and_whether_they_are_in_sync(types: Type, manager: OrgManager, database: Database) -> None:
    first = manager.create_organization("Acme [bold]", "enterprise")
    manager.update_org_plan(first, "starter")
    manager.add_user_to_org(first, "user_1", "owner")
    second = manager.create_organization("Beta")
    for provider in ("stripe", "lago"):
        sync(database, second, provider, f"{provider}_customer_of_beta")
    shown = types("orgs").stdout
    assert "Acme [bold]" in shown
    assert "→ starter" in shown
    assert "2 in all" in shown
    document = json_of(types("orgs", "--json"))
    assert document["total"] == 2
    acme, beta = document["organizations"]
    assert (acme["id"], acme["name"], acme["members"]) == (first, "Acme [bold]", 1)
    assert (acme["plan_tier"], acme["pending_plan_tier"], acme["in_sync"]) == ("enterprise", "starter", False)
    assert beta["in_sync"] is True
    assert beta["links"]["lago"]["customer_id"] == "lago_customer_of_beta"
    assert beta["links"]["lago"]["synced_at"].endswith("Z")


def test_orgs_can_be_narrowed(types: Type, manager: OrgManager) -> None:
    for number in range(3):
        manager.create_organization(f"Kite {number}", "starter")
    manager.create_organization("Zürich Analytics", "enterprise")
    assert json_of(types("orgs", "--plan", "enterprise", "--json"))["total"] == 1
    assert json_of(types("orgs", "--search", "ZÜRICH", "--json"))["organizations"][0]["name"] == "Zürich Analytics"
    limited = types("orgs", "--search", "kite", "--limit", "2")
    assert "2 of 3; --limit shows more" in limited.stdout
    assert "No organization matches." in types("orgs", "--search", "100%").stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_a_table_fits_the_screen_and_shows_the_beginning_of_each_id(
    types: Type, manager: OrgManager, database: Database, columns: int
) -> None:
    org_id = manager.create_organization("An organization with quite a long name, Incorporated", "founders_friend")
    sync(database, org_id, "stripe", "cus_0123456789abcdef")
    sync(database, org_id, "lago", "1a901a90-1a90-4a90-8a90-1a901a901a90")
    lines = types("orgs", columns=columns).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert "founders_friend" in lines[1]
    assert org_id[:10] in lines[1]
    assert "cus_012345" in lines[1]


def test_status_counts_and_names_what_fails_alike(types: Type, manager: OrgManager, database: Database) -> None:
    in_sync, behind, *parked_ids = [manager.create_organization(f"Company {number}") for number in range(5)]
    for provider in ("stripe", "lago"):
        sync(database, in_sync, provider, f"{provider}_1")
    put(database, behind, "lago", not_before=utc_now() + timedelta(seconds=30), not_before_reason="payer")
    for org_id in parked_ids:
        park(database, org_id, "stripe")
    document = json_of(types("status", "--json"))
    assert document["in_sync"] is False
    assert document["organizations"] == 5
    stripe, lago = document["providers"]["stripe"], document["providers"]["lago"]
    assert (stripe["in_sync"], stripe["behind"], stripe["parked"]) == (1, 1, 3)
    assert (lago["in_sync"], lago["behind"], lago["parked"]) == (1, 4, 0)
    assert document["unpublished"] == 5
    (trouble,) = document["failures"]
    assert (trouble["provider"], trouble["state"], trouble["code"], trouble["links"]) == (
        "stripe",
        "parked",
        "resource_missing",
        3,
    )
    shown = types("status").stdout
    assert "5 organizations" in shown
    assert "broker: none configured" in shown
    assert "`billing-sync parked`" in shown


def test_status_begins_with_what_is_set_up_and_what_runs(types: Type, database: Database) -> None:
    idle = types("status").stdout
    assert "processes  none seen in the last minute; start `billing-sync up`" in idle
    with database.write() as session:
        now = utc_now()
        for number, kind in enumerate(get_args(ProcessKind)):
            started = ProcessStart(
                instance_id=str(number), kind=kind, host="host-1", version="0.0.1", started_at=now - timedelta(hours=1)
            )
            heartbeats.record(session, started, now)
        session.execute(
            update(ProviderStatus)
            .where(ProviderStatus.provider == "stripe")
            .values(account_id="acct_1", livemode=False)
        )
    document = json_of(types("status", "--json"))
    kind = "SQLite" if database.is_sqlite else "Postgres"
    assert document["database"]["kind"] == kind
    assert {process["kind"] for process in document["processes"]} == set(get_args(ProcessKind))
    assert document["charges"]["stripe"] == []
    assert "starter" in document["charges"]["lago"]
    lines = types("status").stdout.splitlines()
    assert lines[0].split() == ["version", document["version"]]
    assert lines[1].startswith(f"database   {kind}, ")
    assert "Stripe     sandbox, acct_1, test mode; charges nothing" in "\n".join(lines)
    assert re.search("processes  1 api, 1 beat, 1 relay, 1 up, 1 worker, seen .* ago; versions 0.0.1", "\n".join(lines))


def test_status_names_each_process_that_is_missing(types: Type, database: Database) -> None:
    with database.write() as session:
        now = utc_now()
        for kind in ("relay", "api"):
            started = ProcessStart(instance_id=kind, kind=kind, host="host-1", version="0.0.1", started_at=now)
            heartbeats.record(session, started, now)
    embedded = " ".join(types("status").stdout.split())
    assert "; no up: start `billing-sync up`" in embedded
    broker = {"REDIS_URL": "redis://127.0.0.1:9"}
    deployed = " ".join(types("status", settings=broker).stdout.split())
    assert "; no worker, no beat: start `billing-sync worker` and `billing-sync beat`" in deployed


def test_status_says_that_webhooks_are_refused(types: Type, database: Database) -> None:
    provider_webhooks.record_refusal(database, "stripe", utc_now())
    shown = " ".join(types("status").stdout.split())
    assert "Stripe's webhooks have been refused since" in shown
    assert "set STRIPE_WEBHOOK_SECRET to the secret of the endpoint in Stripe and restart the API" in shown
    document = json_of(types("status", "--json"))
    assert document["providers"]["stripe"]["webhooks_refused_since"] is not None
    assert document["providers"]["lago"]["webhooks_refused_since"] is None
    assert document["database"]["is_read_only"] is False


def test_status_says_when_the_billers_were_compared_and_what_had_drifted(types: Type, database: Database) -> None:
    assert json_of(types("status", "--json"))["last_drift_report"] is None
    with database.write() as session:
        run = report_store.resume(session, utc_now())
        run.counts.drifted, run.counts.kinds["renamed"] = 1, 1
        report_store.save_progress(session, run, utc_now())
        report_store.finish(session, run, utc_now())
    last = json_of(types("status", "--json"))["last_drift_report"]
    assert (last["drifted"], last["kinds"]) == (1, {"renamed": 1})
    assert "1 organization with drift" in types("status").stdout


def test_status_of_one_says_why_and_what_next(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme")
    park(database, org_id, "stripe")
    waits_until = utc_now() + timedelta(seconds=25)
    put(
        database,
        org_id,
        "lago",
        not_before_reason="payer",
        error_message="waiting for the Stripe customer that Lago will charge",
        not_before=waits_until,
    )
    shown = types("status", " ACME ").stdout
    assert "parked 5 min ago" in shown
    assert "Stripe knows no customer cus_1; correct the id [resource_missing, request req_1]" in shown
    assert f"billing-sync retry {org_id}" in shown
    assert "continues as soon as the Stripe customer exists, or in 2" in shown
    links = json_of(types("status", org_id, "--json"))["links"]
    assert (links["stripe"]["status"], links["lago"]["status"]) == ("parked", "waiting")
    assert links["lago"]["next_at"] == waits_until.isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"attempts": 0}, "queued"),
        ({"lease_until": utc_now() + timedelta(hours=1)}, "syncing"),
        ({"error_kind": "unavailable", "not_before": utc_now() + timedelta(hours=1)}, "retrying"),
        ({"state": "on_hold"}, "on_hold"),
        ({"applied_version": 1, "intent": {"operation": "create_customer"}}, "queued"),
        ({"applied_version": 1}, "in_sync"),
    ],
)
def test_every_standing_has_its_word(
    types: Type, manager: OrgManager, database: Database, values: dict[str, object], status: str
) -> None:
    org_id = manager.create_organization("Acme")
    put(database, org_id, "stripe", **values)
    assert json_of(types("status", org_id, "--json"))["links"]["stripe"]["status"] == status
    assert types("status", org_id).exit_code == 0


def test_an_organization_is_meant_by_id_by_name_and_by_the_beginning_of_an_id(types: Type, manager: OrgManager) -> None:
    org_id = manager.create_organization("Café Zürich")
    for word in (org_id, "café ZÜRICH", org_id[:13]):
        assert json_of(types("status", word, "--json"))["id"] == org_id


def refused(result: Result) -> str:
    assert isinstance(result.exception, UsageError), result.output
    return str(result.exception)


def test_a_word_that_means_nobody_is_answered_with_what_comes_close(types: Type, manager: OrgManager) -> None:
    org_id = manager.create_organization("Umbrella")
    assert refused(types("status", "Umbrela")) == (
        f"there is no organization 'Umbrela'; did you mean Umbrella ({org_id})?"
    )
    assert refused(types("status", "brell")).endswith(f"did you mean Umbrella ({org_id})?")
    assert "`billing-sync orgs --search`" in refused(types("status", "Initech"))


def test_a_name_that_two_deleted_ones_had_is_ambiguous(types: Type, manager: OrgManager) -> None:
    ids = []
    for _ in range(2):
        ids.append(manager.create_organization("Acme"))
        manager.update_org_status(ids[-1], "deleted")
    sentence = refused(types("status", "Acme"))
    assert sentence.startswith("'Acme' is ambiguous: Acme (org_")
    assert sentence.endswith("; give the whole id")
    assert all(org_id in sentence for org_id in ids)
    third = manager.create_organization("Acme")
    assert json_of(types("status", "Acme", "--json"))["id"] == third


def test_parked_says_what_to_do(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme")
    unknown = manager.create_organization("Beta")
    park(database, org_id, "stripe")
    park(database, unknown, "lago", "unknown_plan")
    shown = types("parked").stdout
    assert "parked 5 min ago: Stripe knows no customer cus_1" in shown
    assert f"retry {org_id}" in shown
    shown = " ".join(shown.split())
    assert f"change the organization to a plan of the catalog (`billing-sync set {unknown} --plan …`)" in shown
    assert "restart the workers and the API" in shown
    assert "a new name, plan, billing email or currency also retries both links" in shown
    document = json_of(types("parked", "--json"))
    assert document["total"] == 2
    assert {each["org_id"] for each in document["parked"]} == {org_id, unknown}
    assert all(each["link"]["next_step"] for each in document["parked"])


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (
            {"state": "parked", "error_kind": "ambiguous"},
            "do what the message says; delete no customer in Stripe",
        ),
        (
            {"state": "on_hold", "error_kind": "import"},
            "set it with `billing-sync set-customer-id ORG --stripe …`; otherwise `billing-sync retry ORG` accepts",
        ),
    ],
)
def test_the_advice_ends_no_subscription_by_itself(
    types: Type, manager: OrgManager, database: Database, values: dict[str, str], advice: str
) -> None:
    org_id = manager.create_organization("Acme")
    put(database, org_id, "stripe", error_message="Stripe has two customers", **values)
    assert advice.replace("ORG", org_id) in " ".join(types("parked").stdout.split())


def test_retry_may_be_repeated(types: Type, manager: OrgManager, database: Database) -> None:
    ids = [manager.create_organization(f"Company {number}") for number in range(3)]
    park(database, ids[0], "stripe")
    park(database, ids[1], "lago", "unknown_plan")
    assert json_of(types("retry", "--error", "unknown_plan", "--json")) == {"organizations": 1, "providers": []}
    assert json_of(types("parked", "--json"))["total"] == 1
    assert "1 organization will be retried." in types("retry", "--all").stdout
    assert "Nothing is parked." in types("retry", "--all").stdout
    named = types("retry", "Company 2")
    assert "1 organization will be retried." in named.stdout
    assert "a running `billing-sync up` applies it" in " ".join(named.stdout.split())
    assert refused(types("retry", "--error", "unheard_of")).startswith("no organization has the error 'unheard_of'")
    assert refused(types("retry")).startswith("choose what to retry")
    assert refused(types("retry", "Company 2", "--all")).startswith("choose what to retry")


def test_what_an_import_left_to_decide_is_decided_one_by_one(
    types: Type, manager: OrgManager, database: Database
) -> None:
    held, parked = manager.create_organization("Acme"), manager.create_organization("Beta")
    park(database, held, "lago")
    park(database, parked, "stripe")
    with database.write() as session:
        session.get_one(BillingLink, (held, "stripe")).state = "on_hold"
    shown = " ".join(types("retry", "--all").stdout.split())
    assert "1 organization will be retried. 1 organization on hold since an import" in shown
    assert {each["org_id"] for each in json_of(types("parked", "--json"))["parked"]} == {held}
    assert "Nothing else is parked. 1 organization on hold" in " ".join(types("retry", "--all").stdout.split())
    assert "1 organization will be retried." in types("retry", held).stdout
    assert "Nothing is parked." in types("parked").stdout


def test_a_wrong_id_is_corrected_and_read_anew(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme")
    other = manager.create_organization("Beta")
    park(database, org_id, "stripe")
    assert f"`billing-sync status {org_id}`" in " ".join(
        types("set-customer-id", "Acme", "--stripe", "cus_right", "--yes").stdout.split()
    )
    with database.read() as session:
        link = session.get_one(BillingLink, (org_id, "stripe"))
    assert (link.customer_id, link.customer_state, link.state) == ("cus_right", "unconfirmed", "active")
    taken = refused(types("set-customer-id", other, "--stripe", "cus_right"))
    assert "already belongs to organization" in taken
    assert refused(types("set-customer-id", "Acme")).startswith("give an id: --stripe")
    assert refused(types("set-customer-id", "Nobody", "--lago", "x"))


def test_a_billing_email_that_is_set_frees_a_parked_link(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme")
    park(database, org_id, "stripe")
    shown = types("set", "Acme", "--billing-email", "ap@acme.test", "--yes").stdout
    assert "billing email: none → ap@acme.test" in shown
    assert f"`billing-sync status {org_id}`" in shown
    with database.read() as session:
        assert session.get_one(Organization, org_id).billing_email == "ap@acme.test"
        assert session.get_one(BillingLink, (org_id, "stripe")).state == "active"


def test_set_says_what_follows_and_stores_it_with_the_name_of_the_operator(
    types: Type, manager: OrgManager, database: Database
) -> None:
    org_id = manager.create_organization("Acme", "starter")
    shown = types("set", "Acme", "--plan", "enterprise", "--name", "Acme GmbH", "--yes").stdout
    assert "name: Acme → Acme GmbH" in shown
    assert "plan: enterprise applies immediately." in shown
    assert "list price: 19.00 USD monthly → 99.00 USD monthly; Lago charges" in shown
    shown = " ".join(types("set", org_id, "--plan", "starter", "--yes").stdout.split())
    assert "enterprise stays until the end of the paid period, then starter applies" in shown
    assert "enterprise → starter" in types("status", org_id).stdout
    assert "Nothing was changed." in types("set", org_id, "--plan", "starter", "--yes").stdout
    shown = types("set", org_id, "--status", "deleted", "--yes").stdout
    assert "status: active → deleted; its subscriptions at both providers end" in shown
    assert "the scheduled change to starter is canceled" in shown
    with database.read() as session:
        changes = session.scalars(select(Event).where(Event.org_id == org_id).order_by(Event.seq)).all()[1:]
    assert [each.type.removeprefix("organization.") for each in changes] == [
        "renamed",
        "plan_changed",
        "plan_changed",
        "status_changed",
    ]
    user = pwd.getpwuid(os.getuid()).pw_name
    assert {(each.actor, each.source) for each in changes} == {(f"operator:{user}", "billing-sync set")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--plan", "gold"), "--plan: plan_tier must be one of "),
        (("--name", " "), "--name: Organization name cannot be empty"),
        (("--name", "beta"), "--name: Organization 'beta' already exists"),
        (("--status", "gone"), "--status: status must be one of active, suspended, deleted"),
        (("--billing-email", "no address"), "--billing-email: billing_email must be a single address"),
        (("--status", "deleted", "--name", "Gone"), "--status: "),
        ((), "choose what to set: --plan, --name, --status, --billing-email or --currency"),
    ],
)
def test_set_refuses_a_value_in_a_sentence_that_names_the_option_and_stores_nothing(
    types: Type, manager: OrgManager, database: Database, words: tuple[str, ...], said: str
) -> None:
    org_id = manager.create_organization("Acme")
    manager.create_organization("Beta")
    assert refused(types("set", "Acme", *words, "--yes")).startswith(said)
    with database.read() as session:
        assert session.get_one(Organization, org_id).version == 1


@pytest.mark.parametrize(
    "words",
    [
        ("set", "Acme", "--plan", "enterprise"),
        ("set-customer-id", "Acme", "--stripe", "cus_1"),
        ("resolve", "Acme", "--ours"),
        ("resolve", "Acme", "--dispute"),
    ],
)
def test_nothing_is_changed_before_somebody_confirms_it(
    types: Type, manager: OrgManager, database: Database, words: tuple[str, ...]
) -> None:
    org_id = manager.create_organization("Acme", "starter")
    put(database, org_id, "lago", state="on_hold", error_kind="conflict", error_message="Lago has another plan")
    put(database, org_id, "lago", payment_status="dispute_lost", payment_since=utc_now())
    before = json_of(types("orgs", "--json"))["organizations"]
    assert refused(types(*words)) == "nothing was changed, because nobody can confirm it without a terminal: add --yes"
    assert types(*words).stdout
    assert json_of(types("orgs", "--json"))["organizations"] == before
    assert types(*words, "--yes").exit_code == 0


def test_what_an_operator_asked_for_is_on_the_queue_without_a_sweep(
    types: Type, manager: OrgManager, database: Database, tmp_path: Path
) -> None:
    retried, resolved = manager.create_organization("Acme"), manager.create_organization("Beta")
    app = build(Settings.model_validate({**EMBEDDED, "data_dir": tmp_path, "database_url": address_of(database)}))
    relay = Relay(app, database)
    try:
        relay.relay_once()  # the events of both that were created
        empty_queues(app)
        types("retry", retried)
        relay.relay_once()
        assert empty_queues(app) == {"stripe": [[retried]], "lago": [[retried]]}
        put(database, resolved, "lago", state="on_hold", error_kind="conflict", error_message="Lago has another plan")
        types("resolve", resolved, "--ours", "--yes")
        relay.relay_once()
        assert empty_queues(app) == {"stripe": [[resolved]], "lago": [[resolved]]}
    finally:
        app.close_runtime()


def empty_queues(app: BillingApp) -> dict[str, list[object]]:
    """Take all sync requests from the queues: the arguments of each."""
    found: dict[str, list[object]] = {"stripe": [], "lago": []}
    with app.connection_for_read() as connection:
        for name, taken in found.items():
            queue = app.amqp.queues[name](connection.default_channel)
            queue.declare()
            while (message := queue.get(no_ack=True)) is not None:
                taken.append(message.decode()[0])
    return found


def test_an_operator_hears_that_the_broker_is_away_and_that_nothing_is_lost(types: Type, manager: OrgManager) -> None:
    org_id = manager.create_organization("Acme")
    said = types("retry", org_id, settings={"CELERY_BROKER_URL": "redis://127.0.0.1:1/0"})
    assert said.exit_code == 0
    assert "The broker does not respond. The change is stored" in said.stdout
    assert "The broker does not respond" not in types("retry", org_id).stdout


def test_a_rejected_message_is_applied_again_by_a_command(
    types: Type, manager: OrgManager, database: Database, plans: Catalog
) -> None:
    acme, beta = manager.create_organization("Acme"), manager.create_organization("Beta")
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/crm",
        "type": "organization.renamed",
        "subject": acme,
        "data": {"name": "Beta"},
    }
    assert service_events.handle(database, plans, utc_now, event).status == "rejected"
    assert "/crm" in types("inbox", "list").stdout
    assert refused(types("inbox", "replay", "2")).startswith("there is no message '2'")
    again = types("inbox", "replay", "1")
    assert (again.exit_code, str(again.exception)) == (
        1,
        "the message is rejected again: data.name: another organization already has this name",
    )
    types("set", beta, "--name", "Gamma", "--yes")
    assert "The message is applied." in types("inbox", "replay", "1").stdout
    assert "Nothing to do: the message is applied." in types("inbox", "replay", "1").stdout
    with database.read() as session:
        assert session.get_one(Organization, acme).name == "Beta"


def test_a_failed_email_is_sent_again_by_a_command(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme")
    with database.write() as session:
        session.add(
            Email(
                id="11111111-email",
                cause="event",
                kind="welcome",
                recipient="a@acme.test",
                org_id=org_id,
                state="failed",
                attempts=5,
                next_attempt_at=utc_now(),
                error="mailbox full",
                created_at=utc_now(),
                closed_at=utc_now(),
            )
        )
    assert "`billing-sync emails retry ID`" in types("parked").stdout
    assert "Email 11111111-email will be sent again." in types("emails", "retry", "1111").stdout
    assert refused(types("emails", "retry", "1111")).startswith("there is no failed email '1111'")
    with database.read() as session:
        assert session.get_one(Email, "11111111-email").state == "pending"


def test_received_shows_what_was_not_taken_and_why(types: Type, database: Database, plans: Catalog) -> None:
    event = {"specversion": "1.0", "id": "1", "source": "/signup", "type": "organization.exploded", "subject": "org_1"}
    waiting = {**event, "id": "2", "type": "organization.renamed", "data": {"name": "Acme"}}
    for message in (event, waiting):
        service_events.handle(database, plans, utc_now, message)
    document = json_of(types("inbox", "list", "--json"))
    assert {each["status"] for each in document["messages"]} == {"rejected", "waiting"}
    assert all(each["reason"] for each in document["messages"])
    only = json_of(types("inbox", "list", "--status", "waiting", "--json"))
    assert [each["id"] for each in only["messages"]] == ["2"]
    assert "organization.exploded" in types("inbox", "list").stdout
    assert "There is no message with status applied." in types("inbox", "list", "--status", "applied").stdout
    assert "1 rejected, 1 waiting" in types("status").stdout


def test_import_names_what_was_lost_and_export_gives_it_back(types: Type, tmp_path: Path) -> None:
    data = ROOT / "tests/data/predecessor"
    healthy = [str(data / "healthy" / name) for name in ("organizations.json", "org_users.json")]
    clean = types("import", *healthy)
    assert clean.exit_code == 0
    assert "14 new, 0 unchanged" in clean.stdout
    assert "Nothing was lost." in clean.stdout
    out = [str(tmp_path / "o.json"), str(tmp_path / "u.json")]
    assert json_of(types("export", *out, "--json")) == {"organizations": 14, "members": 15}
    assert [Path(path).read_bytes() for path in out] == [Path(path).read_bytes() for path in healthy]
    assert "would be overwritten" in refused(types("export", *out))
    assert types("export", *out, "--replace").exit_code == 0
    torn = [str(data / "torn" / name) for name in ("organizations.json", "org_users.json")]
    lossy = types("import", *torn)
    assert lossy.exit_code == 1
    assert "4 lost:" in lossy.stdout
    assert "organizations.json line 11" in lossy.stdout
    again = types("import", *torn, "--json")
    assert again.exit_code == 1
    document = json.loads(again.stdout)
    assert document["lost"] == 4 == sum(each["kind"] == "loss" for each in document["findings"])
    assert document["organizations"]["new"] == 0


def trip_breaker(database: Database, error: RetryableError) -> None:
    with database.write() as session:
        circuit_breaker.record_failure(session, error, utc_now(), is_repeat=False, is_probe=False)


def test_a_stopped_biller_is_shown_with_its_reason_and_the_way_out(
    types: Type, manager: OrgManager, database: Database
) -> None:
    org_id = manager.create_organization("Acme", "starter")
    trip_breaker(database, MisconfiguredError("stripe", "Stripe does not accept the key; check STRIPE_SECRET_KEY"))
    for words in (["status"], ["parked"]):
        shown = " ".join(types(*words).stdout.split())
        assert "Stripe's circuit breaker has been open since" in shown
        assert "Stripe does not accept the key" in shown
        assert "correct the setting and restart the workers" in shown
        assert "next probe in" in shown
        assert "retry --all" not in shown  # it would retry every parked organization, only for a probe
    document = json_of(types("status", "--json"))["providers"]
    assert document["stripe"]["open_breaker"]["reason"] == "misconfigured"
    assert document["stripe"]["open_breaker"]["probe_at"].endswith("Z")
    assert document["lago"]["open_breaker"] is None
    assert json_of(types("parked", "--json"))["open_breakers"]["stripe"]["reason"] == "misconfigured"
    links = json_of(types("status", org_id, "--json"))["links"]
    assert {name: link["status"] for name, link in links.items()} == {"stripe": "provider_down", "lago": "queued"}


BREAKER_TEXTS: dict[BreakerReason, tuple[str, str]] = {
    "unavailable": ("Stripe is down", "resumes automatically once Stripe responds"),
    "misconfigured": ("Stripe rejects our key or settings", "correct the setting and restart the workers"),
    "wrong_account": ("the API key belongs to another Stripe account", "set the right key and restart every worker"),
}


@pytest.mark.parametrize("reason", BREAKER_TEXTS)
def test_a_link_that_waits_for_a_provider_says_who_must_act(
    types: Type, manager: OrgManager, database: Database, reason: BreakerReason
) -> None:
    org_id = manager.create_organization("Acme", "starter")
    with database.write() as session:
        row = session.get_one(ProviderStatus, "stripe")
        row.breaker_reason, row.breaker_message, row.open_since = reason, "no", utc_now()
    shown = " ".join(types("status", org_id).stdout.split())
    cause, step = BREAKER_TEXTS[reason]
    assert f"waiting: {cause}" in shown
    assert step in shown
    assert ("automatically once Stripe responds" in shown) == (reason == "unavailable")
    assert json_of(types("status", org_id, "--json"))["links"]["stripe"]["breaker_reason"] == reason


def test_a_rejected_payer_is_shown_with_what_to_correct(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme", "starter")
    put(database, org_id, "lago", payment_status="payer_rejected", payment_since=utc_now(), payment_code="missing")
    shown = " ".join(types("status", org_id).stdout.split())
    assert f"[missing]; correct the customer in Stripe, then run `billing-sync retry {org_id}`" in shown


def give_credit(database: Database, org_id: str, amount: int, **values: object) -> None:
    since = utc_now()
    put(database, org_id, "stripe", credit_amount=amount, credit_currency="USD", credit_since=since, **values)


def test_credit_that_no_invoice_will_use_is_shown_counted_and_listed_also_of_who_was_deleted(
    types: Type, manager: OrgManager, database: Database
) -> None:
    charged, moved, deleted, none = (manager.create_organization(name) for name in ("Acme", "Beta", "Cold", "Dust"))
    give_credit(database, charged, 500, subscription_id="sub_1")
    give_credit(database, moved, 3206)
    give_credit(database, deleted, 700)
    give_credit(database, none, 0)
    manager.update_org_status(deleted, "deleted")
    assert "credit left at Stripe: 2 customers; `billing-sync orgs --credit` lists them" in types("status").stdout
    providers = json_of(types("status", "--json"))["providers"]
    assert (providers["stripe"]["credit_left"], providers["lago"]["credit_left"]) == (2, 0)
    listed = json_of(types("orgs", "--credit", "--json"))["organizations"]
    assert [each["id"] for each in listed] == [moved, deleted]
    table = types("orgs", "--credit", columns=200).stdout
    assert all(word in table for word in ("32.06 USD", "7.00 USD", "Cold (deleted)"))
    assert "Cold" not in types("orgs", "--unpaid", "--parked").stdout
    shown = " ".join(types("status", moved).stdout.split())
    assert "32.06 USD left on the balance in Stripe since" in shown
    assert "refund or grant it, then take it off the balance" in shown
    assert "5.00 USD on the balance in Stripe since" in " ".join(types("status", charged).stdout.split())
    assert "the next invoice uses it" in " ".join(types("status", charged).stdout.split())
    assert "balance" not in types("status", none).stdout
    link = json_of(types("status", moved, "--json"))["links"]["stripe"]
    assert (link["credit_amount"], link["credit_currency"], link["credit_is_left"]) == (3206, "USD", True)


@pytest.fixture
def types_where_nothing_is_credited(types: Type, tmp_path: Path) -> Type:
    catalog = DEFAULT_PLANS_FILE.read_text(encoding="utf-8")
    changed = catalog.replace("stripe_prorate = true", "stripe_prorate = false")
    assert changed != catalog
    (tmp_path / "plans.toml").write_text(changed, encoding="utf-8")
    return partial(types, plans=tmp_path / "plans.toml")


def test_a_retry_that_ends_a_subscription_says_that_nothing_is_credited(
    types: Type, types_where_nothing_is_credited: Type, manager: OrgManager, database: Database
) -> None:
    moving, staying = manager.create_organization("Acme"), manager.create_organization("Beta")
    for org_id in (moving, staying):
        park(database, org_id, "stripe", "double_charging")
    put(database, moving, "stripe", subscription_id="sub_1")
    said = "The subscription in Stripe will be ended, and nothing is credited for paid time that is left"
    assert said in " ".join(types_where_nothing_is_credited("retry", moving).stdout.split())
    assert "credited" not in types_where_nothing_is_credited("retry", staying).stdout
    assert "credited" not in types("retry", moving).stdout
    for org_id in (moving, staying):
        park(database, org_id, "stripe", "double_charging")
    assert said in " ".join(types_where_nothing_is_credited("retry", "--all").stdout.split())


@pytest.mark.parametrize(
    "command", [("set", "--billing-email", "ap@acme.test"), ("set-customer-id", "--stripe", "cus_1")]
)
def test_nothing_counts_as_stored_for_an_organization_that_vanished_meanwhile(
    types: Type, manager: OrgManager, command: tuple[str, ...]
) -> None:
    org_id = manager.create_organization("Acme")

    def vanish(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if "organizations.name_key = " in statement:
            for table in ("billing_links", "events", "memberships", "organizations"):
                column = "id" if table == "organizations" else "org_id"
                connection.exec_driver_sql(f"DELETE FROM {table} WHERE {column} = '{org_id}'")  # noqa: S608 - our id

    event.listen(Engine, "after_cursor_execute", vanish)
    try:
        said = types(command[0], "Acme", *command[1:], "--yes")
    finally:
        event.remove(Engine, "after_cursor_execute", vanish)
    assert refused(said) == f"there is no organization {org_id} any more; nothing was stored"


def test_set_gives_the_name_of_another_organization_only_where_names_need_not_be_unique(
    types: Type, manager: OrgManager
) -> None:
    manager.create_organization("Acme")
    second = manager.create_organization("Beta")
    assert "Organization 'ACME' already exists" in refused(types("set", second, "--name", "ACME", "--yes"))
    off = {"UNIQUE_ORGANIZATION_NAMES": "false"}
    assert types("set", second, "--name", "ACME", "--yes", settings=off).exit_code == 0
    listed = json_of(types("orgs", "--search", "acme", "--json"))["organizations"]
    assert [each["name"] for each in listed] == ["Acme", "ACME"]
    assert f"ACME ({second})" in refused(types("status", "Acme"))


def test_payment_problems_are_counted_and_listed_with_the_way_out(
    types: Type, manager: OrgManager, database: Database
) -> None:
    disputed, overdue, _ = [manager.create_organization(name, "starter") for name in ("Acme", "Globex", "Initech")]
    lost_at = utc_now()
    put(database, disputed, "lago", payment_status="dispute_lost", payment_since=lost_at, payment_code="fraudulent")
    put(database, overdue, "lago", payment_status="overdue", payment_since=lost_at)
    shown = types("status").stdout
    assert "payment problems at Lago: 1 dispute_lost, 1 overdue" in shown
    assert "`billing-sync orgs --unpaid` lists their organizations" in shown
    providers = json_of(types("status", "--json"))["providers"]
    assert providers["lago"]["payment_problems"] == {"dispute_lost": 1, "overdue": 1}
    assert providers["stripe"]["payment_problems"] == {}
    listed = json_of(types("orgs", "--unpaid", "--json"))["organizations"]
    assert [each["name"] for each in listed] == ["Acme", "Globex"]
    assert "past its due date, and nobody has paid it" in " ".join(types("status", overdue).stdout.split())
    assert f"billing-sync resolve {disputed} --dispute" in " ".join(types("status", disputed).stdout.split())

    assert refused(types("resolve", disputed, "--dispute", "--ours")).startswith("choose one")
    assert f"{overdue} has no lost dispute" in refused(types("resolve", overdue, "--dispute"))
    assert "The dispute is closed." in types("resolve", disputed, "--dispute", "--yes").stdout
    with database.read() as session:
        link = session.get_one(BillingLink, (disputed, "lago"))
        assert (link.payment_status, link.payment_since, link.payment_code) == (None, None, None)
        assert link.disputes_closed_until == lost_at
    manager.update_org_status(overdue, "deleted")
    assert "payment problems" not in types("status").stdout


def test_what_is_arranged_at_a_provider_is_shown(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme", "starter")
    arranged = Arrangement(ends_at=datetime(2026, 12, 31, tzinfo=UTC), is_paused=True, has_schedule=True)
    put(database, org_id, "stripe", arrangement=arrangement.to_json(arranged))
    shown = " ".join(types("status", org_id).stdout.split())
    assert "arranged goes on until 2026-12-31 00:00:00 UTC, paused, a schedule changes it later; set in Stripe" in shown
    document = json_of(types("status", org_id, "--json"))["links"]
    assert document["stripe"]["arrangement"]["is_paused"] is True
    assert document["lago"]["arrangement"] is None


def test_ours_says_that_an_arrangement_is_read_again(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme")
    put(database, org_id, "stripe", state="on_hold", error_kind="conflict", error_code="arranged_at_provider")
    shown = " ".join(types("resolve", org_id, "--ours", "--yes").stdout.split())
    assert "Stripe will be read again: if nothing changed there, the link is on hold again." in shown


def test_a_conflict_is_left_by_retry_and_ended_by_resolve(types: Type, manager: OrgManager, database: Database) -> None:
    org_id = manager.create_organization("Acme")
    park(database, org_id, "lago")
    with database.write() as session:
        link = session.get_one(BillingLink, (org_id, "lago"))
        link.state, link.error_kind, link.error_code = "on_hold", "conflict", "changed_at_provider"
    for selection in (org_id, "--all"), ("--error", "conflict"), ("--error", "changed_at_provider"):
        words = selection if selection[0] == "--error" else selection[:1]
        shown = " ".join(types("retry", *words).stdout.split())
        assert "On hold as before: 1 link, because somebody changed the provider." in shown
    assert refused(types("resolve", org_id)).startswith("choose one: --ours restores our state at the provider")
    assert refused(types("resolve", org_id, "--ours", "--theirs")).startswith("choose one")
    (row,) = json_of(types("parked", "--json"))["parked"]
    assert (row["link"]["status"], row["link"]["is_conflict"]) == ("on_hold", True)
    assert "Our state will be restored at Lago: Acme, plan " in types("resolve", org_id, "--ours", "--yes").stdout
    assert "Nothing is parked." in types("parked").stdout
    assert f"{org_id} is not on hold for a change at a provider" in refused(types("resolve", org_id, "--ours"))


def test_retry_has_a_stopped_biller_tried_at_once_and_may_be_repeated(
    types: Type, manager: OrgManager, database: Database
) -> None:
    manager.create_organization("Acme", "starter")
    trip_breaker(database, MisconfiguredError("stripe", "no"))
    for _ in range(2):
        assert json_of(types("retry", "--all", "--json")) == {"organizations": 0, "providers": ["stripe"]}
    assert "Stripe's circuit breaker was open; it is probed now" in types("retry", "--all").stdout
    assert "next probe now" in types("status").stdout


def test_the_key_of_another_account_is_not_retried_away(types: Type, manager: OrgManager, database: Database) -> None:
    manager.create_organization("Acme", "starter")
    with database.write() as session:
        circuit_breaker.open_for_wrong_account(session, "lago", "this database belongs to another", utc_now())
    assert json_of(types("retry", "--all", "--json")) == {"organizations": 0, "providers": []}
    assert "set the right key and restart every worker" in types("status").stdout


def test_a_parked_organization_leaves_by_itself_when_its_data_changes(
    types: Type, manager: OrgManager, database: Database
) -> None:
    org_id = manager.create_organization("Acme", "starter")
    park(database, org_id, "stripe")
    assert json_of(types("parked", "--json"))["total"] == 1
    manager.update_org_billing_ids(org_id, stripe_id="cus_right")
    assert json_of(types("parked", "--json"))["total"] == 0
