"""The first lines of `status`: the version, the database, both providers with what they charge, and what runs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from rich.table import Table
from rich.text import Text

from core.catalog.plans import CatalogError
from core.db.database import Database
from core.ports.spec import PROVIDER_NAMES, PROVIDERS, Provider
from core.reporting.heartbeats import RunningProcess, count_by_kind
from core.reporting.overview import Overview
from worker.cli import output
from worker.config.settings import Settings, SettingsError
from worker.wiring import catalog as catalog_wiring


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabasePlace:
    """Which database it is. ``place`` has neither user nor password."""

    kind: str
    place: str
    is_read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUpSummary:
    """What this folder's settings name. ``charges``: plans by charging provider; ``None``: no catalog can be read."""

    version: str
    database: DatabasePlace
    addresses: dict[Provider, str]
    charges: dict[Provider, list[str]] | None
    processes: Sequence[RunningProcess]


def describe(
    settings: Settings, database: Database, processes: Sequence[RunningProcess], *, is_read_only: bool
) -> SetUpSummary:
    """Calls nothing: settings, the catalog's file and the rows that were read."""
    return SetUpSummary(
        version=installed_version(),
        database=_database_place(database, is_read_only=is_read_only),
        addresses={
            "stripe": _address(settings.stripe_api_base),
            "lago": _address(settings.lago_api_url),
        },
        charges=_charges(settings),
        processes=processes,
    )


def installed_version() -> str:
    return importlib.metadata.version("billing-sync")


def _database_place(database: Database, *, is_read_only: bool) -> DatabasePlace:
    url = database.url
    if database.is_sqlite:
        return DatabasePlace(kind="SQLite", place=str(Path(str(url.database)).resolve()), is_read_only=is_read_only)
    port = f":{url.port}" if url.port else ""
    place = f"{url.database} at {url.host or 'the local socket'}{port}"
    return DatabasePlace(kind="Postgres", place=place, is_read_only=is_read_only)


def head(deployment: SetUpSummary, overview: Overview, settings: Settings, now: datetime) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row("version", Text(deployment.version))
    grid.add_row("database", Text(_database_text(deployment.database)))
    for provider in PROVIDERS:
        grid.add_row(PROVIDER_NAMES[provider], Text(_provider_text(provider, deployment, overview)))
    grid.add_row("processes", Text(_processes_text(deployment, settings, now)))
    return grid


def _database_text(database: DatabasePlace) -> str:
    read_only = "; it is read-only: no change is stored or synced, `billing-sync doctor` says what to do"
    return f"{database.kind}, {database.place}{read_only if database.is_read_only else ''}"


def _processes_text(deployment: SetUpSummary, settings: Settings, now: datetime) -> str:
    """What was seen in the last minute, such as ``2 worker, 1 relay``, and what is missing."""
    processes = deployment.processes
    if deployment.database.is_read_only:
        return "not known: a read-only database stores no heartbeat"
    if not processes:
        start = "start `billing-sync up`" if settings.is_embedded else "start worker, relay and beat"
        return f"none seen in the last minute; {start}"
    counts = ", ".join(f"{number} {kind}" for kind, number in count_by_kind(processes).items())
    versions = sorted({process.version for process in processes})
    others = "" if versions == [installed_version()] else f"; versions {', '.join(versions)}"
    last = max(process.last_heartbeat_at for process in processes)
    return f"{counts}, seen {output.relative_time(last, now)}{others}{_missing_text(processes, settings)}"


def _missing_text(processes: Sequence[RunningProcess], settings: Settings) -> str:
    needed = ("up",) if settings.is_embedded else ("worker", "relay", "beat")
    running = {process.kind for process in processes}
    missing = [kind for kind in needed if not running & {kind, "up"}]
    if not missing:
        return ""
    return f"; no {', no '.join(missing)}: start {' and '.join(f'`billing-sync {kind}`' for kind in missing)}"


def _provider_text(provider: Provider, deployment: SetUpSummary, overview: Overview) -> str:
    summary = overview.providers[provider]
    mode = {None: "", True: ", live mode", False: ", test mode"}[summary.livemode]
    account = f", {summary.account_id}{mode}" if summary.account_id else ", not called yet"
    return f"{deployment.addresses[provider]}{account}; {_charges_text(provider, deployment)}"


def _charges_text(provider: Provider, deployment: SetUpSummary) -> str:
    if deployment.charges is None:
        return "what it charges is not known: the plan catalog cannot be read"
    tiers = deployment.charges[provider]
    return f"charges {', '.join(tiers)}" if tiers else "charges nothing"


def _charges(settings: Settings) -> dict[Provider, list[str]] | None:
    try:
        plans = catalog_wiring.load(settings)
    except (SettingsError, CatalogError):
        return None
    return {
        provider: [tier for tier in plans.tiers() if plans.plan(tier).charged_by == provider] for provider in PROVIDERS
    }


def _address(url: str | None) -> str:
    """The host without user, password and path."""
    if url is None:
        return "sandbox"
    parts = urlsplit(url)
    return f"{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}"
