"""A command starts without what it does not need, and Ctrl-C in that time is quiet.

What is imported is compared and not a time, so a busy machine changes nothing.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from tests.support import console
from worker.cli.app import all_commands, app

SLOW = {"alembic", "celery", "fastapi", "flower", "httpx", "kombu", "lago_python_client", "redis", "stripe", "uvicorn"}
OF_ROWS = {"pydantic_settings", "sqlalchemy", "structlog"}
IMPORTED = """
import atexit, sys
atexit.register(lambda: print("imported:", *{name.split(".")[0] for name in sys.modules}, file=sys.stderr))
from worker.cli import main
main()
"""
INTERRUPTED = """
import importlib.abc, signal, sys
class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == INTERRUPTED:
            signal.raise_signal(signal.SIGINT)
INTERRUPTED = sys.argv.pop(1)
sys.meta_path.insert(0, Interrupt())
from worker.cli import main
main()
"""


def run(folder: Path, program: str, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=folder,
        env={**console.environment(settings), "PYTHONPATH": str(console.ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def imported_packages(folder: Path, *words: str, **settings: str) -> set[str]:
    ended = run(folder, IMPORTED, *words, **settings)
    assert ended.returncode == 0, ended.stderr
    return set(ended.stderr.rsplit("imported:", 1)[1].split())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return console.prepare(tmp_path)


@pytest.mark.parametrize("words", [("--version",), ("--help",), ("keys", "--help")])
def test_help_and_version_import_neither_a_database_nor_a_server(folder: Path, words: tuple[str, ...]) -> None:
    assert imported_packages(folder, *words) & (SLOW | OF_ROWS) == set()


def test_status_imports_the_database_and_nothing_slower(folder: Path) -> None:
    assert console.run(folder, "db", "upgrade").returncode == 0  # with Alembic
    imported = imported_packages(folder, "status")
    assert "sqlalchemy" in imported
    assert imported & SLOW == set()


def test_shell_completion_is_as_quick_as_help(folder: Path) -> None:
    completing = {"_BILLING_SYNC_COMPLETE": "complete_bash", "COMP_WORDS": "billing-sync sta", "COMP_CWORD": "1"}
    ended = subprocess.run(
        [console.SCRIPT], cwd=folder, env=console.environment(completing), capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == ["status"]
    assert imported_packages(folder, **completing) & (SLOW | OF_ROWS) == set()


def test_shell_completion_knows_the_options_of_a_command(folder: Path) -> None:
    completing = {"_BILLING_SYNC_COMPLETE": "complete_bash", "COMP_WORDS": "billing-sync orgs --se", "COMP_CWORD": "2"}
    ended = subprocess.run(
        [console.SCRIPT], cwd=folder, env=console.environment(completing), capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == ["--search"]


@pytest.mark.parametrize(
    "module", ["typer", "worker.cli.app", "worker.cli.status", "sqlalchemy.orm", "pydantic_settings"]
)
def test_ctrl_c_while_the_program_starts_ends_it_without_a_word(folder: Path, module: str) -> None:
    ended = run(folder, INTERRUPTED, module, "status")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_a_command_in_the_background_goes_on_to_ignore_ctrl_c(folder: Path) -> None:
    assert console.run(folder, "db", "upgrade").returncode == 0
    ignoring = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{INTERRUPTED}"
    ended = run(folder, ignoring, "worker.cli.status", "status")
    assert ended.returncode == 0, ended.stderr


def test_the_summary_of_each_command_is_the_first_sentence_of_its_help() -> None:
    def differing(group: TyperGroup, loaded: TyperGroup) -> list[str]:
        names = []
        for name, command in loaded.commands.items():
            short = group.commands[name]
            if isinstance(command, TyperGroup) and isinstance(short, TyperGroup):
                names += differing(short, command)
            elif short.short_help != " ".join((command.help or "").split("\n\n")[0].split()):
                names.append(name)
        return names

    top = get_command(app)
    assert isinstance(top, TyperGroup)
    assert differing(top, all_commands()) == []
