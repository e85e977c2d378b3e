"""A database that cannot be used, or not yet: what each process says of it, and that nothing is lost meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
import redis as redis_client
from celery import Celery
from psycopg.sql import SQL, Identifier
from sqlalchemy import make_url

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import Database
from core.org_manager import OrgManager
from providers.lago.provider import LagoProvider
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support import standby
from tests.support.deployment import Deployment, answers, deployment, environment_of, free_port, in_sync
from tests.support.standby import Replicas
from tests.support.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.processes
PROCESSES = ("worker", "relay", "api")
# root would lose its rights in a namespace of users, and another user may make none of processes without it.
OWN_USERS = () if os.geteuid() == 0 else ("--user", "--map-current-user")
PROCESS_1 = ("unshare", *OWN_USERS, "--pid", "--fork", "--kill-child")
GOES_ON = "the processes go on by themselves when it does"
STANDBY = (
    "the database is read-only, because it is a standby: set DATABASE_URL to the primary server, or promote this one; "
    "the processes go on by themselves"
)


@pytest.fixture
def on_sale(sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog) -> str:
    """The address of both providers, which have every plan."""
    lago = LagoProvider(sandbox_server.url, "key", payment_provider_code=None, ending=plans.ending)
    publishing.publish(plans, [lago])
    lago.close()
    sandbox.reset_calls()
    return sandbox_server.url


def starts(deployed: Deployment, *kinds: str) -> None:
    """With a port of its own for the API, and JSON lines."""
    deployed.environment |= {"API_PORT": str(free_port()), "LOG_FORMAT": "json"}
    for kind in kinds:
        deployed.start(kind)


def logged(deployed: Deployment, event: str) -> list[str]:
    """The reasons of the log lines with this name."""
    lines = (json.loads(line) for line in deployed.logs.splitlines() if line.startswith("{"))
    return [line.get("reason", "") for line in lines if line["event"] == event]


def finding(deployed: Deployment) -> tuple[str, str]:
    subjects = json.loads(deployed.run("doctor", "--json").stdout)["subjects"]
    (about,) = (each["findings"] for each in subjects if each["subject"] == "database")
    return about[0]["code"], f"{about[0]['message']}: {about[0]['advice']}"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_another_encoding_stops_every_start(
    postgres_server: str, redis_url: str, sandbox_server: Sandbox, tmp_path: Path, encoding: str
) -> None:
    """What waits in the broker stays there, such as a message about 株式会社🚀."""
    name = f"other_encoding_{uuid4().hex[:8]}"
    url = make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    deployed = Deployment(environment_of(url, redis_url, sandbox_server.url, tmp_path), tmp_path)
    sentence = (
        f"the database's encoding is {encoding}, not UTF8: create one with `createdb --encoding=UTF8 "
        "--template=template0 NAME`, move the rows, and set DATABASE_URL to it"
    )
    with psycopg.connect(postgres_server, autocommit=True) as owner:
        owner.execute(
            SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(Identifier(name), encoding)
        )
        try:
            for command in (*((kind,) for kind in PROCESSES), ("beat",), ("db", "upgrade"), ("status",)):
                ended = deployed.run(*command)
                assert (ended.returncode, ended.stderr.splitlines()[-1]) == (2, f"billing-sync: {sentence}"), command
            assert finding(deployed) == ("encoding", sentence)
            manager = OrgManager(database_url=url)
            with pytest.raises(Exception, match="encoding is"):
                manager.create_organization("株式会社🚀")
        finally:
            owner.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))


class TestReadOnly:
    """``default_transaction_read_only``, as a managed Postgres sets it when its disk is full."""

    @pytest.fixture
    def read_only(self, postgres_server: str, postgres_url: str) -> Identifier:
        with closing(Database(postgres_url)) as database:
            database.upgrade()
        name = Identifier(str(make_url(postgres_url).database))
        with psycopg.connect(postgres_server, autocommit=True) as owner:
            owner.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        return name

    def test_processes_wait_say_so_once_and_go_on(  # noqa: PLR0913, PLR0917 - fixtures
        self,
        read_only: Identifier,
        postgres_server: str,
        postgres_url: str,
        redis_url: str,
        on_sale: str,
        tmp_path: Path,
    ) -> None:
        sentence = (
            "the database is read-only, because default_transaction_read_only is on: if its disk is full, free space; "
            f"then `ALTER DATABASE {make_url(postgres_url).database} RESET default_transaction_read_only`, or the same "
            "with `ALTER ROLE` or `ALTER SYSTEM`, where it was set; the processes go on by themselves"
        )
        with deployment(postgres_url, redis_url, on_sale, tmp_path) as deployed:
            assert finding(deployed) == ("read_only", sentence)
            starts(deployed, *PROCESSES)
            api = f"http://127.0.0.1:{deployed.environment['API_PORT']}"
            until(lambda: answers(f"{api}/readyz"), "the API answers reads meanwhile")
            until(lambda: len(logged(deployed, "waits_for_database")) == len(PROCESSES), "each says so")
            with psycopg.connect(postgres_server, autocommit=True) as owner:
                owner.execute(SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(read_only))
            until(lambda: len(logged(deployed, "database_is_ready")) == 2, "worker and relay go on")
            assert set(logged(deployed, "waits_for_database")) == {sentence}
            manager = OrgManager(database_url=postgres_url)
            manager.create_organization("Acme")
            manager.close()
            with closing(Database(postgres_url)) as database:
                until(lambda: in_sync(database), "and work", details=lambda: deployed.logs)
            assert len(logged(deployed, "waits_for_database")) == len(PROCESSES)


class TestStandby:
    @pytest.fixture
    def is_hot(self) -> bool:
        return True

    @pytest.fixture
    def replicas(self, is_hot: bool) -> Iterator[Replicas]:  # noqa: FBT001 - a fixture
        with standby.replicas(is_hot=is_hot) as running:
            with closing(Database(running.url)) as database:
                database.upgrade()
            yield running

    @pytest.fixture
    def deployed(self, replicas: Replicas, redis_url: str, on_sale: str, tmp_path: Path) -> Iterator[Deployment]:
        with deployment(replicas.url, redis_url, on_sale, tmp_path) as ready:
            yield ready

    def test_a_start_on_a_standby_waits_until_it_is_promoted(self, replicas: Replicas, deployed: Deployment) -> None:
        replicas.fail_over()
        starts(deployed, "worker", "relay")
        until(lambda: logged(deployed, "waits_for_database") == [STANDBY] * 2, "both say so")
        assert finding(deployed) == ("read_only", STANDBY)
        replicas.promote()
        until(lambda: len(logged(deployed, "database_is_ready")) == 2, "both go on", details=lambda: deployed.logs)

    @pytest.mark.parametrize("is_hot", [False])
    def test_a_start_on_a_server_in_recovery_waits_until_it_accepts_connections(
        self, replicas: Replicas, deployed: Deployment
    ) -> None:
        replicas.fail_over()
        starts(deployed, *PROCESSES)
        until(lambda: len(logged(deployed, "waits_for_database")) == len(PROCESSES), "each says so")
        (sentence,) = set(logged(deployed, "waits_for_database"))
        assert sentence.startswith("the database accepts no connection yet (connection failed: ")
        assert sentence.endswith("the database system is not accepting connections): " + GOES_ON)
        assert finding(deployed) == ("database_starting", sentence)
        replicas.stop()
        until(lambda: deployed.logs.count("the database is not reachable (") == len(PROCESSES), "away for a moment")
        replicas.start()
        replicas.promote()
        until(lambda: len(logged(deployed, "database_is_ready")) == len(PROCESSES), "all go on")

    @pytest.mark.parametrize("is_hot", [False])
    def test_a_signal_ends_the_wait_even_of_process_1_of_a_container(
        self, replicas: Replicas, deployed: Deployment
    ) -> None:
        """The kernel withholds from process 1 each signal for which it has no handler."""
        if not can_be_process_1():
            pytest.skip("`unshare --pid` makes no namespace of processes for this user")
        replicas.fail_over()
        deployed.environment |= {"API_PORT": str(free_port()), "LOG_FORMAT": "json"}
        commands = (*PROCESSES, "up")
        outer = [deployed.start(command, before=PROCESS_1) for command in commands]
        until(
            lambda: len(logged(deployed, "waits_for_database")) == len(commands),
            "each says so",
            seconds=40,
            details=lambda: deployed.logs,
        )
        for process in outer:
            (inner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(inner), signal.SIGTERM)
        assert [process.wait(PATIENCE_SECONDS) for process in outer] == [0] * len(commands)
        assert "Traceback" not in deployed.logs
        replicas.promote()

    def test_a_failover_under_running_processes_loses_nothing(
        self, replicas: Replicas, deployed: Deployment, redis_url: str
    ) -> None:
        """Messages that only the broker has are given back to it until there is a database that stores them."""
        starts(deployed, "worker", "relay", "beat")
        org_ids = [f"org_{uuid4()}" for _ in range(6)]
        manager = OrgManager(database_url=replicas.url)
        for org_id in org_ids[:2]:
            send_created(redis_url, org_id)
        until(lambda: None not in map(manager.get_org, org_ids[:2]), "the worker works")
        replicas.fail_over()
        for org_id in org_ids[2:]:
            send_created(redis_url, org_id)
        until(
            lambda: deployed.logs.count("the database is read-only") >= 3, "given back", details=lambda: deployed.logs
        )
        replicas.promote()
        until(lambda: None not in map(manager.get_org, org_ids), "all received", details=lambda: deployed.logs)
        with closing(Database(replicas.url)) as database:
            until(lambda: in_sync(database), "all in sync", details=lambda: deployed.logs)
        manager.close()
        with redis_client.Redis.from_url(redis_url) as broker:
            until(lambda: not broker.llen("events"), "nothing is left")


def can_be_process_1() -> bool:
    return shutil.which(PROCESS_1[0]) is not None and subprocess.run([*PROCESS_1, "true"], check=False).returncode == 0


def send_created(broker_url: str, org_id: str) -> None:
    """As another service does it."""
    event = {
        "specversion": "1.0",
        "id": org_id,
        "source": "/signup",
        "type": "organization.created",
        "subject": org_id,
        "data": {"name": f"株式会社🚀 {org_id}", "billing_email": "zelda@confidential.test"},
    }
    with Celery("signup", broker=broker_url, set_as_current=False) as signup:
        signup.send_task("events.receive", args=[event], queue="events", ignore_result=True)
