"""``make chaos SEED=1``: send changes while servers and processes stop and start; all must be in sync soon after.

    python -m tests.chaos.run [--seed 1] [--scenario postgres-redis|sqlite|postgres-rabbitmq] [--changes 500]
        [--observe]

The seed decides the changes, the faults, their order and their pauses. Each scenario prints its steps and figures.
Exit code 1 if something was lost, created or charged twice, or late. With ``--observe`` the installation is observed:
then every link must be observed soon after, and nothing may have been written at a provider.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import SecretStr
from sqlalchemy import func, select

from core.catalog import plans as plan_catalog
from core.catalog import publishing
from core.catalog.plans import Catalog, ChargingProvider
from core.db.database import DATABASE_UNAVAILABLE_ERRORS, Database
from core.db.models.billing_links import BillingLink
from core.db.models.inbox import ServiceEvent
from core.db.models.organizations import Management
from core.reconcile import due_links
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.chaos import judge, servers
from tests.chaos.changes import ChaosChanges, Sender, generate_changes
from tests.chaos.supervisor import Supervisor
from tests.crash.matrix import leave_nothing_behind
from tests.support import leaks
from worker.config.settings import Settings
from worker.wiring import runtime

Name = Literal["postgres-redis", "sqlite", "postgres-rabbitmq"]
CHARGED_BY: dict[Name, ChargingProvider] = {"postgres-redis": "lago", "sqlite": "stripe", "postgres-rabbitmq": "stripe"}
SCENARIOS: tuple[Name, ...] = tuple(CHARGED_BY)

ORGANIZATIONS = 60
CHANGES = 500
SYNC_SECONDS = 60.0
# Longer than the target, so that a late sync is reported with its time.
MAX_WAIT_SECONDS = 180.0
LATENCY_MS = 40
DISK_MEGABYTES = 12
STRIPE_KEY, LAGO_KEY = "sk_test_nobody_may_read_this", "a_lago_key_nobody_may_read"
POLL_SECONDS = 0.1
PROVIDER_FAULTS = ("lost_answer", "500_after", "500_before", "reset", "html_502", "500_stored")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ChaosFault:
    """``inject`` returns when the fault is over; ``words`` describe it."""

    words: str
    inject: Callable[[], None]


# Creates a fault from the seed's random numbers.
Maker = Callable[[], ChaosFault]


@dataclass(kw_only=True)
class Report:
    """``problems`` is empty if nothing was lost, duplicate or late. ``seconds``: from the last fault to all in sync."""

    name: str
    seed: int
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class Scene:
    """The parts of a running scenario."""

    supervisor: Supervisor
    database: Database
    sandbox: SandboxClient
    sender: Sender
    plans: Catalog
    faults: list[ChaosFault]
    left_out: str | None
    management: Management


def play(  # noqa: PLR0913 - a scenario has these
    name: Name,
    seed: int,
    say: Say,
    *,
    changes: int = CHANGES,
    repeats: int = 1,
    management: Management = "manage",
) -> Report:
    """Run a scenario; each fault is injected ``repeats`` times."""
    chance = random.Random(f"{name} {seed}")  # noqa: S311 - a seeded scenario, no secret
    report = Report(name=name, seed=seed)
    plans = plan_catalog.load(charged_by=CHARGED_BY[name])
    generated = generate_changes(chance, min(ORGANIZATIONS, max(1, changes // 8)), changes, plans.tiers())
    with _scene(name, chance, generated, plans, repeats, management) as scene:
        started = time.monotonic()
        say(
            f"{name}, seed {seed}: {len(generated.desired)} organizations charged by {CHARGED_BY[name].title()}, "
            f"{changes} changes, {len(scene.faults)} faults"
        )
        if scene.left_out is not None:
            say(f"  left out: {scene.left_out}")
        scene.sender.start()
        for fault, number in zip(scene.faults, _moments(chance, changes, len(scene.faults)), strict=True):
            while scene.sender.sent < number and scene.sender.ended_at is None:
                time.sleep(POLL_SECONDS / 5)
            say(f"  {time.monotonic() - started:5.1f} s, {scene.sender.sent:4} sent  {fault.words}")
            fault.inject()
        last_fault = time.monotonic()
        say(f"  {last_fault - started:5.1f} s, {scene.sender.sent:4} sent  the last fault is over")
        _wait_until_in_sync(scene, report, last_fault)
        say(f"  {time.monotonic() - started:5.1f} s, {scene.sender.sent:4} sent  all in sync")
        scene.sender.stop()
        report.problems += _judge(scene, generated, report)
    for problem in report.problems:
        say(f"  ✗ {problem}")
    figures = ", ".join(f"{value} {key}" for key, value in report.figures.items())
    say(f"  in sync {report.seconds:.1f} s after the last fault or change; {figures}")
    return report


def _moments(chance: random.Random, changes: int, faults: int) -> list[int]:
    """After how many changes each fault is injected: spread over all of them, so that changes are always being sent."""
    return sorted(chance.randint(1, max(1, changes * 19 // 20)) for _ in range(faults))


@contextmanager
def _scene(  # noqa: PLR0913, PLR0917 - what a scene is made of
    name: Name, chance: random.Random, generated: ChaosChanges, plans: Catalog, repeats: int, management: Management
) -> Iterator[Scene]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        served = stack.enter_context(Sandbox(limits=True))
        sandbox = stack.enter_context(SandboxClient(served.url))
        _publish_plans(plans, served.url)
        sandbox.settings(latency_ms=LATENCY_MS)
        sandbox.reset_calls()
        deployment = _on_sqlite(stack, folder, chance) if name == "sqlite" else _on_servers(stack, name, chance)
        database = Database(deployment.database_url)
        stack.callback(database.close)
        database.upgrade()
        environment = _environment(served.url, folder) | {
            "DATABASE_URL": deployment.database_url,
            "CHARGED_BY": CHARGED_BY[name],
            "MANAGEMENT": management,
        }
        if deployment.broker is not None:
            environment["CELERY_BROKER_URL"] = deployment.broker
        supervisor = stack.enter_context(Supervisor.of(deployment.processes, environment, folder))
        makers: list[Maker] = [
            *deployment.faults,
            *(partial(_signal, supervisor, words[0], chance) for words in deployment.processes),
        ]
        makers += [
            partial(_provider_failure, sandbox, chance, kinds) for kinds in (PROVIDER_FAULTS[:1], PROVIDER_FAULTS)
        ]
        faults = [maker() for _ in range(repeats) for maker in makers]
        chance.shuffle(faults)
        sender = Sender(generated, database, plans, deployment.broker)
        stack.callback(sender.stop)
        yield Scene(
            supervisor=supervisor,
            database=database,
            sandbox=sandbox,
            sender=sender,
            plans=plans,
            faults=faults,
            left_out=deployment.left_out,
            management=management,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosDeployment:
    """The servers of a scenario and their faults. ``left_out`` names the faults that this machine does not allow."""

    database_url: str
    processes: Sequence[tuple[str, ...]]
    faults: Sequence[Maker]
    broker: str | None = None
    left_out: str | None = None


def _on_sqlite(stack: ExitStack, folder: Path, chance: random.Random) -> ChaosDeployment:
    disk = stack.enter_context(servers.disk(DISK_MEGABYTES))
    file = (disk.folder if disk else folder) / "billing-sync.db"
    faults = [partial(_full_disk, disk, chance)] * 2 if disk else []
    left_out = None if disk else "the full disk, since mounting is not allowed here"
    return ChaosDeployment(database_url=f"sqlite:///{file}", processes=[("up",)], faults=faults, left_out=left_out)


def _on_servers(stack: ExitStack, name: Name, chance: random.Random) -> ChaosDeployment:
    postgres = stack.enter_context(servers.postgres())
    processes = [("worker",), ("worker",), ("relay",), ("beat",)]
    faults: list[Maker] = [partial(_outage, postgres, chance)]
    broker: servers.RestartableServer
    if name == "postgres-redis":
        broker = valkey = stack.enter_context(servers.valkey())
        faults.append(lambda: ChaosFault("Redis FLUSHALL", valkey.flush))
    else:
        broker = stack.enter_context(servers.rabbit())
    faults.append(partial(_outage, broker, chance))
    return ChaosDeployment(database_url=postgres.url, processes=processes, faults=faults, broker=broker.url)


def _outage(server: servers.RestartableServer, chance: random.Random) -> ChaosFault:
    seconds = chance.uniform(0.0, 4.0)

    def inject() -> None:
        server.stop()
        time.sleep(seconds)
        server.start()

    return ChaosFault(f"{server.name} stopped, started {seconds:.1f} s later", inject)


def _signal(supervisor: Supervisor, words: str, chance: random.Random) -> ChaosFault:
    number, signalled = chance.randrange(2), chance.choice((signal.SIGTERM, signal.SIGKILL))
    return ChaosFault(f"{signalled.name} to {words}", partial(supervisor.send_signal, words, number, signalled))


def _provider_failure(sandbox: SandboxClient, chance: random.Random, kinds: Sequence[str]) -> ChaosFault:
    kind, times = chance.choice(kinds), chance.randint(2, 5)
    # Only Stripe stores a response under the idempotency key of a create, even a failed one.
    provider, operation = ("stripe", "POST /v1/customers") if kind == "500_stored" else ("*", "*")

    def inject() -> None:
        sandbox.add_fault(provider, operation, kind, times=times)

    return ChaosFault(f"{times} requests end with {kind} ({provider} {operation})", inject)


def _full_disk(disk: servers.Disk, chance: random.Random) -> ChaosFault:
    seconds = chance.uniform(1.0, 4.0)

    def inject() -> None:
        disk.fill()
        time.sleep(seconds)
        disk.free()

    return ChaosFault(f"disk full for {seconds:.1f} s", inject)


def _wait_until_in_sync(scene: Scene, report: Report, last_fault: float) -> None:
    until = time.monotonic() + MAX_WAIT_SECONDS
    while not (scene.sender.ended_at is not None and _in_sync(scene.database)):
        if time.monotonic() > until:
            report.problems.append(f"not in sync within {MAX_WAIT_SECONDS:.0f} s of the last fault: {_behind(scene)}")
            break
        time.sleep(POLL_SECONDS)
    report.seconds = time.monotonic() - max(last_fault, scene.sender.ended_at or last_fault)
    if report.seconds > SYNC_SECONDS:
        report.problems.append(f"in sync {report.seconds:.1f} s after the last fault, more than {SYNC_SECONDS:.0f} s")


def _in_sync(database: Database) -> bool:
    try:
        with database.read() as session:
            waiting = select(func.count()).select_from(ServiceEvent).where(ServiceEvent.status == "waiting")
            return not due_links.count_behind(session) and not session.scalar(waiting)
    except DATABASE_UNAVAILABLE_ERRORS:
        return False


def _behind(scene: Scene) -> str:
    with scene.database.read() as session:
        rows = session.execute(
            select(BillingLink.provider, BillingLink.error_kind, func.count())
            .where(BillingLink.applied_version < BillingLink.desired_version)
            .group_by(BillingLink.provider, BillingLink.error_kind)
        ).all()
    return f"{[tuple(row) for row in rows]}; sender {'has ended' if scene.sender.ended_at else 'is still sending'}"


def _judge(scene: Scene, generated: ChaosChanges, report: Report) -> list[str]:
    state = scene.sandbox.state()
    if scene.management == "observe":
        problems = [*judge.observed_problems(scene.database, generated, state)]
    else:
        problems = [*judge.problems(scene.database, scene.plans, generated, state)]
    url = scene.database.url.set(drivername=scene.database.url.get_backend_name())
    written = [("logs", scene.supervisor.logs), *leaks.rows(url.render_as_string(hide_password=False), with_names=True)]
    problems += [f"an API key was written to {place}" for place in leaks.found(written, {STRIPE_KEY, LAGO_KEY})]
    counters = scene.sandbox.counters()
    received, stored = judge.received_writes(counters), judge.writes_in_history(scene.database)
    missing = received - stored
    problems += [
        f"{name} reached a provider {count} times more than the history has" for name, count in missing.items()
    ]
    if scene.management == "observe":
        problems += [f"{name} was written {count} times while observed" for name, count in received.items()]
    report.figures = {
        "customers at each provider": len(state["stripe"]["customers"]),
        "charges": len(state["charges"]),
        "calls to Stripe": counters.stripe.total,
        "calls to Lago": counters.lago.total,
        "writes received": received.total(),
        "writes in the history": stored.total(),
        "responses lost": counters.stripe.statuses.get("dropped", 0) + counters.lago.statuses.get("dropped", 0),
        "429s": counters.stripe.statuses.get("429", 0) + counters.lago.statuses.get("429", 0),
        "process starts": scene.supervisor.starts,
        "changes that failed at first": scene.sender.refused,
        "messages sent again": scene.sender.sent_again,
    }
    return problems


def _publish_plans(plans: Catalog, url: str) -> None:
    providers = runtime.open_providers(Settings.model_construct(**_keys(url, SecretStr)), plans)
    publishing.publish(plans, providers.values())
    for provider in providers.values():
        provider.close()


def _keys(url: str, secret: Callable[[str], Any]) -> dict[str, Any]:
    return {
        "stripe_secret_key": secret(STRIPE_KEY),
        "stripe_api_base": url,
        "lago_api_key": secret(LAGO_KEY),
        "lago_api_url": url,
        "lago_stripe_provider_code": "stripe_main",
    }


def _environment(url: str, folder: Path) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ},
        **{name.upper(): value for name, value in _keys(url, str).items()},
        "DATA_DIR": str(folder),
        "PLANS_FILE": str(plan_catalog.DEFAULT_PLANS_FILE),
        "WORKER_CONCURRENCY": "4",
    }


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="chaos", description="Sends changes while servers and processes stop and start."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scenario", choices=SCENARIOS, action="append", help="What to run; all possible if omitted.")
    parser.add_argument("--changes", type=int, default=CHANGES)
    parser.add_argument("--observe", action="store_true", help="The installation is observed.")
    parser.add_argument("--repeats", type=int, default=2, help="How often each fault is injected.")
    options = parser.parse_args(arguments)
    leave_nothing_behind()
    failed = False
    for name in options.scenario or SCENARIOS:
        if name == "postgres-rabbitmq" and not servers.rabbit_is_installed():
            _print(f"{name}: skipped, because RabbitMQ is not installed")
            continue
        report = play(
            cast("Name", name),
            options.seed,
            _print,
            changes=options.changes,
            repeats=options.repeats,
            management="observe" if options.observe else "manage",
        )
        failed = failed or bool(report.problems)
    return int(failed)


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
