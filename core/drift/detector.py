"""Drift check: lists both providers, compares every organization, inspects each difference again, stores a report.

Each step is stored before the next one starts, so any process can resume a run that was killed. Nothing is written to a
provider, no transaction is open during a request to one, and memory holds one page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from core.common.clock import Clock
from core.compare import local_state
from core.compare.diff import DiffRules, compare, customers_to_inspect
from core.compare.findings import DriftItem, Finding
from core.compare.local_state import LocalState
from core.db.database import Database
from core.db.models.providers import ProviderStatus
from core.drift import listed_credit, listings, report_store
from core.drift.inspector import IN_FLUX, Inspector
from core.drift.provider_reader import DriftReader
from core.drift.report_store import DriftReport, DriftRun, DriftStage
from core.ports.observed import ObservedCustomer, ObservedPage, ObservedState, ObservedSubscription, RemoteWrite
from core.ports.spec import Provider
from core.reconcile.account_guard import AccountGuard, WrongAccountError
from core.reconcile.reconciler import Reconciler

ORGANIZATIONS_PER_COMPARE_STEP = 200
ORPHANS_PER_STEP = 200
INSPECTIONS_PER_STEP = 20  # inspections after which a step ends and is stored

OnCheckProgress = Callable[[DriftStage, int], None]


def _ignore_check_progress(_stage: DriftStage, _processed: int) -> None:
    return


@dataclass(slots=True, kw_only=True)
class DriftDetector:
    database: Database
    provider_reader: DriftReader
    account_guard: AccountGuard
    rules: DiffRules
    clock: Clock
    _remote_writes: dict[str, RemoteWrite] | None = field(default=None, init=False)

    @classmethod
    def for_reconciler(cls, reconciler: Reconciler) -> DriftDetector:
        """A detector with the providers, rules and rate limiter of the reconciler."""
        return cls(
            database=reconciler.database,
            provider_reader=DriftReader.for_reconciler(reconciler),
            account_guard=reconciler.account_guard,
            rules=DiffRules(catalog=reconciler.catalog, policy=reconciler.policy),
            clock=reconciler.clock,
        )

    def check(self, on_progress: OnCheckProgress = _ignore_check_progress) -> DriftReport:
        """Runs or resumes a check to its end. Raises ``ProviderError``, ``DriftRunTakenOverError``."""
        run = self.resume()
        while run.stage is not None:
            on_progress(run.stage, run.processed)
            self.step(run)
        return self.finish(run)

    def run_for(self, seconds: float) -> DriftReport | None:
        """For a schedule: starts no step after this many seconds. Returns the report if the run has finished."""
        deadline = time.monotonic() + seconds
        run = self.resume()
        while run.stage is not None:
            if time.monotonic() >= deadline:
                with self.database.write() as session:
                    report_store.release(session, run, self.clock())
                return None
            self.step(run)
        return self.finish(run)

    def resume(self) -> DriftRun:
        """Resumes or starts a run. The accounts of the API keys are read again, as a key may have changed since."""
        with self.database.write() as session:
            run = report_store.resume(session, self.clock())
        accounts = dict(self.rules.accounts)
        wrong_accounts: dict[Provider, WrongAccountError] = {}
        for provider in self.provider_reader.readers:
            try:
                accounts[provider] = self.account_guard.fetch(provider).id
            except WrongAccountError as error:
                wrong_accounts[provider] = error
        if not wrong_accounts.keys() >= set(run.counts.excluded_providers):
            # The key was corrected since. The run would never check what it has left out, so a new one starts.
            with self.database.write() as session:
                run = report_store.start(session, self.clock())
        for provider, wrong_account in wrong_accounts.items():
            self._exclude_provider(run, provider, wrong_account)
        self.rules = replace(self.rules, accounts=accounts)
        return run

    def _exclude_provider(self, run: DriftRun, provider: Provider, error: WrongAccountError) -> None:
        """Excludes a provider whose key belongs to another account: differences to that account are not drift."""
        if provider in run.counts.excluded_providers:
            return
        run.counts.excluded_providers.append(provider)
        finding = Finding(
            kind="wrong_account",
            provider=provider,
            object_id=None,
            field="account_id",
            ours=None,
            theirs=None,
            repairable=False,
            advice=error.message,
        )
        with self.database.write() as session:
            report_store.add_drifts(
                session, run, [DriftItem(org_id=None, inspected_customer_ids={}, findings=(finding,))]
            )
            report_store.save_progress(session, run, self.clock())

    def step(self, run: DriftRun) -> None:
        """Processes one page, or one batch of organizations. The result is stored when it returns."""
        match run.stage:
            case "stripe_customers" | "lago_customers" | "stripe_subscriptions" | "lago_subscriptions":
                self._list_page(run, run.stage)
            case "organizations":
                self._compare_step(run)
            case "orphans":
                self._orphans_step(run)
            case None:
                return

    def finish(self, run: DriftRun) -> DriftReport:
        with self.database.write() as session:
            report_store.save_progress(session, run, self.clock())
            return report_store.finish(session, run, self.clock())

    def _list_page(self, run: DriftRun, stage: DriftStage) -> None:
        provider: Provider = "stripe" if stage.startswith("stripe") else "lago"
        if provider in run.counts.excluded_providers:
            self._skip_stage(run)
            return
        cursor = run.cursor
        page: ObservedPage[ObservedCustomer] | ObservedPage[ObservedSubscription]
        if stage.endswith("customers"):
            page = self.provider_reader(provider, lambda reader: reader.customers(cursor))
        else:
            page = self.provider_reader(provider, lambda reader: reader.subscriptions(cursor))
        with self.database.write() as session:
            run.advance(page.next_cursor, len(page.rows))
            report_store.save_progress(session, run, self.clock())
            listings.add_page(session, run.id, provider, page.rows)

    def _skip_stage(self, run: DriftRun) -> None:
        with self.database.write() as session:
            run.advance(None, 0)
            report_store.save_progress(session, run, self.clock())

    def _compare_step(self, run: DriftRun) -> None:
        with self.database.read() as session:
            batch = local_state.load_after(session, run.cursor or "", ORGANIZATIONS_PER_COMPARE_STEP)
            observed_states = {
                provider: listings.load_observed(session, run.id, provider, batch)
                for provider in self._inspector(run).provider_reader.readers
            }
        for local in batch if "stripe" in observed_states else ():
            observed = observed_states["stripe"][local.organization.id]
            listed_credit.record(self.database, local, observed, run.started_at, self.clock())
        drifts: list[DriftItem] = []
        inspections = processed = 0
        last_id = None
        for local in batch:
            if inspections == INSPECTIONS_PER_STEP:
                break
            org_id = local.organization.id
            inspections += self._compare_organization(
                run, local, {provider: by_org[org_id] for provider, by_org in observed_states.items()}, drifts
            )
            processed, last_id = processed + 1, org_id
        with self.database.write() as session:
            report_store.add_drifts(session, run, drifts)
            run.advance(last_id, processed)
            report_store.save_progress(session, run, self.clock())

    def _compare_organization(
        self,
        run: DriftRun,
        local: LocalState,
        observed_states: Mapping[Provider, ObservedState],
        drifts: list[DriftItem],
    ) -> bool:
        """Whether the organization had to be inspected."""
        if local.is_in_flux(self.clock()):
            run.counts.in_flux += 1
            return False
        run.counts.compared += 1
        run.counts.parked_or_on_hold += local.needs_operator
        if not compare(local, observed_states, self.rules).findings:
            return False
        customer_ids = {
            provider: customers_to_inspect(local, provider, observed) for provider, observed in observed_states.items()
        }
        inspector = self._inspector(run)
        drift = inspector.inspect(local.organization.id, customer_ids)
        if drift == IN_FLUX:
            run.counts.in_flux += 1
            run.counts.compared -= 1
        elif drift is not None:
            drifts.append(inspector.with_writers(drift, self._last_remote_writes(inspector)))
        return True

    def _orphans_step(self, run: DriftRun) -> None:
        """Reports customers that carry the ``org_id`` of an organization that we do not have.

        The listing is enough to name them, and another deployment may have thousands in the same account.
        """
        with self.database.read() as session:
            batch = listings.orphans(session, run.id, run.cursor, ORPHANS_PER_STEP)
            database_id = session.get_one(ProviderStatus, "stripe").database_id
        inspector = self._inspector(run)
        drifts = [
            inspector.with_writers(_unknown_customer(provider, row, database_id), self._last_remote_writes(inspector))
            for provider, row in batch
            if provider not in run.counts.excluded_providers
        ]
        with self.database.write() as session:
            report_store.add_drifts(session, run, drifts)
            run.advance(listings.cursor_of(*batch[-1]) if batch else None, len(batch))
            report_store.save_progress(session, run, self.clock())

    def _inspector(self, run: DriftRun) -> Inspector:
        readers = {
            each: reader
            for each, reader in self.provider_reader.readers.items()
            if each not in run.counts.excluded_providers
        }
        provider_reader = replace(self.provider_reader, readers=readers)
        return Inspector(database=self.database, provider_reader=provider_reader, rules=self.rules, clock=self.clock)

    def _last_remote_writes(self, inspector: Inspector) -> Mapping[str, RemoteWrite]:
        """The last write to each object, by its id. Read once, and only if there is drift."""
        if self._remote_writes is None:
            newest: dict[str, RemoteWrite] = {}
            for provider in inspector.provider_reader.readers:
                for write in inspector.provider_reader(provider, lambda reader: reader.recent_writes()):
                    newest.setdefault(write.object_id, write)
            self._remote_writes = newest
        return self._remote_writes


def _unknown_customer(provider: Provider, customer: ObservedCustomer, database_id: str) -> DriftItem:
    finding = Finding(
        kind="unknown_customer",
        provider=provider,
        object_id=customer.id,
        field="org_id",
        ours=None,
        theirs=customer.org_id,
        repairable=False,
        advice=_orphan_advice(customer, database_id),
    )
    return DriftItem(org_id=customer.org_id, inspected_customer_ids={provider: (customer.id,)}, findings=(finding,))


def _orphan_advice(customer: ObservedCustomer, database_id: str) -> str:
    """Lago's customers carry no id of a database."""
    names = "the customer names an organization that does not exist"
    if customer.database_id is None:
        return (
            f"{names}: another deployment uses this account, or the database was restored to a time before the "
            "customer was created. Restore what was lost, or clear the org_id of the customer; we never delete it"
        )
    if customer.database_id == database_id:
        return (
            f"{names}, and this database wrote it: the database was restored to a time before the customer was "
            "created. Restore what was lost; we never delete the customer"
        )
    return (
        f"{names}, and another database wrote it: another deployment uses this account, or this database was filled "
        "anew. If another deployment uses the account, nothing is to be done; we never delete the customer"
    )
