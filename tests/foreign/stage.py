"""What one telling of the story needs: the provider's process, the forwarders in front of both, and the product."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from tests.foreign.accounts import LagoDashboard, StripeDashboard
from tests.foreign.forwarder import ForwardedRequest, Forwarder
from tests.foreign.product import StoryFailedError, idle, running, settings_of, stop
from tests.foreign.story import TIERS, Ability, ChargingSide, ForeignStory, StepResult, tell
from tests.foreign.table import StandIn
from tests.support.deployment import free_port

START_SECONDS: Final = 60.0
PUSH: Final = "push the plans"


@dataclass(frozen=True, kw_only=True)
class Providers:
    """The addresses and keys of both providers. ``settings``: more settings of the product."""

    stripe_url: str
    stripe_key: str
    lago_url: str
    lago_key: str
    settings: Mapping[str, str]
    adapted: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[Ability, str] = field(default_factory=dict)
    created_since: int = 0


@dataclass(frozen=True, kw_only=True)
class Telling:
    """One story, as it went. ``left``: the ids of the organizations that it made."""

    steps: list[StepResult]
    stripe: list[ForwardedRequest]
    lago: list[ForwardedRequest]
    seconds: float
    left: list[str]

    @property
    def failed(self) -> StepResult | None:
        return next((each for each in self.steps if each.status == "failed"), None)


@contextmanager
def serving(stand_in: StandIn, folder: Path) -> Iterator[str]:
    """The stand-in's address, once it answers."""
    port = free_port()
    with (folder / f"{stand_in.name}.log").open("wb") as log:
        process = subprocess.Popen(
            stand_in.command(port),
            env={**os.environ, **stand_in.environment(port)},
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_it_answers(stand_in, process, port, folder)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


def _wait_until_it_answers(stand_in: StandIn, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    ends_at = time.monotonic() + START_SECONDS
    while time.monotonic() < ends_at and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/")
            return
        time.sleep(0.1)
    log = (folder / f"{stand_in.name}.log").read_text(errors="replace")
    message = f"{stand_in.name} does not run: {log[-1000:]}"
    raise StoryFailedError(message)


def show_nothing(_step: StepResult) -> None:
    return


def tell_story(
    providers: Providers,
    charged_by: ChargingSide,
    prefix: str,
    folder: Path,
    show: Callable[[StepResult], None] = show_nothing,
) -> Telling:
    """Run the whole story against these providers. Everything that it makes has ``prefix`` in its id or its name.

    ``show`` is called after each step.
    """
    started = time.monotonic()
    with ExitStack() as stack:
        to_stripe = stack.enter_context(Forwarder(providers.stripe_url, providers.adapted, providers.left_out))
        to_lago = stack.enter_context(Forwarder(providers.lago_url))
        stripe = StripeDashboard(providers.stripe_url, providers.stripe_key, providers.created_since)
        lago = LagoDashboard(providers.lago_url, providers.lago_key)
        stack.callback(stripe.close)
        stack.callback(lago.close)
        environment = settings_of(
            folder,
            {
                "PLANS_FILE": str(_write_plans(folder, prefix)),
                "CHARGED_BY": charged_by,
                "STRIPE_API_BASE": to_stripe.url,
                "STRIPE_SECRET_KEY": providers.stripe_key,
                "LAGO_API_URL": to_lago.url,
                "LAGO_API_KEY": providers.lago_key,
                **providers.settings,
            },
        )
        product = idle(environment, folder)
        story = ForeignStory(
            product=product,
            stripe=stripe,
            lago=lago,
            to_stripe=to_stripe,
            to_lago=to_lago,
            charged_by=charged_by,
            prefix=prefix,
            lacks=providers.lacks,
        )
        steps = [_push(story)]
        show(steps[0])
        product.api.close()
        if steps[0].status in {"done", "reduced"}:
            steps += _tell_with_product(story, environment, folder, show)
        return Telling(
            steps=steps,
            stripe=to_stripe.requests,
            lago=to_lago.requests,
            seconds=time.monotonic() - started,
            left=list(story.expected),
        )


def _tell_with_product(
    story: ForeignStory, environment: dict[str, str], folder: Path, show: Callable[[StepResult], None]
) -> list[StepResult]:
    steps: list[StepResult] = []
    try:
        with running(environment, folder) as product:
            story.product = product
            for step in tell(story):
                show(step)
                steps.append(step)
    except StoryFailedError as error:
        failed = StepResult(title="start the product", status="failed", problem=str(error))
        show(failed)
        steps.append(failed)
    return steps


def _push(story: ForeignStory) -> StepResult:
    """The plans, with the product's own commands; then each is read at the charging provider."""
    missing = Ability.PRICES in story.lacks and story.charged_by == "stripe"
    if missing:
        return StepResult(title=PUSH, status="cannot", reasons=(story.lacks[Ability.PRICES],))
    started = time.monotonic()
    problem = None
    try:
        if story.charged_by == "stripe" and not story.can(Ability.CHOSEN_PRODUCT):
            _create_prices(story)
        story.product.document("plans", "push")
        story.product.document("plans", "check")
        for tier, amount in TIERS.items():
            found = (
                story.stripe.price(story.code(tier))["unit_amount"]
                if story.charged_by == "stripe"
                else story.lago.plan(story.code(tier))["amount_cents"]
            )
            if found != amount:
                problem = f"plan {tier} costs {found} at the provider, expected {amount}"
    except (StoryFailedError, httpx.HTTPError) as error:
        problem = str(error)
    return StepResult(
        title=PUSH,
        status="failed" if problem else "reduced" if story.reduced else "done",
        reasons=tuple(story.reduced),
        problem=problem,
        seconds=time.monotonic() - started,
    )


def _create_prices(story: ForeignStory) -> None:
    """As a business has them that sold its plans before it knew this product."""
    for tier, amount in TIERS.items():
        product = story.stripe.post("/v1/products", name=f"{tier} {story.prefix}")
        story.stripe.post(
            "/v1/prices",
            **{
                "product": str(product["id"]),
                "currency": "usd",
                "unit_amount": str(amount),
                "lookup_key": story.code(tier),
                "recurring[interval]": "month",
            },
        )


def _write_plans(folder: Path, prefix: str) -> Path:
    """A catalog whose plans have codes of this run, so that it meets no plan of anybody else."""
    lines = [
        'charged_by = "lago"',
        "[ending]",
        'lago_invoice = "generate"',
        'lago_credit_note = "credit"',
        "stripe_invoice_now = true",
        "stripe_prorate = true",
    ]
    for rank, (tier, amount) in enumerate(TIERS.items()):
        lines += [
            f"[plans.{tier}]",
            f"rank = {rank}",
            f'name = "{tier} {prefix}"',
            f"amount = {amount}",
            'currency = "USD"',
            'interval = "monthly"',
            f'lago_plan_code = "{prefix}_{tier}"',
            f'stripe_lookup_key = "{prefix}_{tier}"',
        ]
    path = folder / "plans.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
