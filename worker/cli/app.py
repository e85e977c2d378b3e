"""All commands of ``billing-sync``, in the order in which a new user needs them.

A command is named here with its summary, and its module is imported when it is typed. So nothing that this module
imports may be slow: ``tests/worker/cli/test_start_up.py`` names what must not be imported.
"""

from __future__ import annotations

import sys
from typing import Annotated, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from worker.cli import command_line, lazy_commands
from worker.cli.lazy_commands import ORGANIZATION_COMMAND, GroupWithOrganization, LazyCommand, function_of

PANEL_TRY: Final = "Try it"
PANEL_OPERATE: Final = "Operate"
PANEL_IMPORT_EXPORT: Final = "Import and export"
PANEL_RUN: Final = "Run it"
PASS_ON_ARGUMENTS: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def main() -> None:
    """Run the command line that was typed, and exit."""
    sys.exit(command_line.run(app, sys.argv[1:]))


def all_commands() -> TyperGroup:
    """All commands with their options and their whole help."""
    group = get_command(app)
    if not isinstance(group, TyperGroup):
        raise TypeError(group)
    return lazy_commands.load_all(group)


def _print_version(requested: bool) -> None:  # noqa: FBT001 - Typer calls it with the option's value
    if requested:
        from importlib import metadata

        typer.echo(f"billing-sync {metadata.version('billing-sync')}")
        raise typer.Exit


def _group(name: str, summary: str, panel: str, group_type: type[TyperGroup] = TyperGroup) -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, cls=group_type)
    app.add_typer(group, name=name, help=summary, rich_help_panel=panel)
    return group


def _add(  # noqa: PLR0913 - one row of the table below
    group: typer.Typer,
    name: str,
    function: tuple[str, str],
    summary: str,
    panel: str | None = None,
    *,
    own_help: bool = True,
) -> None:
    """``function``: the module in this package, and the function in it."""
    group.command(
        name,
        cls=LazyCommand,
        short_help=summary,
        rich_help_panel=panel,
        add_help_option=own_help,
        context_settings=None if own_help else PASS_ON_ARGUMENTS,
    )(function_of(*function))


