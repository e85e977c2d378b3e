"""Every name uses the words of ``docs/glossary.md``: no name, command, field or message holds a retired word.

The retired words are in ``tests/retired_words.toml``, each with the kinds of name it is refused in and its exceptions.
Docstrings and comments are not checked: prose may use the plain English word.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from typer.core import TyperCommand, TyperGroup

import api.routes
import core.db.models
from core.db.base import Base
from worker.cli.app import all_commands

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("core", "providers", "tasks", "worker", "api", "sandbox", "migrations")
BESIDE = ("tests", "benchmarks")
HISTORY = "migrations/from_0009.py"  # says what an upgrade found, so it keeps the words of its time
PUBLIC_FACE = "core/org_manager.py"  # the client's own names
METRICS = "api/metrics.py"

KINDS = {
    *("module", "class", "function", "argument", "variable", "attribute", "constant"),
    *("table", "column", "command", "option", "field", "value", "log_event", "metric", "message"),
}
CHECKED_BESIDE = {"module", "class", "function", "argument"}
LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical"}

PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
CONSTANT = re.compile(r"_*[A-Z][A-Z0-9_]*")
JSON_KEY = re.compile(r"[a-z][a-z0-9_]*")
METRIC = re.compile(r"\bbilling_sync_\w+")
METRIC_PART = re.compile(r"[a-z]+(?:_[a-z]+)*")


class Name(NamedTuple):
    """One name or one message of the program, and where it stands."""

    path: str
    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class RetiredWord:
    """An entry of the list. ``forms``: the word and its inflections, each as the parts of an identifier."""

    word: str
    forms: tuple[tuple[str, ...], ...]
    instead: str
    kinds: frozenset[str]
    whole: bool
    shipped: bool
    exceptions: tuple[str, ...]
    text: re.Pattern[str]

    def is_in(self, name: Name) -> bool:
        if name.kind not in self.kinds or self._is_excepted(name):
            return False
        if name.kind == "message":
            return bool(self.text.search(name.text.replace("_", " ")))
        parts = parts_of(name.text)
        if self.whole:
            return parts in self.forms
        return any(form == parts[at : at + len(form)] for form in self.forms for at in range(len(parts)))

    def _is_excepted(self, name: Name) -> bool:
        if self.shipped and not name.path.startswith(SHIPPED):
            return True
        names = (name.text, f"{name.path}:{name.text}")
        return any(fnmatchcase(each, pattern) for each in names for pattern in self.exceptions)


@cache
def parts_of(identifier: str) -> tuple[str, ...]:
    """``LastKnown`` and ``last_known`` alike are ``("last", "known")``."""
    return tuple(part.lower() for part in PART.findall(identifier))


@cache
def document() -> Mapping[str, Any]:
    return tomllib.loads((ROOT / "tests" / "retired_words.toml").read_text(encoding="utf-8"))


@cache
def retired_words() -> tuple[RetiredWord, ...]:
    return tuple(_retired_word(**entry) for entry in document()["words"])


def _retired_word(  # noqa: PLR0913 - the keys of an entry
    *,
    word: str,
    instead: str,
    kinds: list[str],
    forms: Iterable[str] = (),
    whole: bool = False,
    shipped: bool = False,
    **exceptions: dict[str, str],
) -> RetiredWord:
    texts = [word, *forms]
    pattern = "|".join(r"\s+".join(map(re.escape, re.split(r"[ _]", text))) for text in texts)
    return RetiredWord(
        word=word,
        forms=tuple(parts_of(text) for text in texts),
        instead=instead,
        kinds=frozenset(expanded(kinds)),
        whole=whole,
        shipped=shipped,
        exceptions=tuple(exceptions.get("except", ())),
        text=re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])", re.IGNORECASE),
    )


def expanded(kinds: Iterable[str]) -> list[str]:
    groups: dict[str, list[str]] = document()["groups"]
    return [kind for each in kinds for kind in groups.get(each, [each])]


def refused(names: Iterable[Name]) -> list[str]:
    """A sentence for each retired word in these names, with its place and what to write."""
    return sorted(
        f"{name.path}:{name.line} {name.kind} {name.text!r}: write {word.instead!r}, not {word.word!r}"
        for name in set(names)
        for word in _candidates(name)
        if word.is_in(name)
    )


def _candidates(name: Name) -> Iterable[RetiredWord]:
    if name.kind == "message":
        return [word for word in retired_words() if "message" in word.kinds]
    by_part = _words_by_first_part()
    return {word.word: word for part in parts_of(name.text) for word in by_part.get(part, ())}.values()


@cache
def _words_by_first_part() -> Mapping[str, list[RetiredWord]]:
    found = defaultdict(list)
    for word in retired_words():
        for form in word.forms:
            found[form[0]].append(word)
    return found


# ---------------------------------------------------------------------------------------------------- names of Python


class _Names(ast.NodeVisitor):
    """The names that a module gives, and the texts that it holds; not what it uses."""

    def __init__(self, path: str) -> None:
        self.found: list[Name] = []
        self._path = path
        self._scope = "module"

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._add(node, "class", node.name)
        self._visit_inside(node, "class")

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if not node.name.startswith("__"):
            self._add(node, "function", node.name)
        self._visit_inside(node, "function")

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_arg(self, node: ast.arg) -> None:
        if node.arg not in {"self", "cls"}:
            self._add(node, "argument", node.arg)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store) and not node.id.startswith("__"):
            self._add(node, self._kind_of(node.id), node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        owner = node.value
        if isinstance(node.ctx, ast.Store) and isinstance(owner, ast.Name) and owner.id in {"self", "cls"}:
            self._add(node, "attribute", node.attr)
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self._add(node, "variable", node.name)
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        self._add(node, "variable", node.name)
        self.generic_visit(node)

    def visit_alias(self, node: ast.alias) -> None:
        self._add(node, "variable", node.asname)

    def visit_Call(self, node: ast.Call) -> None:
        if _is_log_call(node):
            for event in node.args[:1]:
                self._add_text(event, "log_event")
            for keyword in node.keywords:
                self._add(node, "field", keyword.arg)
        self.generic_visit(node)

    def visit_Dict(self, node: ast.Dict) -> None:
        for key in node.keys:
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and JSON_KEY.fullmatch(key.value):
                self._add(key, "field", key.value)
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.value, ast.Name) and node.value.id == "Literal":
            for each in ast.walk(node.slice):
                self._add_text(each, "value")
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not (isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)):  # a docstring
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        self._add_text(node, "message")

    def _visit_inside(self, node: ast.AST, scope: str) -> None:
        outer, self._scope = self._scope, scope
        self.generic_visit(node)
        self._scope = outer

    def _kind_of(self, name: str) -> str:
        if self._scope != "function" and CONSTANT.fullmatch(name):
            return "constant"
        return "attribute" if self._scope == "class" else "variable"

    def _add(
        self,
        node: ast.expr | ast.stmt | ast.arg | ast.alias | ast.excepthandler | ast.pattern,
        kind: str,
        name: str | None,
    ) -> None:
        if name is not None:
            self.found.append(Name(self._path, node.lineno, kind, name))

    def _add_text(self, node: ast.AST, kind: str) -> None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            self._add(node, kind, node.value)


def _is_log_call(node: ast.Call) -> bool:
    called = node.func
    if not (isinstance(called, ast.Attribute) and called.attr in LOG_METHODS):
        return False
    return isinstance(called.value, ast.Name) and called.value.id in {"log", "_log", "logger"}


def names_in(path: str, source: str) -> list[Name]:
    """Of tests and benchmarks only what one reads them by: a test's own name is a sentence."""
    visitor = _Names(path)
    visitor.visit(ast.parse(source, path))
    found = [*visitor.found, *_modules(path)]
    if path.startswith(SHIPPED):
        return found
    return [name for name in found if name.kind in CHECKED_BESIDE and not name.text.startswith("test_")]


