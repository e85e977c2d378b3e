"""Mutations of the rules of a link: how many turn a test red, and which do not.

Each condition, comparison and answer of ``next_step`` and each entry of ``TRANSITIONS`` is changed, one at a time, in a
copy of the project, and the tests of these two modules are run there.

    python -m benchmarks.mutations
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
TESTS_BY_MODULE: Final = {
    "core/reconcile/steps.py": ["tests/core/reconcile/test_steps.py"],
    "core/organizations/link_states.py": [
        "tests/test_reference_pages.py",
        "tests/core/organizations/test_link_states.py",
    ],
}
STATES_BY_COLUMN: Final = (
    ("active", "parked", "on_hold"),
    ("absent", "unconfirmed", "unknown", "applied"),
    ("unknown", "ending", "applied"),
)
MOST_VARIANTS: Final = 2 * max(map(len, STATES_BY_COLUMN))
STEPS: Final = ("ensure_customer", "ensure_subscription", "end_subscription", "refuse_to_end", "check", "complete")
OPPOSITES: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Where and what was changed, and the changed source."""
    for number in range(len(list(ast.walk(ast.parse(source))))):
        for variant in range(MOST_VARIANTS):
            tree = ast.parse(source)
            node = list(ast.walk(tree))[number]
            before = ast.unparse(node)
            if _mutate(node, variant):
                yield f"line {getattr(node, 'lineno', 0)}: {before[:60]} -> {ast.unparse(node)[:60]}", ast.unparse(tree)


def _mutate(node: ast.AST, variant: int) -> bool:  # noqa: PLR0911 - one form after the other
    """Change the node; False if it has no such variant."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in OPPOSITES and variant == 0:
            node.ops = [OPPOSITES[type(op)]()]
            return True
        case ast.BoolOp() if variant == 0:
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            return True
        case ast.If() | ast.IfExp() if variant == 0:
            node.test = ast.UnaryOp(ast.Not(), node.test)
            return True
        case ast.Return(value=ast.Constant(value=str(step))) if step in STEPS and variant == 0:
            node.value = ast.Constant(STEPS[(STEPS.index(step) + 1) % len(STEPS)])
            return True
        case ast.Return(value=ast.Constant(value=bool(answer))) if variant == 0:
            node.value = ast.Constant(not answer)
            return True
        case ast.Dict(keys=[ast.Constant(value=str()), *_]):
            return _mutate_moves(node, variant)
        case ast.Call(func=ast.Attribute(attr="fromkeys"), args=[_, ast.Constant(value=str(state))]) if variant == 0:
            states = next(each for each in STATES_BY_COLUMN if state in each)
            node.args[1] = ast.Constant(_next(states, state))
            return True
    return False


def _mutate_moves(node: ast.Dict, variant: int) -> bool:
    """For each entry: another state afterwards (an even variant), or no entry (an odd one)."""
    keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
    states = next((each for each in STATES_BY_COLUMN if set(keys) <= set(each)), None)
    entry = variant // 2
    if states is None or entry >= len(keys):
        return False
    if variant % 2:
        del node.keys[entry], node.values[entry]
        return True
    value = node.values[entry]
    node.values[entry] = ast.Constant(_next(states, str(value.value) if isinstance(value, ast.Constant) else ""))
    return True


def _next(states: tuple[str, ...], state: str) -> str:
    return states[(states.index(state) + 1) % len(states)]


def _is_red(copy: Path, tests: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *tests]
    return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode != 0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"
        ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "site")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for module, tests in TESTS_BY_MODULE.items():
            source = (ROOT / module).read_text(encoding="utf-8")
            if _is_red(copy, tests):
                sys.exit(f"the tests of {module} are red without a mutation")
            survivors, total = [], 0
            for name, mutant in mutants(source):
                total += 1
                (copy / module).write_text(mutant, encoding="utf-8")
                if not _is_red(copy, tests):
                    survivors.append(name)
                    print(f"  {module} survived: {name}", flush=True)
            (copy / module).write_text(source, encoding="utf-8")
            print(f"{module}: {total} mutations, {total - len(survivors)} turned a test red", flush=True)


if __name__ == "__main__":
    main()
