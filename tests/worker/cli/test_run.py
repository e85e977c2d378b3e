"""The long-running commands start, say so, and end cleanly when told to; what they cannot do they say in a sentence."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from core.db.database import Database
from core.org_manager import OrgManager
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support import console
from tests.support.deployment import answers, free_port
from worker.cli.run import UP_STOP_SECONDS

STRIPE_KEY, LAGO_KEY = "sk_test_nobody_reads_this", "lago-nobody-reads-this"


pytestmark = pytest.mark.processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.fixture
def deployed(postgres_url: str, redis_url: str, sandbox: SandboxClient, sandbox_server: Sandbox) -> dict[str, str]:
    """Settings of a deployment, its schema made."""
    assert sandbox
    database = Database(postgres_url)
    database.upgrade()
    database.close()
    return {
        "DATABASE_URL": postgres_url,
        "REDIS_URL": redis_url,
        "STRIPE_SECRET_KEY": STRIPE_KEY,
        "STRIPE_API_BASE": sandbox_server.url,
        "LAGO_API_KEY": LAGO_KEY,
        "LAGO_API_URL": sandbox_server.url,
        "LAGO_MANUAL_PAYMENTS": "true",
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_runs_until_it_is_told_to_stop(folder: Path, number: int) -> None:
    with console.running(folder, "up") as up:
        up.wait_for_output("billing-sync status")
        assert up.stop(number) == 0
        assert "Traceback" not in up.output


def test_up_starts_observed_with_the_plans_in_its_own_sandbox(folder: Path) -> None:
    """Whatever is observed is in that sandbox, which is new: nobody else can put the plans into it."""
    (folder / ".env").write_text("MANAGEMENT=observe\n")
    with console.running(folder, "up") as up:
        up.wait_for_output("billing-sync status")
        checked = console.run(folder, "plans", "check")
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert up.stop() == 0


def test_up_says_what_to_type_so_that_it_works_there(folder: Path) -> None:
    scripts = str(console.SCRIPT.parent)
    for path, before in ((f"{scripts}:/usr/bin:/bin", ""), ("/usr/bin:/bin", f"{scripts}/")):
        with console.running(folder, "up", settings={"PATH": path}) as up:
            up.wait_for_output(f"  {before}billing-sync status Acme")
            assert f"  {before}python -c" in up.output
            assert up.stop() == 0


def test_other_commands_find_the_sandbox_of_up_in_its_folder(folder: Path) -> None:
    before = console.run(folder, "plans", "check")
    assert (before.returncode, "no provider is configured" in before.stderr) == (2, True)
    with console.running(folder, "up") as up:
        up.wait_for_output("billing-sync status")
        checked = console.run(folder, "plans", "check")
        assert checked.returncode == 0, checked.stderr
        assert console.run(folder, "drift", "check").returncode == 0
        up.process.kill()
        up.process.wait()
        left = console.run(folder, "plans", "check")
        assert (left.returncode, left.stderr) == (2, before.stderr)


def test_up_ends_soon_after_ctrl_c_while_it_works(folder: Path) -> None:
    manager = OrgManager(data_dir=folder / "data")
    with console.running(folder, "up") as up:
        up.wait_for_output("billing-sync status")
        for number in range(200):
            manager.create_organization(f"Company {number}")
        manager.close()
        assert up.stop(signal.SIGINT, seconds=5) == 0
        assert "Traceback" not in up.output
    assert not (folder / "data" / "sandbox.url").exists()


def test_up_ends_soon_after_ctrl_c_while_a_provider_does_not_respond(folder: Path) -> None:
    manager = OrgManager(data_dir=folder / "data")
    with console.running(folder, "up") as up:
        up.wait_for_output("billing-sync status")
        with SandboxClient((folder / "data" / "sandbox.url").read_text().strip()) as client:
            client.add_fault("stripe", "POST /v1/customers", "hang", seconds=30)
            manager.create_organization("Acme")
            manager.close()
            up.until(lambda: not client.faults(), "a call is under way")
        assert up.stop(signal.SIGINT, seconds=UP_STOP_SECONDS + 1) == 0
        assert "Traceback" not in up.output


def test_up_survives_being_killed(folder: Path) -> None:
    manager = OrgManager(data_dir=folder / "data")
    try:
        with console.running(folder, "up") as up:
            up.wait_for_output("billing-sync status")
            first = manager.create_organization("Before the end")
            up.process.kill()
            up.process.wait()
        second = manager.create_organization("While nothing ran")
        with console.running(folder, "up") as up:
            # A turn that was cut keeps its lease for 45 s; the sweep takes the link up 20 s later.
            up.until(lambda: in_sync(folder), "everything comes home", seconds=180)
            state = sandbox_state(up)
            assert up.stop() == 0
    finally:
        manager.close()
    ids = {each["metadata"]["billing_sync_org_id"] for each in state["stripe"]["customers"]}
    assert ids == {first, second}
    assert len(state["stripe"]["customers"]) == len(state["lago"]["customers"]) == 2


def in_sync(folder: Path) -> bool:
    return bool(json.loads(console.run(folder, "status", "--json").stdout)["in_sync"])


def sandbox_state(up: console.ConsoleProcess) -> dict[str, dict[str, list[dict[str, dict[str, str]]]]]:
    up.wait_for_output("http://")
    url = next(word for word in up.output.split() if word.startswith("http://"))
    with SandboxClient(url) as client:
        return client.state()


def test_up_runs_once_in_a_folder(folder: Path) -> None:
    with console.running(folder, "up") as up:
        up.wait_for_output("billing-sync status")
        second = console.run(folder, "up")
        assert second.returncode == 2
        assert second.stderr == (
            f"billing-sync: process {up.process.pid} already runs in data: "
            "use it, stop it, or set another folder in DATA_DIR\n"
        )


@pytest.mark.parametrize("words", [("worker",), ("relay",), ("beat",), ("flower",)])
def test_a_process_of_a_deployment_asks_for_a_broker(folder: Path, words: tuple[str, ...]) -> None:
    refused = console.run(folder, *words)
    assert refused.returncode == 2
    assert "set REDIS_URL or CELERY_BROKER_URL, or run `billing-sync up`" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_flower_without_a_password_makes_one_up_and_prints_it(folder: Path, redis_url: str) -> None:
    port = free_port()
    with console.running(folder, "flower", f"--port={port}", settings={"REDIS_URL": redis_url}) as flower:
        flower.wait_for_output("FLOWER_BASIC_AUTH=user:password")
        user, password = flower.output.split("the user ")[1].split("\n")[0].split(" and the password ")
        page = f"http://127.0.0.1:{port}/tasks"
        flower.until(lambda: answers(f"http://127.0.0.1:{port}/healthcheck"), "Flower")
        assert httpx.get(page).status_code == httpx.codes.UNAUTHORIZED
        assert httpx.get(page, auth=(user, password)).status_code == httpx.codes.OK
        assert password not in flower.output.replace(f"the password {password}", "", 1)
        assert flower.stop() == 0


def test_a_login_of_flower_without_a_password_is_refused(folder: Path, redis_url: str) -> None:
    refused = console.run(folder, "flower", settings={"REDIS_URL": redis_url, "FLOWER_BASIC_AUTH": "somebody"})
    assert refused.returncode == 2
    assert "FLOWER_BASIC_AUTH: must be user:password" in refused.stderr


@pytest.mark.parametrize("words", [("worker",), ("relay",)])
def test_a_process_of_a_deployment_asks_for_the_billers(folder: Path, redis_url: str, words: tuple[str, ...]) -> None:
    refused = console.run(folder, *words, settings={"REDIS_URL": redis_url})
    assert refused.returncode == 2
    assert "set STRIPE_SECRET_KEY, STRIPE_API_BASE, LAGO_API_KEY and LAGO_API_URL" in refused.stderr


def test_a_worker_refuses_a_database_whose_schema_is_not_its_own(
    folder: Path, postgres_url: str, redis_url: str, sandbox_server: Sandbox
) -> None:
    url = sandbox_server.url
    stripe = {"STRIPE_SECRET_KEY": STRIPE_KEY, "STRIPE_API_BASE": url}
    lago = {"LAGO_API_KEY": LAGO_KEY, "LAGO_API_URL": url, "LAGO_STRIPE_PROVIDER_CODE": "stripe_main"}
    settings = {"DATABASE_URL": postgres_url, "REDIS_URL": redis_url, **stripe, **lago}
    refused = console.run(folder, "worker", settings=settings)
    assert refused.returncode == 2
    assert "run `billing-sync db upgrade`" in refused.stderr
    assert console.run(folder, "db", "upgrade", settings=settings).returncode == 0
    with console.running(folder, "worker", settings=settings) as worker:
        worker.wait_for_output("ready.")


@pytest.mark.parametrize("words", [("worker",), ("relay",), ("api",), ("plans", "push"), ("drift", "check")])
def test_the_packaged_plans_are_never_used_with_the_keys_of_a_provider(
    tmp_path: Path, deployed: dict[str, str], words: tuple[str, ...]
) -> None:
    refused = console.run(tmp_path, *words, settings=deployed)
    assert refused.returncode in {1, 2}
    assert "set PLANS_FILE to your plan catalog, or start in the folder that contains plans.toml" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("worker",), ("relay",), ("api",), ("plans", "check"), ("drift", "check")])
def test_lago_does_not_charge_without_a_connection_unless_this_is_meant(
    folder: Path, deployed: dict[str, str], words: tuple[str, ...]
) -> None:
    """Lago takes customers without a payer and makes invoices that are never charged (R11 in lago.md)."""
    del deployed["LAGO_MANUAL_PAYMENTS"]
    refused = console.run(folder, *words, settings=deployed)
    assert refused.returncode in {1, 2}
    assert "Lago would charge nobody for founders_friend, starter, professional, enterprise" in refused.stderr
    assert "set LAGO_MANUAL_PAYMENTS=true if its invoices are paid outside" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_lago_does_not_charge_through_stripe_in_a_currency_that_stripe_counts_otherwise(
    folder: Path, deployed: dict[str, str]
) -> None:
    plans = folder / "plans.toml"
    plans.write_text(plans.read_text().replace('"USD"', '"HUF"'))
    del deployed["LAGO_MANUAL_PAYMENTS"]
    settings = {**deployed, "LAGO_STRIPE_PROVIDER_CODE": "stripe_main"}
    refused = console.run(folder, "worker", settings=settings)
    assert refused.returncode == 2
    assert "Lago and Stripe count HUF in different units" in refused.stderr
    assert console.run(folder, "plans", "push", settings={**settings, "CHARGED_BY": "stripe"}).returncode == 0


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ("card,paypal", "Lago has no payment method paypal; choose from card, sepa_debit"),
        ("link", "Lago takes link only together with card: write card,link"),
        ("card, customer_balance", "Lago takes customer_balance only alone"),
    ],
)
def test_a_payment_method_that_lago_would_refuse_is_refused_at_start(
    folder: Path, deployed: dict[str, str], methods: str, problem: str
) -> None:
    refused = console.run(folder, "worker", settings={**deployed, "LAGO_PAYMENT_METHODS": methods})
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"billing-sync: LAGO_PAYMENT_METHODS: {problem}")


def test_a_worker_names_the_queues_there_are(folder: Path, deployed: dict[str, str]) -> None:
    refused = console.run(folder, "worker", "--queues", "stripe,paypal", settings=deployed)
    assert refused.returncode == 2
    known = "emails, events, lago, lago_bulk, stripe, stripe_bulk, sweep, webhooks"
    assert refused.stderr == f"billing-sync: --queues: there is no queue paypal; choose from {known}\n"


@pytest.mark.parametrize(
    ("words", "ready"),
    [
        (("worker", "--queues", "stripe,lago"), "ready."),
        (("relay",), "The relay runs"),
        (("beat",), "beat: Starting"),
    ],
)
def test_a_process_of_a_deployment_ends_when_told_to(
    folder: Path, deployed: dict[str, str], words: tuple[str, ...], ready: str
) -> None:
    with console.running(folder, *words, settings=deployed) as process:
        process.wait_for_output(ready)
        assert process.stop() == 0
        assert "Traceback" not in process.output
        assert STRIPE_KEY not in process.output


def test_the_three_together_bring_a_change_to_both_billers(folder: Path, deployed: dict[str, str]) -> None:
    pushed = console.run(folder, "plans", "push", settings=deployed)
    assert pushed.returncode == 0, pushed.stderr
    manager = OrgManager(database_url=deployed["DATABASE_URL"])
    with (
        console.running(folder, "worker", settings=deployed) as worker,
        console.running(folder, "relay", settings=deployed),
        console.running(folder, "beat", settings=deployed),
    ):
        worker.wait_for_output("ready.")
        org_id = manager.create_organization("Acme Confidential")
        manager.close()

        def done() -> bool:
            status = console.run(folder, "status", org_id, "--json", settings=deployed)
            return bool(json.loads(status.stdout)["in_sync"])

        worker.until(done, "in sync")
        assert "Acme" not in worker.output
        assert worker.stop() == 0


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_sandbox_runs_alone_and_ends_when_told_to(folder: Path) -> None:
    with console.running(folder, "sandbox", "--port", "0", "--state", "kept.jsonl") as process:
        process.wait_for_output("Stop it with Ctrl-C")
        url = next(word for word in process.output.split() if word.startswith("http://"))
        with SandboxClient(url) as client:
            client.preload_stripe_customers([{"id": "cus_kept", "name": "Acme"}])
        assert process.stop() == 0
    with console.running(folder, "sandbox", "--port", "0", "--state", "kept.jsonl", "--no-limits") as process:
        process.wait_for_output("Stop it with Ctrl-C")
        url = next(word for word in process.output.split() if word.startswith("http://"))
        with SandboxClient(url) as client:
            assert [each["id"] for each in client.state()["stripe"]["customers"]] == ["cus_kept"]
            assert client.settings()["limits"] is False


def test_a_port_that_is_taken_is_said_so(folder: Path, taken_port: int) -> None:
    refused = console.run(folder, "sandbox", "--port", str(taken_port))
    assert refused.returncode == 2
    assert refused.stderr == "billing-sync: that port is in use: choose another with --port; 0 picks a free one\n"