def _modules(path: str) -> Iterator[Name]:
    file = Path(path)
    if not file.stem.startswith("__"):
        yield Name(path, 1, "module", file.stem)
    for folder in list(file.parents)[:-1]:
        yield Name(str(folder), 1, "module", folder.name)


@cache
def sources() -> Mapping[str, str]:
    """The text of each Python file by its path."""
    return {
        where: path.read_text(encoding="utf-8")
        for folder in (*SHIPPED, *BESIDE)
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not (where := str(path.relative_to(ROOT))).startswith(HISTORY)
    }


@cache
def python_names() -> tuple[Name, ...]:
    return tuple(name for path, source in sources().items() for name in names_in(path, source))


def test_no_name_in_the_code_holds_a_retired_word() -> None:
    assert refused(name for name in python_names() if name.kind != "message") == []


# --------------------------------------------------------------------------------------------------- names for others


def _place(called: Any) -> tuple[str, int]:  # noqa: ANN401 - whatever a framework calls
    code = inspect.unwrap(called).__code__
    return str(Path(code.co_filename).resolve().relative_to(ROOT)), code.co_firstlineno


def command_names(command: TyperCommand | TyperGroup, name: str = "") -> Iterator[Name]:
    """Each command with its options, arguments and help."""
    path, line = _place(command.callback) if command.callback else ("worker/cli/app.py", 1)
    yield Name(path, line, "command", name)
    yield Name(path, line, "message", command.help or "")
    for parameter in command.params:
        yield Name(path, line, "option", (parameter.name or "").replace("-", "_"))
        for option in parameter.opts:
            yield Name(path, line, "option", option.strip("-").replace("-", "_"))
        yield Name(path, line, "message", getattr(parameter, "help", None) or "")
    if isinstance(command, TyperGroup):
        for sub_name, sub_command in command.commands.items():
            assert isinstance(sub_command, TyperCommand | TyperGroup)
            yield from command_names(sub_command, sub_name.replace("-", "_"))


