"""Do what a plan says, exactly that, and only while nothing has moved since: ours by its rows, theirs by a fresh look.

What is repaired is forgotten in our rows, and the usual round of the sync makes it: a crash in between leaves links
that are behind, which the sweep brings home. Nothing else of a plan is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from core.compare import local_state as our_side
from core.compare.diff import Rules
from core.compare.findings import Drift
from core.drift import report_store
from core.drift.inspector import Looking
from core.drift.provider_reader import Asking
from core.drift.report_store import Plan
from core.events.event_types import Change
from core.organizations import commands as organization_commands
from core.ports.errors import ParkedError, RetryableError
from core.ports.spec import Provider
from core.reconcile import commands
from core.reconcile.reconciler import Sync

ROUNDS = 5  # of one link, the waits between them up to ``LONGEST_WAIT`` seconds; then the workers go on with it
LONGEST_WAIT = 10.0

OnStep = Callable[[str], None]


class MovedError(Exception):
    """Something is not as the plan says any more; nothing was done. The message names the organizations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A link that the round did not bring home. ``parked``: a person is needed; else it goes on by itself."""

    org_id: str
    provider: Provider
    parked: bool
    why: str | None


@dataclass(slots=True, kw_only=True)
class Applied:
    organizations: int = 0
    left: list[Left] = field(default_factory=list)


def _unwatched(_org_id: str) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Applier:
    looking: Looking
    sync: Sync

    @classmethod
    def beside(cls, sync: Sync) -> Applier:
        """Raises ``WrongAccountError``, and what a biller raises that is asked whose the key is."""
        accounts = {provider: sync.accounts.ask(provider).id for provider in sync.billers}
        looking = Looking(
            database=sync.database,
            ask=Asking.beside(sync),
            rules=Rules(catalog=sync.catalog, policy=sync.policy, accounts=accounts),
            clock=sync.clock,
        )
        return cls(looking=looking, sync=sync)

    def apply(self, plan: Plan, on_look: OnStep = _unwatched, on_round: OnStep = _unwatched) -> Applied:
        """Raises before anything was done: ``MovedError``, ``ProviderError`` where a biller cannot be asked."""
        database = self.looking.database
        self._refuse_moved(plan, on_look)
        with database.write() as session:
            report_store.mark_applied(session, plan, self.looking.clock())
        applied = Applied()
        silent: RetryableError | None = None
        for drift in report_store.found_by(database, plan, repairable=True):
            applied.organizations += 1
            if silent is None:
                try:
                    applied.left += self._rounds(drift)
                except RetryableError as error:
                    silent = error  # it was asked again and again; the others would only add to that
            if silent is not None:
                applied.left += _left_alone(drift, f"it could not be looked at: {silent.message}")
            on_round(str(drift.org_id))
        return applied

    def _refuse_moved(self, plan: Plan, on_look: OnStep) -> None:
        if plan.applied_at is not None:
            message = f"plan {plan.id[:12]} was applied already; make a new one"
            raise MovedError(message)
        moved = []
        for drift in report_store.found_by(self.looking.database, plan, repairable=True):
            if not self._holds(drift):
                moved.append(str(drift.org_id))
            on_look(str(drift.org_id))
        if moved:
            others = f" and {len(moved) - 5} more" if len(moved) > 5 else ""  # noqa: PLR2004 - as many as a line holds
            message = (
                f"nothing was done: {', '.join(moved[:5])}{others} changed since plan {plan.id[:12]}, here or at a "
                "biller; make a new one with `billing-sync plan`"
            )
            raise MovedError(message)

    def _holds(self, drift: Drift) -> bool:
        seen = self.looking.at(str(drift.org_id), drift.looked)
        return not isinstance(seen, str) and drift.says(seen)

    def _rounds(self, drift: Drift) -> list[Left]:
        """Raises ``RetryableError`` where a biller does not let it be looked at, before anything was done."""
        org_id = str(drift.org_id)
        try:
            # Once more: those before it took their time, and what a person did there meanwhile is not undone.
            if not (self._holds(drift) and self._forget(org_id, drift)):
                return _left_alone(drift, "it changed just now")
        except ParkedError as error:
            return _left_alone(drift, f"it could not be looked at: {error.message}")
        left = [self._round(org_id, each.provider) for each in drift.rounds]
        return [each for each in left if each is not None]

    def _forget(self, org_id: str, drift: Drift) -> bool:
        """Its row is held meanwhile, so that what is forgotten is what was looked at."""
        now = self.looking.clock()
        with self.looking.database.write() as session:
            organization_commands.lock(session, org_id)
            found = our_side.load(session, org_id)
            if found is None or found.moves(now) or found.basis != drift.basis:
                return False
            for each in drift.rounds:
                change = Change(session, now)
                commands.forget(change, org_id, each.provider, customer=each.customer, plan=each.subscription)
        return True

    def _round(self, org_id: str, provider: Provider) -> Left | None:
        for _ in range(ROUNDS):
            outcome = self.sync.run(org_id, provider)
            if outcome.kind in {"synced", "parked"} or outcome.again_in is None or outcome.again_in > LONGEST_WAIT:
                break
            self.looking.ask.sleep(outcome.again_in)
        return self._left(org_id, provider)

    def _left(self, org_id: str, provider: Provider) -> Left | None:
        with self.looking.database.read() as session:
            found = our_side.load(session, org_id)
        link = found.links[provider] if found is not None else None
        if link is None or (link.state == "open" and link.applied_version == link.wanted_version):
            return None
        return Left(org_id=org_id, provider=provider, parked=link.state != "open", why=link.error_message)


def _left_alone(drift: Drift, why: str) -> list[Left]:
    why = f"{why}; it was left alone"
    return [Left(org_id=str(drift.org_id), provider=each.provider, parked=False, why=why) for each in drift.rounds]
