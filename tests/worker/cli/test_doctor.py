"""`doctor` says in one screen what is wrong, why it matters and what to type, and its exit code says how bad it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.support import console
from tests.support.doctor_harness import DoctorHarness
from tests.worker.doctor.conftest import folder_with_database, set_up
from worker.cli.app import app

__all__ = ["folder_with_database", "set_up"]


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *words], env={"COLUMNS": "80"})


def findings_of(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {finding["code"]: finding for subject in document["subjects"] for finding in subject["findings"]}


def test_a_healthy_deployment_ends_with_nothing_to_do(set_up: DoctorHarness, redis_url: str) -> None:
    set_up.set({"REDIS_URL": redis_url})
    set_up.publish_plans()
    set_up.beats("worker", "relay", "beat", "api")
    shown = typed()
    assert "Nothing to do: " in shown.stdout
    assert shown.exit_code == 0, shown.stdout
    document = json.loads(typed("--json").stdout)
    assert (document["counts"]["error"], document["counts"]["warning"]) == (0, 0)
    assert findings_of(document)["processes"]["message"].startswith("1 api, 1 beat, 1 relay, 1 worker in the last")


def test_a_problem_comes_first_with_its_consequence_and_the_command(set_up: DoctorHarness) -> None:
    set_up.beats("up")
    shown = typed()
    assert shown.exit_code == 2
    first = "\n".join(shown.stdout.splitlines()[2:6])
    assert "plans" in first
    assert "error    not on sale: " in first
    assert "why      an organization on such a plan is parked" in shown.stdout
    assert "do       `billing-sync plans push`" in shown.stdout
    assert "1 error; " in shown.stdout
    assert max(len(line.rstrip()) for line in shown.stdout.splitlines()) <= 80


def test_only_warnings_end_with_exit_code_1(set_up: DoctorHarness) -> None:
    set_up.publish_plans()
    shown = typed("--json")
    document = json.loads(shown.stdout)
    assert (shown.exit_code, document["level"]) == (1, "warning")
    assert findings_of(document)["no_up"]["advice"] == "`billing-sync up`"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"LAGO_API_KEY": None}, "LAGO_API_KEY is missing: LAGO_API_KEY and LAGO_API_URL must be set together"),
        ({"STRIPE_API_BASE": None}, "STRIPE_API_BASE is missing"),
        ({"LAGO_API_KEY": None, "LAGO_API_URL": None}, "set both providers (STRIPE_* and LAGO_*), or neither"),
        ({"LAGO_API_URL": "https://lago.example/api/v1"}, "LAGO_API_URL must be the bare origin"),
        ({"WORKER_CONCURRENCY": "many"}, "WORKER_CONCURRENCY: "),
        ({"WEBHOOK_SIGNING_SECRET": "word-of-mine"}, "create one with `openssl rand -base64 32`"),
        ({"SMTP_HOST": "mail.example"}, "SMTP_HOST and MAIL_FROM must be set together"),
    ],
)
def test_settings_that_no_process_starts_with_are_named(
    set_up: DoctorHarness, settings: dict[str, str | None], problem: str
) -> None:
    set_up.set(settings)
    shown = typed("--json")
    finding = findings_of(json.loads(shown.stdout))["setting_invalid"]
    assert shown.exit_code == 2
    assert problem in finding["message"]
    assert "`billing-sync doctor`" in finding["advice"]
    assert "word-of-mine" not in shown.output


def test_a_misspelt_key_is_named_beside_what_it_leaves_incomplete(set_up: DoctorHarness) -> None:
    set_up.set({"STRIPE_SECRET_KEY": None, "STRIPE_SECRT_KEY": "sk_test_word-of-mine"})
    found = findings_of(json.loads(typed("--json").stdout))
    assert "rename it to STRIPE_SECRET_KEY" in found["unknown_setting"]["advice"]
    assert "STRIPE_SECRET_KEY is missing" in found["setting_invalid"]["message"]


def test_invalid_settings_of_the_api_hide_nothing_else(set_up: DoctorHarness) -> None:
    set_up.set({"OIDC_ISSUER": "https://id.example"})
    found = findings_of(json.loads(typed("--json").stdout))
    assert "OIDC_ISSUER and OIDC_AUDIENCE must be set together" in found["setting_invalid"]["message"]
    assert found["stripe_key"]["level"] == "ok"
    assert found["sign_in_unread"]["level"] == "not_checked"


@pytest.mark.processes
def test_a_new_folder_has_nothing_to_do_before_up_and_while_it_runs(tmp_path: Path) -> None:
    folder = console.prepare(tmp_path)
    before = console.run(folder, "doctor")
    assert before.returncode == 0, before.stdout
    assert not (folder / "data").exists()
    with console.running(folder, "up", settings={"API_PORT": "0"}) as up:
        up.wait_for_output("Next, in another terminal")
        up.until(lambda: "1 up, seen" in console.run(folder, "status").stdout, "the heartbeat")
        shown = console.run(folder, "doctor", "--json")
        assert up.stop() == 0
    found = findings_of(json.loads(shown.stdout))
    assert shown.returncode == 0, shown.stdout
    assert not [finding for finding in found.values() if finding["level"] in {"warning", "error"}]
    assert {found[code]["level"] for code in ("processes", "stripe_key", "lago_key", "plans")} == {"ok"}
    assert {found[code]["level"] for code in ("stripe_webhooks", "lago_webhooks", "clock")} == {"ok"}