def test_no_command_holds_a_retired_word() -> None:
    found = list(command_names(all_commands()))
    assert {"status", "check", "import"} <= {name.text for name in found if name.kind == "command"}
    assert refused(found) == []


def http_names(routes: Iterable[APIRoute], schemas: Mapping[str, Any]) -> Iterator[Name]:
    """Fields, parameters and descriptions of the HTTP API, each at its handler or its class."""
    for route in routes:
        path, line = _place(route.endpoint)
        yield Name(path, line, "message", f"{route.summary or ''} {route.description} {route.name}")
        for parameter in (*route.dependant.query_params, *route.dependant.path_params):
            yield Name(path, line, "field", parameter.alias)
            yield Name(path, line, "message", parameter.field_info.description or "")
    places = {name.text: name for name in python_names() if name.kind == "class" and name.path.startswith("api/")}
    for title, schema in schemas.items():
        at = places.get(title, Name("api/app.py", 1, "class", title))
        for field, described in schema.get("properties", {}).items():
            yield at._replace(kind="field", text=field)
            yield at._replace(kind="message", text=described.get("description", ""))


def http_api() -> FastAPI:
    """All routes, without what they need to run."""
    found = FastAPI()
    for module in pkgutil.iter_modules(api.routes.__path__, "api.routes."):
        found.include_router(importlib.import_module(module.name).router)
    return found


def test_no_field_of_the_http_api_holds_a_retired_word() -> None:
    served = http_api()
    routes = [route for route in served.routes if isinstance(route, APIRoute)]
    found = list(http_names(routes, served.openapi()["components"]["schemas"]))
    assert {"org_id", "in_sync", "plan_tier"} <= {name.text for name in found if name.kind == "field"}
    assert refused(found) == []


def table_names() -> Iterator[Name]:
    for mapper in Base.registry.mappers:
        owner = mapper.class_
        path = str(Path(inspect.getfile(owner)).resolve().relative_to(ROOT))
        lines = {name.text: name.line for name in python_names() if name.path == path}
        at = Name(path, lines[owner.__name__], "table", mapper.local_table.description)
        yield at
        for column in mapper.columns:
            yield at._replace(line=lines.get(column.key, at.line), kind="column", text=column.name)


def test_no_table_and_no_column_holds_a_retired_word() -> None:
    found = list(table_names())
    assert {name.text for name in found if name.kind == "table"} == set(Base.metadata.tables)
    assert len(Base.metadata.tables) >= len(core.db.models.__all__) - 1
    assert refused(found) == []


def metric_names(path: str, text: str) -> Iterator[Name]:
    """Of the document the whole names; of the code every short text that is given to a call: a name or a label."""
    if path.endswith(".md"):
        for number, line in enumerate(text.splitlines(), 1):
            yield from (Name(path, number, "metric", name) for name in METRIC.findall(line))
        return
    for call in ast.walk(ast.parse(text, path)):
        for given in call.args if isinstance(call, ast.Call) else ():
            for each in ast.walk(given):
                if isinstance(each, ast.Constant) and METRIC_PART.fullmatch(str(each.value)):
                    yield Name(path, each.lineno, "metric", str(each.value))


def test_no_metric_holds_a_retired_word() -> None:
    paths = (METRICS, "docs/reference/metrics.md", "docs/how-to/monitor.md")
    found = [name for path in paths for name in metric_names(path, (ROOT / path).read_text(encoding="utf-8"))]
    assert {"links_parked", "billing_sync_links_parked"} <= {name.text for name in found}
    assert refused(found) == []


