"""Commands whose module is imported only when they are typed.

The help page and shell completion need a name and a summary. Everything else of a command, and the libraries that it
works with, would make each start slower and larger.
"""

from __future__ import annotations

import difflib
import importlib
import logging as stdlib_logging
import sys
from collections.abc import Callable
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from worker.cli import start_up
from worker.cli.command_line import print_error
from worker.cli.exit_codes import NoSuchOrganizationError, UsageError

DOCTOR = "doctor"
ORGANIZATION_COMMAND = "ORG"
_TYPED_ORGANIZATION: Final = "worker.cli.typed_organization"
_NEAR: Final = 0.75
Function = Callable[..., object]


class LazyCommand(TyperCommand):
    """Its ``callback`` returns the function of the command."""

    def load(self) -> TyperCommand:
        """The whole command, with its options and its help."""
        if self.callback is None:
            raise AssertionError(self.name)
        alone = typer.Typer(add_completion=False, rich_markup_mode=self.rich_markup_mode)
        alone.command(
            self.name,
            short_help=self.short_help,
            context_settings=dict(self.context_settings),
            add_help_option=self.add_help_option,
            rich_help_panel=self.rich_help_panel,
        )(self.callback())
        command = get_command(alone)
        if not isinstance(command, TyperCommand):
            raise TypeError(self.name)
        return command

    def make_context(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - handed on as they are
        context = self.load().make_context(*arguments, **options)
        if not context.resilient_parsing:  # shell completion
            _log_only_errors()
            if self.name != DOCTOR:
                _warn_of_typos()
        start_up.ends()
        return context


class GroupWithOrganization(TyperGroup):
    """What is no command of the group is an organization: ``adopt Acme`` is its command ``ORG``.

    If that fails as typed, a command with nearly this name is named.
    """

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as it is inherited
        try:
            return super().invoke(ctx)
        except (typer.TyperException, NoSuchOrganizationError) as error:
            message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
            full_message = self._with_near_command(ctx, message)
            if full_message is None:
                raise
            raise UsageError(full_message) from error

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - handed on as they are
        is_organization = bool(args) and args[0] not in self.commands and not args[0].startswith("-")
        ctx.meta[_TYPED_ORGANIZATION] = args[0] if is_organization else None
        return super().resolve_command(ctx, [ORGANIZATION_COMMAND, *args] if is_organization else args)

    def _with_near_command(self, ctx: Any, message: str) -> str | None:  # noqa: ANN401 - as in ``invoke``
        """None: what was typed as an organization is no command's name, not even nearly."""
        typed = ctx.meta.get(_TYPED_ORGANIZATION)
        near = difflib.get_close_matches(typed, self.commands, n=1, cutoff=_NEAR) if typed is not None else []
        if not near:
            return None
        sentence = message if message.endswith(("?", ".")) else f"{message}."
        return f"{sentence} Did you mean `{ctx.command_path} {near[0]}`?"


def function_of(module: str, name: str) -> Callable[[], Function]:
    """A callback for ``LazyCommand``: the function ``name`` of ``worker.cli.<module>``."""

    def load() -> Function:
        function: Function = getattr(importlib.import_module(f"worker.cli.{module}"), name)
        return function

    return load


def _warn_of_typos() -> None:
    """One sentence for each name that is nearly a setting, from every command; doctor has findings of its own."""
    from worker.config import names

    for typo in names.typos():
        print_error(f"{typo.name} in {typo.place} is no setting, so nothing reads it; the nearest one is {typo.meant}")


def _log_only_errors() -> None:
    """For commands that show a result; a process of a deployment configures its own logging."""
    if "structlog" not in sys.modules:  # nothing of ours that this command imported writes a log line
        stdlib_logging.basicConfig(level=stdlib_logging.ERROR)
        return
    from worker.config.settings import Settings
    from worker.wiring import logging

    logging.configure(Settings.model_construct(log_level="ERROR"))


def load_all(group: TyperGroup) -> TyperGroup:
    """The same group with every command loaded, for what describes or checks them all."""
    for name, command in group.commands.items():
        if isinstance(command, LazyCommand):
            group.commands[name] = command.load()
        elif isinstance(command, TyperGroup):
            load_all(command)
    return group
