"""All places in the code that commit, send or publish, found in the source itself. The runs must pass all of them.

So each new ``database.write()``, request and publish is found automatically. A test compares them with the points of
the recorded runs. It fails until an operation covers the new one, or ``elsewhere.py`` names another test that does.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.crash.points import CARRIERS, CARRYING_METHODS

ROOT = Path(__file__).resolve().parents[2]

_SENDERS = {"send", "send_or_none", "list_page", "list_all", "page_after"}
_SENDS_THROUGH = {"_client"}
_PUBLISHERS = {"send_task", "retry"}
_QUEUE_METHODS = {"send", "publish"}  # of tasks.queue


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """``kind`` is commit, send or publish, and ``name`` is that of ``points.Point.site``. ``spot`` is the name without
    its line; the second transaction of a function has ``#2``.
    """

    kind: str
    name: str
    spot: str


def sites() -> set[Site]:
    """The sites on the way of a change through core, tasks, the relay and the providers."""
    found: set[Site] = set()
    for path in _modules():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if module in CARRIERS:
            continue
        for name, function in _functions(ast.parse(path.read_text(encoding="utf-8"))):
            site = f"{module}:{name}"
            if site not in CARRYING_METHODS:
                kinds = {kind for call in _calls(function) if (kind := _kind(module, call)) is not None}
                found |= {Site(kind, site, site) for kind in kinds}
                found |= {
                    Site("commit", f"{site}:{line}", site if number == 1 else f"{site}#{number}")
                    for number, line in enumerate(sorted(_transactions(function)), 1)
                }
    return found


def _modules() -> Iterator[Path]:
    for package in ("core", "providers", "tasks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            # An operator repeats a drift check or an import as a whole.
            if "drift" not in path.parts and "predecessor" not in path.parts:
                yield path
    yield ROOT / "worker" / "processes" / "relay.py"


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions of the module and of its classes; a nested function belongs to the outer one."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield f"{node.name}.{member.name}", member


def _calls(function: ast.FunctionDef) -> Iterator[ast.Call]:
    return (node for node in ast.walk(function) if isinstance(node, ast.Call))


def _transactions(function: ast.FunctionDef) -> Iterator[int]:
    """The lines of ``with … .write() as session``."""
    for node in ast.walk(function):
        if isinstance(node, ast.With):
            for item in node.items:
                call = item.context_expr
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "write":
                    yield call.lineno


def _kind(module: str, call: ast.Call) -> str | None:
    if not isinstance(call.func, ast.Attribute):
        return None
    name, holder = call.func.attr, call.func.value
    if name == "_write" and module == "core.reconcile.attempt":
        return "commit"
    if module.startswith("providers.") and name in _SENDERS and _last(holder) in _SENDS_THROUGH:
        return "send"
    is_queue_call = name in _QUEUE_METHODS and _last(holder) in {"queue", "task_queue"}
    if not module.startswith(("core.", "providers.")) and (is_queue_call or name in _PUBLISHERS):
        return "publish"
    return None


def _last(holder: ast.expr) -> str | None:
    return holder.attr if isinstance(holder, ast.Attribute) else holder.id if isinstance(holder, ast.Name) else None