def test_no_message_holds_a_retired_word() -> None:
    messages = [name for name in python_names() if name.kind == "message"]
    files = [*(ROOT / "core" / "emails" / "templates").glob("*.[th]*"), *(ROOT / "providers").rglob("failures.toml")]
    assert len(files) > 2
    written = [
        Name(str(path.relative_to(ROOT)), number, "message", line)
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if not line.startswith("#")
    ]
    assert refused([*messages, *written]) == []


# ------------------------------------------------------------------------------------------- one name for one thing


def repeated_classes(names: Iterable[Name]) -> list[str]:
    places = defaultdict(list)
    for name in sorted(names):
        if name.kind == "class" and name.path != PUBLIC_FACE:
            places[name.text].append(f"{name.path}:{name.line}")
    return [f"{name}: {', '.join(found)}" for name, found in sorted(places.items()) if len(found) > 1]


def test_a_class_name_is_given_once_in_the_repository() -> None:
    assert repeated_classes(python_names()) == []


def module_constants(path: str, source: str) -> Iterator[Name]:
    """What a module itself defines; what it imports is another's."""
    for node in ast.parse(source, path).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        for each in (each for target in targets for each in ast.walk(target)):
            if isinstance(each, ast.Name) and CONSTANT.fullmatch(each.id):
                yield Name(path, each.lineno, "constant", each.id)


def shipped_constants() -> list[Name]:
    return [
        name
        for path, source in sources().items()
        if path.startswith(SHIPPED) and path != PUBLIC_FACE
        for name in module_constants(path, source)
    ]


def generic_constants(constants: Iterable[Name]) -> list[str]:
    generic = {word.lower() for word in document()["constants"]["generic"]}
    return [
        f"{name.path}:{name.line} {name.text}: name its subject and its unit"
        for name in constants
        if set(parts_of(name.text)) <= generic
    ]


def repeated_constants(constants: Iterable[Name]) -> list[str]:
    places = defaultdict(set)
    for name in constants:
        if not name.text.startswith("_"):
            places[name.text].add(name.path)
    return [f"{name}: {', '.join(sorted(found))}" for name, found in sorted(places.items()) if len(found) > 1]


def test_a_constant_names_its_subject() -> None:
    assert generic_constants(shipped_constants()) == []


def test_a_public_constant_is_defined_in_one_module() -> None:
    assert repeated_constants(shipped_constants()) == []


# ------------------------------------------------------------------------------------------ the list and its table


def test_the_list_is_well_formed() -> None:
    words = retired_words()
    assert [word.word for word in words if word.kinds - KINDS] == []
    forms = [form for word in words for form in word.forms if not word.whole and "message" not in word.kinds]
    assert len(words) == len({word.word for word in words})
    assert len(forms) == len(set(forms))
    reasons = [reason for entry in document()["words"] for reason in entry.get("except", {}).values()]
    assert reasons
    assert all(reasons)


def test_the_glossary_ends_with_the_words_of_the_list() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+) \| (.+) \| (.+) \|$", text.split("\n## Words we do not use\n")[1], re.MULTILINE)
    shown = [(word, where, instead) for words, where, instead in rows for word in re.findall(r"`([^`]+)`", words)]
    entries = document()["words"]
    assert sorted(shown) == sorted((entry["word"], _where(entry["kinds"]), entry["instead"]) for entry in entries)


def _where(kinds: Iterable[str]) -> str:
    if {"names", "protocol"} <= set(kinds):
        return "any name"
    return ", ".join(expanded(kinds)).replace("_", " ")


# ------------------------------------------------------------------------------------------------ the checks can fail


