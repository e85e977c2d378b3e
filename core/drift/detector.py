"""The comparison itself: list what both billers hold, hold every organization against it, look again, keep a plan.

Every step is kept before the next begins: a run that was killed goes on where it was, whoever takes it up. Nothing is
written at a biller, no transaction is open while one is asked, and memory holds one page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from core.common.clock import Clock
from core.compare import local_state as our_side
from core.compare.diff import Rules, compare, customers_of
from core.compare.findings import Drift, Finding
from core.compare.local_state import Ours
from core.db.database import Database
from core.drift import listings, report_store
from core.drift.inspector import MOVES, Looking
from core.drift.provider_reader import Asking
from core.drift.report_store import Plan, Run, Stage
from core.ports.observed import Listed, SeenCustomer, SeenSubscription, Sight, Write
from core.ports.spec import Provider
from core.reconcile.account_guard import Accounts, WrongAccountError
from core.reconcile.reconciler import Sync

COMPARED_AT_ONCE = 200
LOOKED_AT_ONCE = 20  # the closer looks after which a step is kept

OnStep = Callable[[Stage, int], None]


def _unwatched(_stage: Stage, _done: int) -> None:
    return


@dataclass(slots=True, kw_only=True)
class Planner:
    database: Database
    ask: Asking
    accounts: Accounts
    rules: Rules
    clock: Clock
    _writes: dict[str, Write] | None = field(default=None, init=False)

    @classmethod
    def beside(cls, sync: Sync) -> Planner:
        """For what the sync keeps right: its billers, its rules, its quota."""
        return cls(
            database=sync.database,
            ask=Asking.beside(sync),
            accounts=sync.accounts,
            rules=Rules(catalog=sync.catalog, policy=sync.policy),
            clock=sync.clock,
        )

    def plan(self, on_step: OnStep = _unwatched) -> Plan:
        """To the end, from where the last one was broken off. Raises ``ProviderError``, ``RunTakenOverError``."""
        run = self.take_up()
        while run.stage is not None:
            on_step(run.stage, run.done)
            self.step(run)
        return self.finish(run)

    def go_on(self, seconds: float) -> Plan | None:
        """For a schedule: as many steps as begin within so many seconds; the plan, if that was the end of it."""
        end = time.monotonic() + seconds
        run = self.take_up()
        while run.stage is not None:
            if time.monotonic() >= end:
                with self.database.write() as session:
                    report_store.let_go(session, run, self.clock())
                return None
            self.step(run)
        return self.finish(run)

    def take_up(self) -> Run:
        """Whose the keys are is asked again each time: half a listing may be from before somebody changed one."""
        with self.database.write() as session:
            run = report_store.take_up(session, self.clock())
        accounts = dict(self.rules.accounts)
        wrong: dict[Provider, WrongAccountError] = {}
        for provider in self.ask.auditors:
            try:
                accounts[provider] = self.accounts.ask(provider).id
            except WrongAccountError as error:
                wrong[provider] = error
        if not wrong.keys() >= set(run.counts.left_out):
            # The key was put right since: what the run left out, it would never look at.
            with self.database.write() as session:
                run = report_store.begin_anew(session, self.clock())
        for provider, refused in wrong.items():
            self._leave_out(run, provider, refused)
        self.rules = replace(self.rules, accounts=accounts)
        return run

    def _leave_out(self, run: Run, provider: Provider, error: WrongAccountError) -> None:
        """Nothing that a stranger's account holds or lacks has drifted."""
        if provider in run.counts.left_out:
            return
        run.counts.left_out.append(provider)
        finding = Finding(
            kind="wrong_account",
            provider=provider,
            object_id=None,
            field="account_id",
            ours=None,
            theirs=None,
            repaired=False,
            to_do=error.message,
        )
        with self.database.write() as session:
            report_store.add(session, run, [Drift(org_id=None, looked={}, findings=(finding,))])
            report_store.keep(session, run, self.clock())

    def step(self, run: Run) -> None:
        """One page, or one batch of organizations; what it made known is kept when it returns."""
        match run.stage:
            case "stripe_customers" | "lago_customers" | "stripe_subscriptions" | "lago_subscriptions":
                self._list(run, run.stage)
            case "organizations":
                self._compare(run)
            case "strangers":
                self._meet(run)
            case None:
                return

    def finish(self, run: Run) -> Plan:
        with self.database.write() as session:
            report_store.keep(session, run, self.clock())
            return report_store.finish(session, run, self.clock())

    def _list(self, run: Run, stage: Stage) -> None:
        provider: Provider = "stripe" if stage.startswith("stripe") else "lago"
        if provider in run.counts.left_out:
            self._pass_over(run)
            return
        after = run.cursor
        page: Listed[SeenCustomer] | Listed[SeenSubscription]
        if stage.endswith("customers"):
            page = self.ask(provider, lambda auditor: auditor.customers(after))
        else:
            page = self.ask(provider, lambda auditor: auditor.subscriptions(after))
        with self.database.write() as session:
            run.go_to(page.after, len(page.rows))
            report_store.keep(session, run, self.clock())
            listings.add(session, run.id, provider, page.rows)

    def _pass_over(self, run: Run) -> None:
        with self.database.write() as session:
            run.go_to(None, 0)
            report_store.keep(session, run, self.clock())

    def _compare(self, run: Run) -> None:
        with self.database.read() as session:
            batch = our_side.after(session, run.cursor or "", COMPARED_AT_ONCE)
            sights = {
                provider: listings.of(session, run.id, provider, batch) for provider in self._looking(run).ask.auditors
            }
        found: list[Drift] = []
        looks = done = 0
        last = None
        for ours in batch:
            if looks == LOOKED_AT_ONCE:
                break
            org_id = ours.organization.id
            looks += self._one(run, ours, {provider: seen[org_id] for provider, seen in sights.items()}, found)
            done, last = done + 1, org_id
        with self.database.write() as session:
            report_store.add(session, run, found)
            run.go_to(last, done)
            report_store.keep(session, run, self.clock())

    def _one(self, run: Run, ours: Ours, sights: Mapping[Provider, Sight], found: list[Drift]) -> bool:
        """Whether the organization had to be looked at more closely."""
        if ours.moves(self.clock()):
            run.counts.behind += 1
            return False
        run.counts.compared += 1
        run.counts.parked += ours.waits_for_a_person
        if not compare(ours, sights, self.rules).findings:
            return False
        customers = {provider: customers_of(ours, provider, sight) for provider, sight in sights.items()}
        looking = self._looking(run)
        drift = looking.at(ours.organization.id, customers)
        if drift == MOVES:
            run.counts.behind += 1
            run.counts.compared -= 1
        elif drift is not None:
            found.append(looking.with_writers(drift, self._written_there(looking)))
        return True

    def _meet(self, run: Run) -> None:
        """Customers that bear our mark for an organization that we do not have."""
        with self.database.read() as session:
            batch = listings.strangers(session, run.id, run.cursor, LOOKED_AT_ONCE)
        found = [drift for provider, seen in batch if (drift := self._stranger(run, provider, seen)) is not None]
        with self.database.write() as session:
            report_store.add(session, run, found)
            run.go_to(listings.place_of(*batch[-1]) if batch else None, len(batch))
            report_store.keep(session, run, self.clock())

    def _stranger(self, run: Run, provider: Provider, listed: SeenCustomer) -> Drift | None:
        org_id = listed.org_id
        if org_id is None or provider in run.counts.left_out:
            return None
        sight = self.ask(provider, lambda auditor: auditor.look(org_id, [listed.id]))
        with self.database.read() as session:
            if our_side.load(session, org_id) is not None:
                return None
        seen = next((each for each in sight.customers if each.id == listed.id and each.org_id == org_id), None)
        if seen is None or seen.deleted:
            return None
        finding = Finding(
            kind="unknown_customer",
            provider=provider,
            object_id=seen.id,
            field="org_id",
            ours=None,
            theirs=org_id,
            repaired=False,
            to_do=(
                "it names an organization that is not here: another deployment uses this account, or the database is "
                "older than the customer; restore what was lost, or clear the mark; it is never deleted by us"
            ),
        )
        drift = Drift(org_id=org_id, looked={provider: (seen.id,)}, findings=(finding,))
        looking = self._looking(run)
        return looking.with_writers(drift, self._written_there(looking))

    def _looking(self, run: Run) -> Looking:
        asked = {each: auditor for each, auditor in self.ask.auditors.items() if each not in run.counts.left_out}
        ask = replace(self.ask, auditors=asked)
        return Looking(database=self.database, ask=ask, rules=self.rules, clock=self.clock)

    def _written_there(self, looking: Looking) -> Mapping[str, Write]:
        """Who last wrote what, by the id of the object; asked once, and only when something has drifted."""
        if self._writes is None:
            newest: dict[str, Write] = {}
            for provider in looking.ask.auditors:
                for write in looking.ask(provider, lambda auditor: auditor.writes()):
                    newest.setdefault(write.object_id, write)
            self._writes = newest
        return self._writes
