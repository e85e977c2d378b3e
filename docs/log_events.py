"""The log events of the program: the levels and the fields of each name, read from the log calls.

A log call of a form that this module cannot read ends the program, so that no event is missing on the page.
"""
# ruff: noqa: INP001 - a folder of documents with programs, not a package

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from core.drift.report_store import DriftCounts

ROOT: Final = Path(__file__).resolve().parent.parent
LOGGING_PACKAGES: Final = ("api", "core", "providers", "sandbox", "tasks", "worker")
LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
# The fields of what a log call spreads with ``**``, unless it is a dictionary of the same function.
SPREAD_FIELDS: Final[Mapping[str, list[str]]] = {
    "asdict(report.counts)": [field.name for field in dataclasses.fields(DriftCounts)],
}

Scope = ast.Module | ast.FunctionDef | ast.AsyncFunctionDef


class UnreadableCallError(Exception):
    """The name or a field of a log call is not a constant. ``line``: where."""

    def __init__(self, node: ast.expr) -> None:
        super().__init__(node.lineno)
        self.line = node.lineno


@dataclasses.dataclass(slots=True)
class LogEvent:
    """What the log calls with one name have. ``fields`` are in the order of the code."""

    levels: set[str] = dataclasses.field(default_factory=set)
    fields: list[str] = dataclasses.field(default_factory=list)


class LogCall(NamedTuple):
    name: str
    level: str
    fields: list[str]


class Choice(NamedTuple):
    """A value that an expression may have, and which conditions of the code are then true or false."""

    value: ast.expr
    conditions: Mapping[str, bool]

    def fits(self, other: Choice) -> bool:
        return all(other.conditions.get(test, is_true) == is_true for test, is_true in self.conditions.items())


def read_all() -> dict[str, LogEvent]:
    """The log events by their names."""
    events: dict[str, LogEvent] = {}
    for package in LOGGING_PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for call in log_calls(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))):
                event = events.setdefault(call.name, LogEvent())
                event.levels.add(call.level)
                event.fields += [name for name in call.fields if name not in event.fields]
    return events


def log_calls(source: str, path: str) -> list[LogCall]:
    """The log calls of a module, each once for every name that it may log."""
    try:
        return list(_log_calls(ast.parse(source)))
    except UnreadableCallError as error:
        message = f"docs/log_events.py cannot read the name or the fields of the log call at {path}:{error.line}"
        raise SystemExit(message) from None


def _log_calls(tree: ast.Module) -> Iterator[LogCall]:
    """Raises ``UnreadableCallError``, also where a logger is mentioned and no log call is found."""
    unread = mentions = _logger_mentions(tree)
    for scope, call in _calls(tree, tree):
        for method in _choices(call.func, scope):
            match method.value:
                case ast.Attribute(value=logger, attr=level) if logger in mentions and level in LOG_LEVELS:
                    fields = _fields(call, scope)
                    yield from (LogCall(name, level, fields) for name in _names(call, method, scope, tree))
                    unread -= {logger}
    for mention in unread:
        raise UnreadableCallError(mention)


def _logger_mentions(tree: ast.Module) -> frozenset[ast.expr]:
    """Each place where the module uses its logger."""
    loggers = {name for name, value in _variables(tree).items() if "get_logger(" in ast.unparse(value)}
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    return frozenset(name for name in names if name.id in loggers)


def _calls(node: ast.AST, scope: Scope) -> Iterator[tuple[Scope, ast.Call]]:
    """Each call below this node, with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield scope, child
        yield from _calls(child, child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else scope)


def _variables(scope: Scope) -> dict[str, ast.expr]:
    """What the statements of this function assign to names."""
    return {
        node.targets[0].id: node.value
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _choices(expression: ast.expr, scope: Scope) -> list[Choice]:
    """The values of an expression: for a variable what it is assigned, for ``a if test else b`` both."""
    if isinstance(expression, ast.Name):
        expression = _variables(scope).get(expression.id, expression)
    if isinstance(expression, ast.IfExp):
        test = ast.unparse(expression.test)
        return [Choice(expression.body, {test: True}), Choice(expression.orelse, {test: False})]
    return [Choice(expression, {})]


def _names(call: ast.Call, method: Choice, scope: Scope, tree: ast.Module) -> list[str]:
    """The names that the call may log by this method. Raises ``UnreadableCallError``."""
    if not call.args:
        raise UnreadableCallError(call)
    values = [choice.value for choice in _choices(call.args[0], scope) if choice.fits(method)]
    return [_text(each) for value in values for each in _passed_arguments(value, scope, tree) or [value]]


def _passed_arguments(value: ast.expr, scope: Scope, tree: ast.Module) -> list[ast.expr]:
    """If the value is a parameter of its function, what the calls of that function pass for it."""
    if not isinstance(value, ast.Name) or isinstance(scope, ast.Module):
        return []
    parameters = [each.arg for each in scope.args.args if each.arg != "self"]
    if value.id not in parameters:
        return []
    position = parameters.index(value.id)
    calls = [call for _, call in _calls(tree, tree) if ast.unparse(call.func) in {scope.name, f"self.{scope.name}"}]
    return [call.args[position] if len(call.args) > position else call for call in calls]


def _fields(call: ast.Call, scope: Scope) -> list[str]:
    """The fields that the call logs. Raises ``UnreadableCallError``."""
    fields: list[str] = []
    for keyword in call.keywords:
        fields += [keyword.arg] if keyword.arg is not None else _spread_fields(keyword.value, scope)
    return fields


def _spread_fields(value: ast.expr, scope: Scope) -> list[str]:
    if (fields := SPREAD_FIELDS.get(ast.unparse(value))) is not None:
        return fields
    match _choices(value, scope):
        case [Choice(ast.Dict(keys=keys))]:
            return [_text(key or value) for key in keys]
    raise UnreadableCallError(value)


def _text(value: ast.expr) -> str:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    raise UnreadableCallError(value)