@pytest.mark.parametrize(
    ("path", "source", "word"),
    [
        ("core/new.py", "class Biller: ...", "biller"),
        ("core/billers.py", "", "biller"),
        ("core/new.py", "def f(turn: Turn) -> None: ...", "turn"),
        ("core/new.py", "run = lambda claim: 1", "claim"),
        ("core/new.py", "for hint in (): ...", "hint"),
        ("core/new.py", "from core import x as lanes", "lane"),
        ("core/new.py", "LONGEST_REST = 5", "rest"),
        ("core/new.py", "class A:\n    held: int", "held"),
        ("core/new.py", "class A:\n    def f(self) -> None:\n        self._kept = 1", "kept"),
        ("core/new.py", "class Known: ...", "known"),
        ("core/new.py", "try: ...\nexcept OSError as verdict: ...", "verdict"),
        ("core/new.py", "match 1:\n    case wish: ...", "wish"),
        ("core/new.py", 'State = Literal["parked", "held"]', "held"),
        ("tasks/new.py", 'log.info("planned", count=1)', "planned"),
        ("tasks/new.py", 'log.info("event_received", verdict=1)', "verdict"),
        ("worker/new.py", 'show({"billers": 1})', "biller"),
        ("worker/new.py", 'raise ValueError("the biller is stopped")', "biller"),
        ("worker/new.py", 'print(f"{n} links wait for a person")', "a person"),
        ("worker/new.py", 'help = "run `billing-sync ids ORG`"', "billing-sync ids"),
        ("tests/new.py", "class MailServer: ...", "mail"),
        ("tests/new.py", "def turnstile() -> None: ...", "turnstile"),
        ("tests/new.py", "def test_that_it_is_so(courier: int) -> None: ...", "courier"),
    ],
)
def test_a_retired_word_is_found(path: str, source: str, word: str) -> None:
    found = refused(names_in(path, source))
    assert {each.rsplit(", not ", 1)[1] for each in found} == {repr(word)}
    assert found[0].startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/new.py", '"""The biller, a person and a hint."""\n# a doorbell\nx = 1'),
        ("core/new.py", 'class A:\n    x: int\n    """Its biller."""'),
        ("core/new.py", "def returned(around: int) -> int: return round(around)"),
        ("core/new.py", "class LastKnown: ..."),
        ("core/new.py", "parked_or_on_hold = ON_HOLD = 1"),
        ("core/new.py", "def lookup(keyword: int, remaining: int) -> None: ..."),
        ("core/new.py", "biller.wish(turn)"),
        ("core/new.py", 'Where = Literal["reopened", "refused_by"]'),
        ("providers/new.py", "def post(post_data: int) -> None: ..."),
        ("worker/new.py", "mail_from: str = smtp_host"),
        ("worker/new.py", 'print("billing-sync plans check tells whether personal data is kept")'),
        ("tests/new.py", "def test_a_biller_is_told() -> None:\n    wish = 1"),
        ("tests/new.py", "def what_is_kept(known: int) -> None: ..."),
    ],
)
def test_what_is_fine_is_let_through(path: str, source: str) -> None:
    assert refused(names_in(path, source)) == []


@pytest.mark.parametrize(
    ("name", "word"),
    [
        (Name("worker/cli/app.py", 1, "command", "received"), "received"),
        (Name("worker/cli/app.py", 1, "command", "plan"), "plan"),
        (Name("worker/cli/app.py", 1, "option", "verdict"), "verdict"),
        (Name("api/routes/events.py", 1, "field", "verdict"), "verdict"),
        (Name("core/db/models/access.py", 1, "table", "kept_answers"), "kept"),
        (Name("core/db/models/billing_links.py", 1, "column", "rest_until"), "rest_until"),
        (Name("tasks/drift.py", 1, "log_event", "planned"), "planned"),
    ],
)
def test_a_retired_word_is_found_in_a_name_for_others(name: Name, word: str) -> None:
    assert any(found.endswith(f"not {word!r}") for found in refused([name]))


def test_a_metric_is_found_in_the_document_and_in_the_code() -> None:
    in_document = metric_names("docs/reference/metrics.md", "| `billing_sync_biller_stopped` | provider |")
    assert len(refused(in_document)) == 2
    in_code = metric_names(METRICS, 'yield _family("biller_stopped", "1: nothing is sent.", "provider")')
    assert len(refused(in_code)) == 2


def test_two_things_of_one_name_are_found() -> None:
    both = [*names_in("core/a.py", "class Same: ..."), *names_in("tests/b.py", "class Same: ...")]
    assert repeated_classes(both) == ["Same: core/a.py:1, tests/b.py:1"]
    constants = [*module_constants("core/a.py", "ONE_SECONDS = 1"), *module_constants("core/b.py", "ONE_SECONDS = 2")]
    assert repeated_constants(constants) == ["ONE_SECONDS: core/a.py, core/b.py"]
    assert repeated_constants(module_constants("core/a.py", "from b import ONE\n_ONE = 1")) == []


@pytest.mark.parametrize("name", ["LEASE", "LONGEST_WAIT", "_MAX_SECONDS", "KEPT"])
def test_a_generic_constant_is_found(name: str) -> None:
    assert generic_constants(module_constants("core/a.py", f"{name}: Final = 1")) != []
    assert generic_constants(module_constants("core/a.py", f"LINK_{name} = 1")) == []
