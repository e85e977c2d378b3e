"""The README names what there is: commands, settings, events, make targets, ports and files, and none that is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command

from core.inbox.event_schemas import DATA_MODELS
from tests.support import console
from worker.cli.app import app
from worker.config.api import ApiSettings
from worker.config.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """From its heading to the next one of the same rank."""
    rank, rest = re.split(rf"^(##+) {title}\n", README, maxsplit=1, flags=re.MULTILINE)[1:]
    return re.split(rf"^{rank} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def table(title: str) -> list[list[list[str]]]:
    """What the section's first table names in each cell, without its head."""
    lines = section(title).split("\n|", 1)[1].split("\n\n")[0].splitlines()
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def commands() -> set[str]:
    top = get_command(app)
    assert isinstance(top, TyperGroup)
    found = set()
    for name, command in top.commands.items():
        subs = command.commands if isinstance(command, TyperGroup) else {"": command}
        found |= {f"{name} {sub}".strip() for sub in subs}
    return found


def test_every_command_that_is_named_is_there_and_each_that_is_there_is_named() -> None:
    known = commands()
    words = re.findall(r"(?:`|\$ |\$\(|worker )billing-sync ([a-z-]+)(?: ([a-z-]+))?", README)
    named = {f"{first} {second}" if f"{first} {second}" in known else first for first, second in words}
    assert named - known == set()
    assert {command.split()[0] for command in known} - {command.split()[0] for command in named} == set()


def test_every_setting_is_in_the_table_and_no_other() -> None:
    named = [name for cells in table("Settings") for name in cells[0]]
    assert sorted(named) == sorted(name.upper() for name in {**Settings.model_fields, **ApiSettings.model_fields})


def test_every_event_is_in_the_table_with_its_fields() -> None:
    named = {cells[0][0]: set(cells[1]) for cells in table("From another service")}
    assert named == {event: set(data.model_fields) for event, data in DATA_MODELS.items()}


def test_the_example_in_python_does_what_it_says(tmp_path: Path) -> None:
    code = section("From Python").split("```python\n")[1].split("```")[0]
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (shown.stderr, shown.stdout) == ("", "starter\n")


def console_commands(title: str) -> list[str]:
    """What the section has a person type, lines that go on joined."""
    blocks = re.findall(r"```console\n(.*?)```", section(title), re.DOTALL)
    return re.findall(r"^\$ (.+)$", "".join(blocks).replace("\\\n", ""), re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: the README's requests are not sent")
def test_the_requests_over_http_do_what_they_say(tmp_path: Path) -> None:
    """Typed in one shell, one after the other; only the port and the new id are other than on the page."""
    folder = console.prepare(tmp_path)
    make_key, create, ask = console_commands("Over HTTP")
    with console.running(folder, "up", settings={"API_PORT": "0"}) as up:
        up.wait_for_output("/docs;")
        origin = re.findall(r"(http://[0-9.:]+)/docs", up.output)[0]
        lines = [make_key, create.replace("http://127.0.0.1:8080", origin)]
        made = json.loads(typed(folder, lines))
        assert (made["status"], made["sync"]) == ("created", {"version": 1})
        ask = ask.replace("http://127.0.0.1:8080", origin).replace("org_…", made["org_id"])
        lines.append(re.sub(r"wait=\d+s", "wait=30s", ask))  # on a busy machine
        again, receipt = (json.loads(line) for line in typed(folder, lines).replace("}{", "}\n{").splitlines())
    # The key that was made anew is another caller's, so the same Idempotency-Key is not the same request.
    assert again["type"].endswith("name-taken"), again
    assert receipt["in_sync"] is True, receipt


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
    named = set(re.findall(r"(?:`|\$ )make (?:[A-Z]+=\S+ )?([a-z-]+)", README))
    assert named - set(known[1].split()) == set()
    assert {"demo", "test", "check", "install", "lock"} <= named


def test_the_addresses_of_compose_are_those_that_it_publishes() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    published = {port.rsplit(":", 1)[0] for service in services for port in service.get("ports", ())}
    assert set(re.findall(r"<http://([0-9.:]+)>", section("Deploying"))) == published


def test_every_link_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []
    assert len(targets) > 5
