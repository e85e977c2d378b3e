"""What can be foreseen to go wrong is one sentence on standard error with a way out, and never a traceback."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from core.catalog.plans import DEFAULT_PLANS_FILE
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.support import console

pytestmark = pytest.mark.processes

NO_DATABASE = {"DATABASE_URL": "postgresql://me:secret-word@127.0.0.1:9/none"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.mark.parametrize(
    ("words", "settings", "code", "sentence"),
    [
        (("stauts",), {}, 2, "Did you mean 'status'?"),
        (("zzz",), {}, 2, "No such command 'zzz'; `billing-sync --help` lists the commands and options"),
        (("--zzz",), {}, 2, "; `billing-sync --help` lists the commands and options"),
        (("orgs", "--limit", "many"), {}, 2, "`billing-sync orgs --help` lists the commands and options"),
        (("keys", "create"), {}, 2, "Missing argument 'NAME'; `billing-sync keys create --help`"),
        (("keys", "make"), {}, 2, "`billing-sync keys --help`"),
        (("import",), {}, 2, "Missing argument 'ORGS'; `billing-sync import --help`"),
        (("inbox", "list", "--status", "lost"), {}, 2, "Invalid value for '--status': 'lost' is not one of"),
        (("status",), {"WORKER_CONCURRENCY": "many"}, 2, "WORKER_CONCURRENCY"),
        (("status",), {"STRIPE_SECRET_KEY": "sk_test_secret-word"}, 2, "STRIPE_API_BASE is missing"),
        (("status",), NO_DATABASE, 2, "check DATABASE_URL and that it is running"),
        (("status",), {"DATABASE_URL": "mysql://me:secret-word@host/db"}, 2, "only sqlite:// and postgresql://"),
        (("db", "upgrade"), NO_DATABASE, 1, "check DATABASE_URL and that it is running"),
        (("plans", "check"), {}, 2, "no provider is configured"),
        (("plans", "check"), {"PLANS_FILE": "none.toml"}, 2, "none.toml: plan file not found"),
        (("import", "none.json", "users.json"), {}, 2, "none.json"),
        (("worker",), {"REDIS_URL": "http://127.0.0.1"}, 2, "REDIS_URL: has the scheme http; use redis://"),
        (("status",), {"REDIS_URL": "secret-word:x@127.0.0.1"}, 2, "REDIS_URL: has the scheme none; use redis://"),
        (("status",), {"STRIPE_SECRET_KEY": "", "STRIPE_API_BASE": "http://127.0.0.1:9"}, 2, "STRIPE_SECRET_KEY is"),
        (("up",), {"DATA_DIR": "plans.toml/data"}, 2, "plans.toml"),
        (("export", "a.json", "./a.json"), {}, 2, "ORGS and USERS are the same file, a.json: give two different files"),
        (("api", "--host", "300.1.1.1"), {}, 2, "the host is not an address of this machine: give --host"),
    ],
)
def test_a_foreseen_failure_is_one_sentence(
    folder: Path, words: tuple[str, ...], settings: Mapping[str, str], code: int, sentence: str
) -> None:
    failed = console.run(folder, *words, settings=settings)
    assert sentence in failed.stderr
    assert failed.stderr.startswith("billing-sync: ")
    assert failed.stderr.count("\n") == 1
    assert failed.returncode == code
    assert "secret-word" not in failed.stderr
    assert failed.stdout == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"LOG_LEVEL=INFO\nDATABASE_URL='secret-word\n", ".env line 2 cannot be parsed"),
        (b"# a comment\n\nDATABASE_URL\n=x\n", ".env line 3, 4 cannot be parsed"),
        (b"DATABASE_URL=\xff", ".env is not UTF-8 text"),
        (b"WORKER_CONCURRENCY=many", "WORKER_CONCURRENCY: "),
    ],
)
def test_a_line_of_the_env_file_that_cannot_be_read_is_never_skipped(
    folder: Path, content: bytes, sentence: str
) -> None:
    (folder / ".env").write_bytes(content)
    failed = console.run(folder, "status")
    assert failed.returncode == 2
    assert sentence in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert "secret-word" not in failed.stderr


def test_an_env_file_is_read_and_a_name_without_a_value_says_nothing(folder: Path) -> None:
    (folder / ".env").write_text("# settings\nexport DATA_DIR='else where'  # with a blank\nCHARGED_BY=\n")
    assert console.run(folder, "db", "upgrade").returncode == 0
    assert (folder / "else where").is_dir()


READING = (
    ("status",),
    ("orgs",),
    ("parked",),
    ("history", "Acme"),
    ("inbox", "list"),
    ("inbox", "sources"),
    ("keys", "list"),
    ("webhooks", "list"),
    ("webhooks", "failed"),
    ("export", "o.json", "u.json"),
    ("retry", "--all"),
    ("doctor",),
)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_a_look_makes_no_database_and_no_folder(folder: Path, words: tuple[str, ...]) -> None:
    shown = console.run(folder, *words)
    assert [each.name for each in folder.iterdir()] == ["plans.toml"]
    if words != ("doctor",):
        assert shown.stderr == (
            "billing-sync: there is no database data/billing-sync.db: correct DATABASE_URL or DATA_DIR, or make it "
            "with `billing-sync up` or `billing-sync db upgrade`\n"
        )
        assert (shown.returncode, shown.stdout) == (2, "")


def test_an_export_into_a_folder_that_does_not_exist_is_one_sentence(folder: Path) -> None:
    assert console.run(folder, "db", "upgrade").returncode == 0
    failed = console.run(folder, "export", "no/folder/o.json", "u.json")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert "no/folder" in failed.stderr


def test_status_says_that_the_broker_is_away(folder: Path) -> None:
    assert console.run(folder, "db", "upgrade").returncode == 0
    shown = console.run(folder, "status", settings={"REDIS_URL": "redis://:secret-word@127.0.0.1:9/0"})
    assert shown.returncode == 0
    assert "broker: does not respond" in shown.stdout
    assert "secret-word" not in shown.stdout + shown.stderr


def test_status_says_that_the_broker_answers(folder: Path, redis_url: str) -> None:
    assert console.run(folder, "db", "upgrade").returncode == 0
    shown = console.run(folder, "status", "--json", settings={"REDIS_URL": redis_url})
    assert json.loads(shown.stdout)["broker"]["reachable"] is True


def provider_settings(url: str) -> dict[str, str]:
    return {
        "STRIPE_SECRET_KEY": "sk_test_secret-word",
        "STRIPE_API_BASE": url,
        "LAGO_API_KEY": "secret-word",
        "LAGO_API_URL": url,
        "LAGO_STRIPE_PROVIDER_CODE": "stripe_main",
    }


def test_plans_are_checked_and_pushed(folder: Path, sandbox: SandboxClient, sandbox_server: Sandbox) -> None:
    settings = {**provider_settings(sandbox_server.url), "CHARGED_BY": "stripe"}
    missing = console.run(folder, "plans", "check", settings=settings)
    assert missing.returncode == 1
    assert "no such price at the provider" in missing.stdout
    pushed = console.run(folder, "plans", "push", settings=settings)
    assert (pushed.returncode, pushed.stdout.count("added now")) == (0, 8)
    in_order = console.run(folder, "plans", "check", settings=settings)
    assert in_order.returncode == 0
    shown = " ".join(in_order.stdout.split())
    assert "Stripe mails the invoices of starter, professional, enterprise, so an organization" in shown
    assert "without a billing email: 0" in shown
    automatic = {**settings, "STRIPE_COLLECTION_METHOD": "charge_automatically"}
    assert "mails" not in console.run(folder, "plans", "check", settings=automatic).stdout
    whole_period = DEFAULT_PLANS_FILE.read_text("utf-8").replace("stripe_prorate = true", "stripe_prorate = false")
    (folder / "plans.toml").write_text(whole_period, "utf-8")
    assert "owes Stripe's invoice" in " ".join(console.run(folder, "plans", "check", settings=settings).stdout.split())
    sandbox.patch("lago", "plans", "starter", amount_cents=500)
    differs = console.run(folder, "plans", "check", "--json", settings=settings)
    assert differs.returncode == 1
    assert [each["problem"] for each in json.loads(differs.stdout)["plans"] if each["problem"]] == [
        "amount is 500 at the provider but 1900 in the catalog"
    ]
    assert console.run(folder, "plans", "push", settings=settings).returncode == 1


def test_a_biller_that_is_away_is_said_so(folder: Path) -> None:
    failed = console.run(folder, "plans", "check", settings=provider_settings("http://127.0.0.1:9"))
    assert failed.returncode == 1
    assert failed.stderr.startswith(("billing-sync: stripe: ", "billing-sync: lago: "))
    assert failed.stderr.count("\n") == 1
    assert "secret-word" not in failed.stderr


def test_ctrl_c_ends_without_a_word(folder: Path) -> None:
    # `sandbox` runs until it is stopped. `demo` may have ended already when the signal arrives.
    with console.running(folder, "sandbox", "--port", "0") as sandbox:
        sandbox.wait_for_output("http://127.0.0.1")
        assert sandbox.stop(signal.SIGINT) == 0
        assert "Traceback" not in sandbox.output


def test_a_pipe_that_is_closed_is_no_error(folder: Path) -> None:
    """As with ``billing-sync status | head``."""
    assert console.run(folder, "db", "upgrade").returncode == 0
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as nobody_reads:
        process = subprocess.Popen(
            [console.SCRIPT, "status"],
            cwd=folder,
            env=console.environment({}),
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            text=True,
        )
    _, errors = process.communicate(timeout=60)
    assert errors == ""


def test_the_version_is_told(folder: Path) -> None:
    version = console.run(folder, "--version")
    assert (version.returncode, version.stdout) == (0, f"billing-sync {importlib.metadata.version('billing-sync')}\n")
