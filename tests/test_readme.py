"""The README and the guides name what there is: commands, make targets, ports. Their examples do what they say."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from core.org_manager import OrgManager
from tests.support import console
from worker.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
MAX_README_LINES = 150
ADDRESS = "http://127.0.0.1:8080"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "index.md"),
        *sorted((ROOT / "docs" / "how-to").glob("*.md")),
    )
}
README = PAGES["README.md"]
EVERYTHING = "\n".join(PAGES.values())

with_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: no request is sent")


def commands() -> set[str]:
    top = get_command(app)
    assert isinstance(top, TyperGroup)
    found = set()
    for name, command in top.commands.items():
        subs = command.commands if isinstance(command, TyperGroup) else {"": command}
        found |= {f"{name} {sub}".strip() for sub in subs}
        found |= {name} if "ORG" in subs else set()  # followed by the name of an organization
    return found


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES


def test_every_command_that_is_named_is_there_and_each_that_is_there_is_named() -> None:
    known = commands()
    words = re.findall(r"(?:`|\$ |\$\(|worker )billing-sync ([a-z-]+)(?: ([a-z-]+|ORG))?", EVERYTHING)
    named = {f"{first} {second}" if f"{first} {second}" in known else first for first, second in words}
    assert named - known == set()
    assert {command.split()[0] for command in known} - {command.split()[0] for command in named} == set()


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/python.md"])
def test_the_example_in_python_does_what_it_says(page: str, tmp_path: Path) -> None:
    code = PAGES[page].split("```python\n")[1].split("```")[0]
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (shown.stderr, shown.stdout) == ("", "starter\n")


def console_commands(page: str) -> list[str]:
    """What the page has a user type, lines that go on joined: after a backslash, and within quotes."""
    blocks = re.findall(r"```console\n(.*?)```", PAGES[page], re.DOTALL)
    found: list[str] = []
    for line in "".join(blocks).replace("\\\n", "").splitlines():
        if line.startswith("$ "):
            found.append(line.removeprefix("$ "))
        elif found and found[-1].count("'") % 2:
            found[-1] += f"\n{line}"
    return found


@pytest.mark.processes
@with_curl
@pytest.mark.parametrize("page", ["README.md", "docs/how-to/api.md"])
def test_the_requests_over_http_do_what_they_say(page: str, tmp_path: Path) -> None:
    """Typed in one shell, one after the other; only the port and the new id are other than on the page."""
    folder = console.prepare(tmp_path)
    make_key, create, *ask = [line for line in console_commands(page) if line.startswith("KEY=") or "curl" in line]
    with console.running(folder, "up", settings={"API_PORT": "0"}) as up:
        origin = origin_of(up)
        lines = [make_key, create.replace(ADDRESS, origin)]
        made = json.loads(typed(folder, lines))
        assert (made["status"], made["sync"]) == ("created", {"version": 1})
        lines += [
            re.sub(r"wait=\d+s", "wait=30s", line).replace(ADDRESS, origin).replace("org_…", made["org_id"])
            for line in ask
        ]
        again, *status = (json.loads(line) for line in typed(folder, lines).replace("}{", "}\n{").splitlines())
    # The second run makes another key, which is another caller, so the Idempotency-Key repeats no request.
    assert again["type"].endswith("name-taken"), again
    assert [each["in_sync"] for each in status] == [True] * len(ask)


@pytest.mark.processes
def test_the_commands_for_operating_end_well(tmp_path: Path) -> None:
    """With the settings of the sandbox of ``up``, as the page about drift says."""
    folder = console.prepare(tmp_path)
    section = README.split("## Operating\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\$ billing-sync (.+?)(?: +#.*)?$", section, re.MULTILINE)
    with console.running(folder, "up", settings={"API_PORT": "0"}) as up:
        origin_of(up)
        sandbox = re.findall(r"sandbox +(http://[0-9.:]+)", up.output)[0]
        settings = {
            "STRIPE_SECRET_KEY": "sk_test_up",
            "STRIPE_API_BASE": sandbox,
            "LAGO_API_KEY": "any",
            "LAGO_API_URL": sandbox,
            "LAGO_STRIPE_PROVIDER_CODE": "stripe_main",
            "WEBHOOK_SIGNING_SECRET": "x" * 32,
        }
        OrgManager(data_dir=str(folder / "data")).create_organization("ORG", "starter")
        until_shown(folder, "billing-sync status ORG", r"Stripe in sync.*Lago +in sync", seconds=90)
        ended = {line: console.run(folder, *shlex.split(line), settings=settings) for line in lines}
    assert len(ended) > 3
    assert {line: each.stdout + each.stderr for line, each in ended.items() if each.returncode} == {}


@pytest.mark.processes
@with_curl
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    folder = console.prepare(tmp_path)
    make_demo, activate, start, make_key, create, status, send, status_again, set_id, parked = console_commands(
        "docs/tutorial.md"
    )
    assert (make_demo, activate, start) == ("make demo", ". .venv/bin/activate", "billing-sync up")
    with console.running(folder, "up", settings={"API_PORT": "0"}) as up:
        origin = origin_of(up)
        made = json.loads(typed(folder, [make_key, create.replace(ADDRESS, origin)]))
        until_shown(folder, status, r"Stripe in sync.*Lago +in sync")
        event = send.replace(ADDRESS, origin).replace("org_…", made["org_id"])
        assert json.loads(typed(folder, [event]))["status"] == "applied"
        until_shown(folder, status_again, r"plan +professional")
        typed(folder, [set_id])
        until_shown(folder, parked, "cus_unknown", seconds=100)


def origin_of(up: console.ConsoleProcess) -> str:
    up.wait_for_output("/docs;")
    return str(re.findall(r"(http://[0-9.:]+)/docs", up.output)[0])


def until_shown(folder: Path, line: str, pattern: str, seconds: float = 40) -> None:
    end = time.monotonic() + seconds
    while not re.search(pattern, shown := typed(folder, [line]), re.DOTALL):
        assert time.monotonic() < end, f"{line}: not within {seconds} s\n{shown}"
        time.sleep(0.5)


def typed(folder: Path, lines: list[str]) -> str:
    ended = subprocess.run(
        ["/bin/bash", "-euc", "\n".join(lines)],
        cwd=folder,
        env=console.environment({"PATH": f"{console.SCRIPT.parent}:{os.environ['PATH']}"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return ended.stdout


def test_every_make_target_that_is_named_is_there() -> None:
    known = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert known is not None
    named = set(re.findall(r"(?:`|\$ )make (?:[A-Z]+=\S+ )?([a-z-]+)", EVERYTHING))
    assert named - set(known[1].split()) == set()
    assert {"demo", "test", "check", "install", "lock", "docs"} <= named


def test_the_addresses_of_compose_are_those_that_it_publishes() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    published = {port.rsplit(":", 1)[0] for service in services for port in service.get("ports", ())}
    assert set(re.findall(r"<http://([0-9.:]+)>", PAGES["docs/how-to/deploy.md"])) == published
