"""``make live``: the story against a user's own test accounts, in about ten minutes, with a report of what differed.

It refuses live keys, and a Lago organization with customers that no such run made: a key of Lago names no mode. Every
organization, plan and customer has the id of the run in its id or its name. At the end all subscriptions are ended;
customers stay, since only their owner may delete them, and what was made is listed.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx

from tests.foreign import figures
from tests.foreign.accounts import LagoDashboard, StripeDashboard
from tests.foreign.differences import AccountDifference, differences
from tests.foreign.product import StoryFailedError
from tests.foreign.run import write
from tests.foreign.stage import Providers, Telling, serving, tell_story
from tests.foreign.story import TIERS, ChargingSide
from tests.foreign.table import OWN_SANDBOX
from tests.support.deployment import ROOT

REPORT_FOLDER: Final = ROOT / "build" / "live"
STRIPE_API: Final = "https://api.stripe.com"
TEST_KEY: Final = re.compile(r"(sk|rk)_test_\w+")
RUN_PREFIX: Final = "live_"
OF_A_RUN: Final = re.compile(r"org_live_[0-9a-f]{8}_\w+")
# Stripe's clock and ours may differ by this much.
CLOCK_SKEW_SECONDS: Final = 600


class LiveRefusedError(Exception):
    """The story is not run against these accounts. The message says why, without a key."""


@dataclass(frozen=True, kw_only=True)
class LiveAccounts:
    """The accounts of the user. The keys are in no message and in no report."""

    stripe_url: str
    stripe_key: str
    lago_url: str
    lago_key: str
    lago_connection: str | None

    @property
    def settings(self) -> dict[str, str]:
        """Without a connection Lago charges nobody: its invoices stay open."""
        if self.lago_connection is None:
            return {"LAGO_MANUAL_PAYMENTS": "true"}
        return {"LAGO_STRIPE_PROVIDER_CODE": self.lago_connection}


def accounts_of(environment: Mapping[str, str]) -> LiveAccounts:
    """Raises ``LiveRefusedError`` for a missing setting, and for any Stripe key that is not one of test mode."""
    names = ("STRIPE_SECRET_KEY", "LAGO_API_URL", "LAGO_API_KEY")
    if missing := [name for name in names if not environment.get(name)]:
        message = f"not set: {', '.join(missing)}. The test accounts' keys come from the environment"
        raise LiveRefusedError(message)
    key = environment["STRIPE_SECRET_KEY"]
    if TEST_KEY.fullmatch(key) is None:
        message = "STRIPE_SECRET_KEY is no test key (sk_test_… or rk_test_…): nothing was sent"
        raise LiveRefusedError(message)
    return LiveAccounts(
        stripe_url=environment.get("STRIPE_API_BASE") or STRIPE_API,
        stripe_key=key,
        lago_url=environment["LAGO_API_URL"],
        lago_key=environment["LAGO_API_KEY"],
        lago_connection=environment.get("LAGO_STRIPE_PROVIDER_CODE") or None,
    )


def refuse_foreign_customers(external_ids: Iterable[str]) -> None:
    """A Lago organization that has anybody else's customer may be one in which somebody pays."""
    others = sum(OF_A_RUN.fullmatch(each) is None for each in external_ids)
    if others:
        message = (
            f"the Lago organization has {others} customers that no such run made, and a key of Lago names no test "
            "mode: create an empty organization for this, and give its key"
        )
        raise LiveRefusedError(message)


def refuse_live_account(accounts: LiveAccounts) -> None:
    """Both accounts are read before anything is written."""
    stripe = StripeDashboard(accounts.stripe_url, accounts.stripe_key)
    lago = LagoDashboard(accounts.lago_url, accounts.lago_key)
    try:
        # An empty page, for its refusal: whoever may not read customers cannot run the story.
        stripe.get("/v1/customers", limit="1")
        refuse_foreign_customers(lago.external_ids())
    except (StoryFailedError, httpx.HTTPError) as error:
        message = f"an account cannot be read: {error}"
        raise LiveRefusedError(message) from None
    finally:
        stripe.close()
        lago.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="make live", description=__doc__)
    parser.add_argument("--charged-by", choices=["lago", "stripe", "both"], default="both")
    options = parser.parse_args()
    try:
        accounts = accounts_of(os.environ)
        refuse_live_account(accounts)
    except LiveRefusedError as error:
        write(str(error))
        return 2
    sides: list[ChargingSide] = ["lago", "stripe"] if options.charged_by == "both" else [options.charged_by]
    reports = [_run_side(accounts, side, RUN_PREFIX + secrets.token_hex(4)) for side in sides]
    path = _write_report(reports)
    write("", f"The report: {path.relative_to(ROOT)}")
    return 1 if any(each.account.failed is not None for each in reports) else 0


