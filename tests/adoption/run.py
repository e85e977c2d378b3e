"""``make adoption``: a business of 2,000 customers is discovered, adopted, managed, changed; each finding is printed.

    python -m tests.adoption.run [--seed 1] [--customers 2000]

Exit code 1 if one sentence does not hold.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from core.adoption.row import AdoptionRow
from providers.stripe.metadata import PREFIX as MARKS_PREFIX
from sandbox.business.comparison import changed_objects
from tests.adoption import judge
from tests.adoption.judge import AdoptedIdentity
from tests.adoption.managed import ManagedBusiness
from tests.adoption.site import AdoptionSite, open_site

CUSTOMERS: Final = 2_000
FINDINGS_SHOWN: Final = 5
TABLE: Final = "adoption.json"

Say = Callable[[str], None]


@dataclass(kw_only=True)
class AdoptionProof:
    """Says each finding, and counts those that do not hold."""

    site: AdoptionSite
    say: Say
    failed: int = 0
    requests: list[int] = field(default_factory=list)
    """Those that discover and apply made."""
    started: float = field(default_factory=time.monotonic)

    def check(self, sentence: str, problems: Iterable[str]) -> None:
        found = list(problems)
        self.say(f"{'ok    ' if not found else 'FAILED'}  {sentence}")
        for problem in found[:FINDINGS_SHOWN]:
            self.say(f"        {problem}")
        if len(found) > FINDINGS_SHOWN:
            self.say(f"        and {len(found) - FINDINGS_SHOWN} more")
        self.failed += bool(found)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.adoption.run", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--customers", type=int, default=CUSTOMERS)
    asked = parser.parse_args()
    # The findings say what happened; the log would hide them.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory(prefix="billing-sync-adoption-") as folder:
        return prove(Path(folder), count=asked.customers, seed=asked.seed, say=_say)


def prove(folder: Path, *, count: int, seed: int, say: Say) -> int:
    """Returns the exit code."""
    with open_site(folder) as site:
        proof = AdoptionProof(site=site, say=say)
        site.begin(count=count, seed=seed)
        business = site.business
        clear = sum(one.is_clear for one in business.customers)
        say(
            f"{count:,} customers by seed {seed}, {clear:,} of them clear; the organization manager knows "
            f"{len(business.organizations):,} organizations"
        )
        rows = discover(proof)
        identities = apply(proof)
        kill(proof, rows, identities)
        manage(proof, identities)
        say(f"{time.monotonic() - proof.started:.0f} s; {proof.failed} of the findings do not hold")
    return 1 if proof.failed else 0


def discover(proof: AdoptionProof) -> list[AdoptionRow]:
    site, business = proof.site, proof.site.business
    count = site.watch.count
    site.run("adopt", "discover", "--out", TABLE)
    requests = site.watch.count - count
    proof.requests.append(requests)
    rows = site.read_table(TABLE)
    left = sum(row.action in judge.LEFT for row in rows)
    proof.check(
        f"discover made {requests:,} requests, {requests / len(business.customers):.2f} a customer, 0 of them writes",
        site.writes_since(0),
    )
    proof.check(
        f"{len(rows):,} rows: every customer is in one, and each of the {left:,} that are left has its reason",
        judge.badly_listed(business, rows),
    )
    return rows


def apply(proof: AdoptionProof) -> list[AdoptedIdentity]:
    site, business = proof.site, proof.site.business
    before, count, writes = site.sandbox.state(), site.watch.count, len(site.watch.writes)
    site.run("adopt", "apply", TABLE, "--yes", accepted=(0, 1))
    requests = site.watch.count - count
    proof.requests.append(requests)
    identities = site.identities()
    proof.check(
        f"apply made {requests:,} requests, {requests / len(business.customers):.2f} a customer, 0 of them writes",
        site.writes_since(writes),
    )
    proof.check(
        f"all {sum(one.is_clear for one in business.customers):,} clear customers are adopted",
        judge.left_although_clear(business, identities),
    )
    proof.check(
        f"0 of the {len(identities):,} adoptions are wrong, and nothing doubtful is adopted",
        judge.wrong_adoptions(business, identities),
    )
    proof.check(
        "0 amounts, names, payers, plans and marks changed at either provider, and 0 invoices were made",
        changed_objects(before, site.sandbox.state()),
    )
    site.run("adopt", "apply", TABLE, "--yes", accepted=(0, 1))
    proof.check(
        "applying the table once more changes nothing",
        [] if site.identities() == identities else ["the links are others than before"],
    )
    return identities


def kill(proof: AdoptionProof, rows: list[AdoptionRow], identities: list[AdoptedIdentity]) -> None:
    """The same in another database, with kill -9 at requests of both commands, until each of them ends."""
    site = proof.site
    before, writes = site.sandbox.state(), len(site.watch.writes)
    with site.another_database() as again:
        again.import_files()
        kills = again.run_with_kills("adopt", "discover", "--out", TABLE, requests=proof.requests[0])
        rows_again = again.read_table(TABLE)
        kills += again.run_with_kills("adopt", "apply", TABLE, "--yes", requests=proof.requests[1])
        found = again.identities()
        proof.check(
            f"discover and apply, killed {kills} times, end with the same table and the same adoptions",
            [
                *_unlike("row", map(_decision, rows), map(_decision, rows_again)),
                *_unlike("adoption", map(_without_new, identities), map(_without_new, found)),
                *judge.wrong_adoptions(site.business, found),
            ],
        )
    proof.check("0 writes while it was killed", site.writes_since(writes))
    proof.check("both accounts are as they were", changed_objects(before, site.sandbox.state()))


def manage(proof: AdoptionProof, identities: list[AdoptedIdentity]) -> None:
    site = proof.site
    before = site.sandbox.state()
    with closing(ManagedBusiness.open(site, identities)) as managed:
        behind = list(managed.reconcile_all())
        after = site.sandbox.state()
        proof.check(f"in manage mode, all {len(identities):,} adopted organizations get in sync", behind)
        proof.check(
            "only our marks were written to what was there: 0 amounts, names, payers and invoices changed",
            changed_objects(before, after, except_metadata=MARKS_PREFIX),
        )
        proof.check("what was begun is what the table says", managed.unannounced(before, after))
        proof.check("each adopted subscription in Stripe has our marks", managed.unmarked(after))
        proof.check("a webhook about each adopted customer reaches its organization", managed.lost_webhooks())
        proof.check("a rename reaches each adopted customer, and creates none", managed.lost_renames())
        proof.check(
            "a higher plan reaches each adopted subscription, which keeps its quantity, and creates none",
            managed.lost_upgrades(),
        )


def _decision(row: AdoptionRow) -> str:
    ids = sorted(side.external_customer_id or side.customer_id for side in row.sides.values())
    return f"{row.org_id} {ids} {row.action} {row.reason}"


def _without_new(identity: AdoptedIdentity) -> str:
    """Without the organization's id, which is random where it is new."""
    return f"{sorted(identity.customers)} {identity.stripe_subscription} {identity.lago_subscription}"


def _unlike(object_type: str, first: Iterable[str], again: Iterable[str]) -> list[str]:
    difference = set(first) ^ set(again)
    return [f"{object_type}: {each}" for each in sorted(difference)]


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
