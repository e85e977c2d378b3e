"""The rules of the house that no linter knows, held by machine."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OURS = ("core", "providers", "tasks", "worker", "api", "sandbox", "migrations")
LONGEST_FUNCTION = 50  # lines
TABLES = "migrations/versions/"  # a table written out column by column is a list, however long
BROAD = {"Exception", "BaseException"}
LOCKS = ("requirements.lock", "requirements-test.lock", "requirements-docs.lock")
FIXED = {"stripe": "16.1", "lago-python-client": "1.55", "celery": "5.7"}

WAVED_THROUGH = re.compile(r"#\s*(type:\s*ignore|mypy:\s*(ignore|disable))")
REPLACED = re.compile(r"\bmock\.patch|\bpatch\.(object|dict)\(|monkeypatch\.setattr|\bmocker\.|^\s*@patch\(")


def _python(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _found(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _trees(*folders: str) -> Iterator[tuple[str, ast.Module]]:
    for path in _python(*folders):
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(), str(path))


def test_no_type_is_waved_through() -> None:
    assert _found(WAVED_THROUGH, _python(*OURS, "tests", "benchmarks")) == []


def test_no_test_replaces_a_function() -> None:
    assert _found(REPLACED, _python("tests")) == []


def test_no_function_is_longer_than_a_screen() -> None:
    long = [
        f"{where}:{function.lineno} {function.name}: {lines} lines"
        for where, tree in _trees(*OURS)
        for function in _functions(tree)
        if not where.startswith(TABLES)
        and (lines := (function.end_lineno or 0) - function.lineno + 1) > LONGEST_FUNCTION
    ]
    assert long == []


def test_every_import_stands_at_the_top_of_its_module_but_for_what_few_starts_need() -> None:
    """A worker would else hold the API and the sandbox, 14 MB that it never uses, and each start would be slow."""
    hidden = {
        (where, node.module if isinstance(node, ast.ImportFrom) else None, each.name)
        for where, tree in _trees(*OURS, "tests", "benchmarks")
        for function in _functions(tree)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for each in node.names
    }
    assert hidden == {
        ("core/db/database.py", "core.db", "upgrade"),
        ("worker/cli/__init__.py", "worker.cli", "app"),
        ("worker/cli/app.py", "importlib", "metadata"),
        ("worker/cli/command_line.py", "worker.cli", "error_messages"),
        ("worker/cli/command_line.py", "worker.cli.error_messages", "EXPECTED_ERRORS"),
        ("worker/cli/lazy_commands.py", "worker.config", "names"),
        ("worker/cli/lazy_commands.py", "worker.config.settings", "Settings"),
        ("worker/cli/lazy_commands.py", "worker.wiring", "logging"),
        ("worker/cli/status.py", "worker.wiring", "broker_probe"),
        ("worker/cli/stored_change.py", "worker.wiring", "broker_probe"),
        ("worker/cli/run.py", "sandbox.server", "Sandbox"),
        ("worker/cli/run.py", "worker.wiring", "api"),
        ("worker/cli/run.py", "worker.processes.embedded", "EmbeddedProcess"),
    }


def test_no_error_is_caught_without_being_named() -> None:
    """A broad ``except`` is allowed where it cleans up, or looks, and raises on what it does not know."""
    broad = [
        f"{where}:{node.lineno}"
        for where, tree in _trees(*OURS)
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises_on(node)
    ]
    assert broad == []


def _is_broad(kind: ast.expr | None) -> bool:
    if kind is None:
        return True
    names = kind.elts if isinstance(kind, ast.Tuple) else [kind]
    return any(isinstance(name, ast.Name) and name.id in BROAD for name in names)


def _raises_on(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(node, ast.Raise) and node.exc is None for node in ast.walk(handler))


def _project() -> dict[str, list[str]]:
    """Requirements of ``pyproject.toml`` by the lock file that must hold them."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    run_time = [*document["project"]["dependencies"], *document["build-system"]["requires"]]
    extras = document["project"]["optional-dependencies"]
    return dict(zip(LOCKS, (run_time, [*run_time, *extras["test"]], [*run_time, *extras["docs"]]), strict=True))


def _locked(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ]+)", (ROOT / name).read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_holds_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert not re.search(r"^\s*(--?(index|extra-index|find-links|trusted)|-[fi]\b|-e\b|\.|/)", text, re.MULTILINE)
    entries = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert [entry.split("\n")[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_is_what_the_project_asks_for(name: str) -> None:
    locked = _locked(name)
    wrong = [
        line
        for line in _project()[name]
        if (wanted := Requirement(line))
        and not wanted.specifier.contains(locked.get(canonicalize_name(wanted.name), "0.dev0"))
    ]
    assert wrong == [], "run `make lock`"


def test_all_lock_files_name_the_same_versions() -> None:
    run_time, test, docs = map(_locked, LOCKS)
    assert {name: test.get(name) for name in run_time} == run_time
    assert {name: version for name, version in docs.items() if test.get(name, version) != version} == {}
    assert run_time.keys() <= docs.keys()


@pytest.mark.parametrize(("name", "series"), FIXED.items())
def test_what_the_facts_were_probed_on_is_pinned(name: str, series: str) -> None:
    wanted = {each.name: each for each in map(Requirement, _project()[LOCKS[0]])}
    assert str(wanted[name].specifier) == f"=={series}.*"
    assert _locked(LOCKS[0])[name].startswith(f"{series}.")