@dataclass(frozen=True, kw_only=True)
class LiveReport:
    prefix: str
    charged_by: ChargingSide
    account: Telling
    stripe_differences: list[AccountDifference]
    lago_differences: list[AccountDifference]


def _run_side(accounts: LiveAccounts, side: ChargingSide, prefix: str) -> LiveReport:
    write(f"Where {side.title()} charges, as run {prefix}:")
    with tempfile.TemporaryDirectory(prefix="billing-sync-live-") as folder:
        providers = Providers(
            stripe_url=accounts.stripe_url,
            stripe_key=accounts.stripe_key,
            lago_url=accounts.lago_url,
            lago_key=accounts.lago_key,
            settings=accounts.settings,
            created_since=int(time.time()) - CLOCK_SKEW_SECONDS,
        )
        account = tell_story(providers, side, prefix, Path(folder), lambda step: write(figures.step_line(step)))
    write(*figures.reason_lines(account), "  The same in the sandbox, to compare …")
    sandbox = _in_sandbox(accounts, side, prefix)
    report = LiveReport(
        prefix=prefix,
        charged_by=side,
        account=account,
        stripe_differences=differences(sandbox.stripe, account.stripe),
        lago_differences=differences(sandbox.lago, account.lago),
    )
    write(*(f"  {line}" for line in _figures(report)), *(f"  {line}" for line in _left(report)))
    return report


def _in_sandbox(accounts: LiveAccounts, side: ChargingSide, prefix: str) -> Telling:
    connection = {} if accounts.lago_connection is None else {"LAGO_STRIPE_PROVIDER_CODE": "stripe_main"}
    with (
        tempfile.TemporaryDirectory(prefix="billing-sync-live-") as folder,
        serving(OWN_SANDBOX, Path(folder)) as url,
    ):
        providers = Providers(
            stripe_url=url,
            stripe_key="sk_test_story",
            lago_url=url,
            lago_key="story",
            settings=connection or accounts.settings,
        )
        return tell_story(providers, side, prefix, Path(folder))


def _figures(report: LiveReport) -> Iterator[str]:
    for name, sent, found in (
        ("Stripe", report.account.stripe, report.stripe_differences),
        ("Lago", report.account.lago, report.lago_differences),
    ):
        refused = sum(each.is_refused for each in sent)
        yield f"{name}: {len(sent)} requests, {refused} refused, {len(found)} differences from the sandbox"
    yield f"{report.account.seconds:.0f} seconds"


def _left(report: LiveReport) -> Iterator[str]:
    """What the run made and left. Products and prices are shared by all organizations of a run."""
    yield f"{len(report.account.left)} customers in Stripe and in Lago, each with its organization's id:"
    yield from (f"- {org_id}" for org_id in report.account.left)
    codes = ", ".join(f"{report.prefix}_{tier}" for tier in TIERS)
    yield f"{len(TIERS)} plans in Lago: {codes}"
    if report.charged_by == "stripe":
        yield f"{len(TIERS)} prices in Stripe, with these lookup keys, and a product each"


def _write_report(reports: list[LiveReport]) -> Path:
    lines = ["# billing-sync against these accounts", "", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC. It has no keys."]
    for report in reports:
        lines += ["", f"## Where {report.charged_by.title()} charges: run {report.prefix}", ""]
        lines += ["| step | result |", "| --- | --- |"]
        lines += [f"| {each.title} | {each.problem or figures.MARKS[each.status]} |" for each in report.account.steps]
        lines += ["", *_figures(report), "", "### What the run left", "", *_left(report)]
        for name, found in (("Stripe", report.stripe_differences), ("Lago", report.lago_differences)):
            lines += ["", f"### {name} and the sandbox", "", "| where | sandbox | account |", "| --- | --- | --- |"]
            lines += [f"| {each.place} | {each.sandbox} | {each.other} |" for each in found]
    REPORT_FOLDER.mkdir(parents=True, exist_ok=True)
    path = REPORT_FOLDER / f"{'-'.join(each.prefix for each in reports)}.md"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    sys.exit(main())
