"""THE table: every stand-in for Stripe, how it is started, what it charges for, and what it cannot do.

A stand-in is never changed. What it lacks is a line here, with the reason, and the steps that need it are skipped and
say so. ``adapted`` are requests that the forwarder answers in its place, and ``left_out`` parameters that the stand-in
does not get; both are printed, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.foreign.story import Ability, ChargingSide
from tests.support.deployment import ROOT, SCRIPT

FOREIGN_FOLDER: Final = ROOT / ".venv-foreign"
_HERE: Final = Path(__file__).parent / "stand_ins"
_ACCOUNT: Final = {
    "id": "acct_standin",
    "object": "account",
    "livemode": False,
    "country": "US",
    "default_currency": "usd",
    "settings": {"dashboard": {"display_name": "stand-in"}},
}
# None of the three has this request, without which the product refuses to start.
_ANSWERED_FOR_IT: Final = {"GET /v1/account": _ACCOUNT}


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """``command``: what starts it on a port. ``path``: where its Stripe is. ``program``: exists if it is installed."""

    name: str
    origin: str
    needs: str
    program: Path
    command: Callable[[int], list[str]]
    path: str = ""
    environment: Callable[[int], dict[str, str]] = lambda _port: {}
    charges: tuple[ChargingSide, ...] = ("lago", "stripe")
    adapted: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[Ability, str] = field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        return self.program.exists()


SEAHAVEN: Final = StandIn(
    name="seahaven-stripe-world",
    origin="PyPI, seahaven-stripe-world 0.3.0, MIT",
    needs="Python 3.13 or newer beside the project's own",
    program=FOREIGN_FOLDER / "seahaven" / "bin" / "python",
    command=lambda port: [
        str(FOREIGN_FOLDER / "seahaven" / "bin" / "python"),
        str(_HERE / "serve_seahaven.py"),
        f"--port={port}",
    ],
    path="/worlds/story",
    adapted=_ANSWERED_FOR_IT,
    left_out={"billing_mode[type]": "it knows the older billing mode only, and refuses the parameter as unknown"},
    lacks={
        Ability.CHOSEN_PRODUCT: "a price for a product is refused unless its id begins with prod_; the story creates "
        "products and prices itself, and `plans push` finds them",
        Ability.FREE_PLANS: "charge_automatically asks for a payment method even where nothing is due; Stripe asks "
        "where something is (stripe.md 6)",
        Ability.ADOPTION: "it refuses a list of subscriptions that expands their coupons",
    },
)

STATEFUL_MOCK: Final = StandIn(
    name="stripe-stateful-mock",
    origin="npm, stripe-stateful-mock 0.0.16, MIT",
    needs="Node.js with npm",
    program=FOREIGN_FOLDER / "node_modules" / "stripe-stateful-mock" / "dist" / "cli.js",
    command=lambda _port: ["node", str(FOREIGN_FOLDER / "node_modules" / "stripe-stateful-mock" / "dist" / "cli.js")],
    environment=lambda port: {"PORT": str(port), "LOG_LEVEL": "warn"},
    charges=("lago",),
    adapted=_ANSWERED_FOR_IT,
    lacks={
        Ability.NEW_NAME: "`name` of a create is ignored, and null until an update names it",
        Ability.DRIFT_LISTS: "it has no GET /v1/events",
        Ability.PRICES: "`lookup_keys` of GET /v1/prices has no effect",
        Ability.CHANGED_SUBSCRIPTIONS: "it has no POST /v1/subscriptions/{id}",
        Ability.ENDED_SUBSCRIPTIONS: "it has no DELETE /v1/subscriptions/{id}",
    },
)

LOCALSTRIPE: Final = StandIn(
    name="localstripe",
    origin="PyPI, localstripe 1.15.10, GPL-3.0: a process of its own, never imported",
    needs="nothing but Python",
    program=FOREIGN_FOLDER / "localstripe" / "bin" / "localstripe",
    command=lambda port: [
        str(FOREIGN_FOLDER / "localstripe" / "bin" / "localstripe"),
        "--from-scratch",
        f"--port={port}",
    ],
    charges=("lago",),
    adapted=_ANSWERED_FOR_IT,
    lacks={
        Ability.PRICES: "it has no Prices, only the older Plans",
        Ability.REPLAY: "idempotency keys are ignored, and a repeated create makes another customer",
        Ability.DRIFT_LISTS: "GET /v1/events refuses `types`",
        Ability.ADOPTION: "it refuses a list of subscriptions that expands their coupons",
    },
)

STAND_INS: Final = (SEAHAVEN, STATEFUL_MOCK, LOCALSTRIPE)

OWN_SANDBOX: Final = StandIn(
    name="our own sandbox",
    origin="billing-sync sandbox",
    needs="nothing",
    program=SCRIPT,
    command=lambda port: [str(SCRIPT), "sandbox", f"--port={port}", "--no-limits"],
)