app = typer.Typer(
    name="billing-sync",
    help="Keeps your organizations in sync with Stripe and Lago.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # wraps paragraphs to the width of the screen
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command."""


_add(
    app,
    "demo",
    ("demo", "demo"),
    "Import, create, rename, upgrade and downgrade organizations in a sandbox, and show the result.",
    PANEL_TRY,
)
_add(
    app,
    "demo-adopt",
    ("adoption_demo", "demo_adopt"),
    "Discover and adopt some hundred messy customers in a sandbox, then manage them, and show what was left and why.",
    PANEL_TRY,
)
_add(
    app,
    "up",
    ("run", "up"),
    "Run everything in this process: worker, relay, sweep, the API, and a sandbox if no provider is configured.",
    PANEL_TRY,
)
_add(app, "sandbox", ("run", "sandbox"), "Run only the Stripe and Lago sandbox, for tests.", PANEL_TRY)
_add(
    app,
    "status",
    ("status", "status"),
    "Show what is in sync, behind and parked; for one organization also the reason and the next step.",
    PANEL_OPERATE,
)
_add(
    app,
    "history",
    ("history", "history"),
    "Show every change of an organization, what was sent to which provider, and what came of it, newest first.",
    PANEL_OPERATE,
)
_add(
    app,
    "doctor",
    ("doctor", "doctor"),
    "Check settings, database, processes, providers and servers; each problem with what to type. Writes nothing.",
    PANEL_OPERATE,
)
_add(
    app,
    "orgs",
    ("organizations", "orgs"),
    "List organizations with their plan, their ids at both providers, and whether they are in sync.",
    PANEL_OPERATE,
)
_add(
    app,
    "parked",
    ("attention", "parked"),
    "List parked links: the error, since when, and what to do; also emails that could not be sent.",
    PANEL_OPERATE,
)
_add(
    app,
    "retry",
    ("attention", "retry"),
    "Retry organizations now; each is re-read and re-applied. Safe to repeat.",
    PANEL_OPERATE,
)
_add(
    app,
    "resolve",
    ("conflicts", "resolve"),
    "Decide about a link that is on hold because somebody changed it at a provider: --ours or --theirs.",
    PANEL_OPERATE,
)
_add(
    app,
    "set-customer-id",
    ("provider_ids", "set_customer_id"),
    "Set the customer ids of an organization, which is observed until the new customer is adopted.",
    PANEL_OPERATE,
)
_add(
    app,
    "set",
    ("set_organization", "set_organization"),
    "Change an organization as the API does: plan, name, status, billing email or currency. Says first what follows.",
    PANEL_OPERATE,
)
management_commands = _group(
    "management", "Observe organizations, which writes nothing at a provider, or manage them.", PANEL_OPERATE
)
_add(
    management_commands,
    "observe",
    ("management", "observe"),
    "Only observe organizations: read and compare, and write nothing at a provider.",
)
_add(
    management_commands,
    "manage",
    ("management", "manage"),
    "Manage organizations: make the providers match, also where MANAGEMENT is observe.",
)
_add(
    management_commands,
    "inherit",
    ("management", "inherit"),
    "Give organizations the mode of the installation again (MANAGEMENT).",
)
_add(
    management_commands,
    "report",
    ("management", "report"),
    "Show what would be written for each observed organization, and what it would change in what is paid.",
)

charging_commands = _group(
    "charging", "Who charges: move organizations after charged_by or CHARGED_BY changed.", PANEL_OPERATE
)
_add(
    charging_commands,
    "move",
    ("charging", "move"),
    "Move organizations to the provider that charges their plan now.",
)
_add(
    app,
    "backup",
    ("backup", "backup"),
    "Take a backup of the database while everything runs, check it, and delete older ones.",
    PANEL_OPERATE,
)
brake_commands = _group(
    "brake", "The payment brake: too many changes of what organizations pay wait for your word.", PANEL_OPERATE
)
_add(
    brake_commands, "list", ("brake", "list_on_hold"), "List what is on hold, ends first, and the places of this hour."
)
_add(brake_commands, "release", ("brake", "release"), "Let changes go that are on hold: each is sent as it is now.")
_add(
    brake_commands,
    "drop",
    ("brake", "drop"),
    "Leave changes on hold for good: nothing is sent, and the organizations stay as they are here.",
)
_add(brake_commands, "expect", ("brake", "expect"), "Expect changes that are meant, beyond those of each hour.")
_add(
    brake_commands,
    "withdraw",
    ("brake", "withdraw"),
    "End an expectation: changes take the places of the hour again.",
)

_add(
    app,
    "import",
    ("import_export", "import_command"),
    "Import the predecessor's files, damaged or not; exit code 1 if anything was lost.",
    PANEL_IMPORT_EXPORT,
)
_add(
    app,
    "export",
    ("import_export", "export_command"),
    "Export everything in the predecessor's format.",
    PANEL_IMPORT_EXPORT,
)
_add(app, "worker", ("run", "run_worker"), "Run one Celery worker process; run as many as you need.", PANEL_RUN)
_add(app, "api", ("api", "api"), "Serve the API; run as many as you need. Its documentation is at /docs.", PANEL_RUN)
_add(app, "relay", ("run", "relay"), "Publish committed events to the broker; run one or several.", PANEL_RUN)
_add(app, "beat", ("run", "beat"), "Schedule the periodic jobs; one is enough, a second does no harm.", PANEL_RUN)
_add(
    app,
    "flower",
    ("run", "flower"),
    "Run Flower on this broker, read-only and with a password; further arguments go to Flower, e.g. --port=5555.",
    PANEL_RUN,
    own_help=False,
)

inbox_commands = _group("inbox", "Incoming messages of other services and of the providers.", PANEL_OPERATE)
_add(
    inbox_commands,
    "list",
    ("inbox", "list_inbox"),
    "List incoming messages that were rejected or wait, with the reason; --status shows the others.",
)
_add(
    inbox_commands,
    "replay",
    ("inbox", "replay_message"),
    "Apply a rejected message again after its cause is gone, or process a provider webhook again. Safe to repeat.",
)

_add(
    inbox_commands,
    "sources",
    ("inbox", "list_sources"),
    "List the sources of service events with the service account that each belongs to.",
)
_add(
    inbox_commands,
    "bind",
    ("inbox", "bind_source"),
    "Give a source of service events to a service account; no other may send from it over HTTP.",
)

email_commands = _group("emails", "Emails that could not be sent; `parked` lists them.", PANEL_OPERATE)
_add(
    email_commands,
    "retry",
    ("emails", "retry_email"),
    "Send a failed email again after its cause is gone. Safe to repeat.",
)

adopt_commands = _group(
    "adopt",
    "Customers and subscriptions that are at the providers already: hand them over to billing-sync.",
    PANEL_OPERATE,
    GroupWithOrganization,
)
_add(
    adopt_commands,
    "discover",
    ("adopt_discover", "discover"),
    "Find who is who at Stripe and Lago, and write a table of what is proposed. Writes nothing to them.",
)
_add(
    adopt_commands,
    "apply",
    ("adopt_table", "apply"),
    "Adopt what a table says: the links get the identities that are there, and nothing is written at a provider.",
)
_add(
    adopt_commands,
    ORGANIZATION_COMMAND,
    ("adopt_organization", "adopt"),
    "Adopt what one organization has at the providers: `billing-sync adopt ORG`. Says what is paid, and both choices.",
)
_add(
    adopt_commands,
    "release",
    ("adopt_organization", "release"),
    "Give an adopted organization back: our metadata in Stripe is removed, and nothing else is written to it.",
)

drift_commands = _group(
    "drift", "Compare the providers with the desired state, and repair what differs.", PANEL_OPERATE
)
_add(
    drift_commands,
    "check",
    ("drift", "check"),
    "Compare both providers with the desired state; writes nothing to them.",
)
_add(
    drift_commands,
    "repair",
    ("drift", "repair"),
    "Repair what a drift report lists as repairable, with exactly the requests it lists.",
)

plan_commands = _group("plans", "The plan catalog, and the prices at both providers.", PANEL_RUN)
_add(
    plan_commands,
    "discover",
    ("plan_discovery", "discover"),
    "Propose a plans.toml from the prices and plans that are in use at Lago and Stripe.",
)
_add(
    plan_commands,
    "check",
    ("plans", "check"),
    "Compare plans.toml with the prices at Lago and Stripe; exit code 1 if a plan is missing or differs.",
)
_add(
    plan_commands,
    "push",
    ("plans", "push"),
    "Create missing plans at Lago and Stripe; exit code 1 if a plan differs or cannot be created.",
)
_add(
    plan_commands,
    "use-usage-plans",
    ("usage_plans", "use_usage_plans"),
    "Move organizations for which Stripe charges to the Lago plan of amount 0 of their tier.",
)
_add(
    plan_commands,
    "move",
    ("price_moves", "move"),
    "List who was sold a code and would pay another one, or move exactly those in the list.",
)
_add(
    plan_commands,
    "moves",
    ("price_moves", "moves"),
    "List the moves to another price that are open, and how many ended.",
)

key_commands = _group("keys", "API keys of service accounts.", PANEL_RUN)
_add(
    key_commands,
    "create",
    ("api_keys", "create_key"),
    "Create an API key and print it, this one time; only its hash is stored.",
)
_add(
    key_commands,
    "list",
    ("api_keys", "list_keys"),
    "List the API keys, including revoked ones; a key cannot be shown again.",
)
_add(key_commands, "revoke", ("api_keys", "revoke_key"), "Revoke an API key; it is rejected from now on.")

webhook_commands = _group("webhooks", "Webhook endpoints of other services.", PANEL_RUN)
_add(
    webhook_commands,
    "add",
    ("webhooks", "add_endpoint"),
    "Add a webhook endpoint and print its signing secret, this one time.",
)
_add(
    webhook_commands,
    "list",
    ("webhooks", "list_endpoints"),
    "List webhook endpoints with their pending and failed deliveries.",
)
_add(
    webhook_commands,
    "assign",
    ("webhooks", "assign_endpoint"),
    "Give a webhook endpoint to a service account, which then manages it over the API.",
)
_add(
    webhook_commands, "remove", ("webhooks", "remove_endpoint"), "Remove a webhook endpoint and its pending deliveries."
)
_add(
    webhook_commands,
    "rotate",
    ("webhooks", "rotate_secret"),
    "Create a new secret and print it, this one time; the previous one also signs for a day.",
)
_add(
    webhook_commands,
    "replay",
    ("webhooks", "replay_deliveries"),
    "Resend events under their original ids; a disabled endpoint is enabled again.",
)
_add(
    webhook_commands,
    "failed",
    ("webhooks", "failed_deliveries"),
    "List failed deliveries, latest first, with the response and the organization.",
)

database_commands = _group("db", "The database schema.", PANEL_RUN)
_add(
    database_commands,
    "upgrade",
    ("organizations", "upgrade_database"),
    "Upgrade the database schema to this version's.",
)
