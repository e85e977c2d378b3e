"""Finds commands of ours in texts, and says which of them cannot be typed: an unknown command, option or argument.

A command stands in backticks or behind a prompt. What a sentence fills in is ``{}``, which may be any value.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from worker.cli.app import all_commands

TYPED = re.compile(r"`(?:\$ )?billing-sync((?:\s[^`]*)?)`|^\s*\$ (?:\w+=\$\()?billing-sync\b(.*)$", re.MULTILINE)
FILLED_IN = "{}"
NO_COMMAND = re.compile(r"[A-Z{…]")
COMMANDS = all_commands()


def unusable(text: str) -> list[str]:
    """Each command of the text that cannot be typed, with the reason."""
    return [
        f"billing-sync {typed}: {reason}"
        for typed in typed_in(text)
        if (reason := _refusal(typed.replace("'", "").split())) is not None
    ]


def typed_in(text: str) -> list[str]:
    found = [" ".join((match[1] or match[2] or "").split()) for match in TYPED.finditer(text)]
    return [re.split(r" #|[|)&]|\\$", typed)[0].strip() for typed in found]


def sentences(source: str) -> Iterator[str]:
    """Each string of a Python file, with ``{}`` for what is filled in."""
    inside: set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            inside |= set(node.values)
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else FILLED_IN for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inside:
            yield re.sub(r"\{[\w.!]+\}", FILLED_IN, node.value)


def _refusal(words: list[str]) -> str | None:
    command: TyperCommand | TyperGroup = COMMANDS
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        if NO_COMMAND.match(words[0]):
            return None  # any command: `billing-sync COMMAND --help`
        found = command.commands.get(words[0])
        if not isinstance(found, TyperCommand | TyperGroup):
            return f"there is no command {words[0]}"
        command, words = found, words[1:]
    return _refused_argument(command, words)


def _refused_argument(command: TyperCommand | TyperGroup, words: list[str]) -> str | None:
    options = {name: each for each in command.params if isinstance(each, TyperOption) for name in each.opts}
    room = sum(isinstance(each, TyperArgument) for each in command.params)
    remaining = iter(words)
    for word in remaining:
        name, has_value, _ = word.partition("=")
        if word in {"-h", "--help", "…", "[ORG]"}:
            continue
        if word.startswith("--") and FILLED_IN in word:  # the option of one of the providers, and its value
            next(remaining, None)
            continue
        if not word.startswith("-"):
            room -= 1
        elif name not in options and command.name != "flower":
            return f"there is no option {name}"
        elif name in options and not options[name].is_flag and not has_value:
            next(remaining, None)
    return "it has too many arguments" if room < 0 and command.name != "flower" else None
