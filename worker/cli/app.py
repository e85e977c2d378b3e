"""All commands of ``billing-sync``, in the order in which a new user needs them."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import Annotated

import typer

from worker.cli import (
    api,
    api_keys,
    attention,
    demo,
    drift,
    exit_codes,
    import_export,
    organizations,
    plans,
    provider_ids,
    run,
    status,
    webhooks,
)
from worker.config.settings import Settings
from worker.wiring import logging

PANEL_TRY = "Try it"
PANEL_OPERATE = "Operate"
PANEL_IMPORT_EXPORT = "Import and export"
PANEL_RUN = "Run it"

app = typer.Typer(
    name="billing-sync",
    help="Keeps your organizations in sync with Stripe and Lago.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # wraps paragraphs to the width of the screen
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
drift_commands = typer.Typer(no_args_is_help=True)
plan_commands = typer.Typer(no_args_is_help=True)
key_commands = typer.Typer(no_args_is_help=True)
webhook_commands = typer.Typer(no_args_is_help=True)
database_commands = typer.Typer(no_args_is_help=True)


def main() -> None:
    """The console script."""
    logging.configure(Settings.model_construct(log_level="ERROR"))
    sys.exit(exit_codes.run(app, sys.argv[1:]))


def _print_version(requested: bool) -> None:  # noqa: FBT001 - Typer calls it with the option's value
    if requested:
        typer.echo(f"billing-sync {importlib.metadata.version('billing-sync')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


app.command(rich_help_panel=PANEL_TRY)(demo.demo)
app.command(rich_help_panel=PANEL_TRY)(run.up)
app.command(rich_help_panel=PANEL_TRY)(run.sandbox)
app.command(rich_help_panel=PANEL_OPERATE)(status.status)
app.command(rich_help_panel=PANEL_OPERATE)(organizations.orgs)
app.command(rich_help_panel=PANEL_OPERATE)(attention.parked)
app.command(rich_help_panel=PANEL_OPERATE)(attention.retry)
app.command(rich_help_panel=PANEL_OPERATE)(provider_ids.set_customer_id)
app.command(rich_help_panel=PANEL_OPERATE)(attention.inbox)
app.command("import", rich_help_panel=PANEL_IMPORT_EXPORT)(import_export.import_command)
app.command("export", rich_help_panel=PANEL_IMPORT_EXPORT)(import_export.export_command)
app.command("worker", rich_help_panel=PANEL_RUN)(run.run_worker)
app.command(rich_help_panel=PANEL_RUN)(api.api)
app.command(rich_help_panel=PANEL_RUN)(run.relay)
app.command(rich_help_panel=PANEL_RUN)(run.beat)
app.command(
    rich_help_panel=PANEL_RUN,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)(run.flower)
drift_commands.command("check")(drift.check)
drift_commands.command("repair")(drift.repair)
plan_commands.command("check")(plans.check)
plan_commands.command("push")(plans.push)
key_commands.command("create")(api_keys.create_key)
key_commands.command("list")(api_keys.list_keys)
key_commands.command("revoke")(api_keys.revoke_key)
webhook_commands.command("add")(webhooks.add_endpoint)
webhook_commands.command("list")(webhooks.list_endpoints)
webhook_commands.command("remove")(webhooks.remove_endpoint)
webhook_commands.command("rotate")(webhooks.rotate_secret)
webhook_commands.command("replay")(webhooks.replay_deliveries)
webhook_commands.command("failed")(webhooks.failed_deliveries)
database_commands.command("upgrade")(organizations.upgrade_database)
app.add_typer(
    drift_commands,
    name="drift",
    help="Compare the providers with the desired state, and repair what differs.",
    rich_help_panel=PANEL_OPERATE,
)
app.add_typer(
    plan_commands, name="plans", help="Compare the plan catalog with the providers' prices.", rich_help_panel=PANEL_RUN
)
app.add_typer(key_commands, name="keys", help="API keys of service accounts.", rich_help_panel=PANEL_RUN)
app.add_typer(webhook_commands, name="webhooks", help="Webhook endpoints of other services.", rich_help_panel=PANEL_RUN)
app.add_typer(database_commands, name="db", help="The database schema.", rich_help_panel=PANEL_RUN)
