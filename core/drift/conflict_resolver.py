"""Conflict resolver: carries out an operator's decision about what somebody changed at a provider.

``keep_ours`` lets the usual reconciling restore our state. ``take_theirs`` reads the provider again and changes the
organization to what it has there, as far as an organization can express it. Neither writes to a provider.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy.orm import Session

from core.common.clock import Clock
from core.common.validation import InvalidChangeError
from core.compare import local_state
from core.compare.diff import DiffRules, compare
from core.compare.findings import Finding
from core.compare.local_state import LocalState
from core.db.database import Database
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.drift.provider_reader import DriftReader
from core.events.event_types import RESOLVE_SOURCE, Cause, ChangeContext
from core.organizations import commands, plan_changes, provider_ids
from core.organizations.validation import checked_plan_currency
from core.ports.external_ids import OWN_IDS, ExternalIds
from core.ports.observed import ObservedCustomer, ObservedState
from core.ports.provider import StateReader
from core.ports.spec import OTHER_TERMS, PROVIDER_NAMES, Provider
from core.reconcile import commands as link_commands
from core.reconcile.remote_check import is_conflict

_MAX_CHANGES = 4  # the plan, the scheduled plan, the payer, and a last comparison that finds nothing


class CannotResolveError(Exception):
    """Nothing was changed. The message says why and what to do."""


def keep_ours(
    database: Database, clock: Clock, org_id: str, provider: Provider, *, actor: str = "operator"
) -> str | None:
    """End the hold; the next attempt writes our state. Returns the code of the conflict.

    What somebody sold or arranged at the provider is never overwritten: if it is still there, that attempt puts the
    link on hold again. Raises ``CannotResolveError``.
    """
    with database.write() as session:
        organization = commands.lock(session, org_id)
        if organization is None:
            raise _no_conflict(org_id, provider)
        error_code = session.get_one(BillingLink, (org_id, provider)).error_code
        change = ChangeContext(session, clock(), Cause(actor=actor, source=RESOLVE_SOURCE))
        if not link_commands.end_conflict(change, organization, provider, "ours"):
            raise _no_conflict(org_id, provider)
    return error_code


@dataclass(frozen=True, slots=True, kw_only=True)
class ConflictResolver:
    database: Database
    provider_reader: DriftReader
    rules: DiffRules
    """With ``is_remote_check``: a link on hold is compared as a remote check compares it."""
    clock: Clock
    actor: str = "operator"

    def preview_theirs(self, org_id: str, provider: Provider) -> list[str]:
        """What ``take_theirs`` would change now. It raises the same errors, and changes nothing."""
        return self._read_and_take(org_id, provider, is_preview=True)

    def take_theirs(self, org_id: str, provider: Provider) -> list[str]:
        """Returns what was changed in the organization, a sentence each; it may be nothing.

        Raises ``CannotResolveError``, and ``ProviderError`` if the provider cannot be read.
        """
        return self._read_and_take(org_id, provider, is_preview=False)

    def _read_and_take(self, org_id: str, provider: Provider, *, is_preview: bool) -> list[str]:
        before = self._load(org_id, provider)
        if provider == "stripe" and before.links[provider].error_code == OTHER_TERMS:
            raise CannotResolveError(before.links[provider].error_message or "")
        customer_id = before.links[provider].customer_id
        known_ids = [customer_id] if customer_id is not None else []
        observed = self.provider_reader(
            provider, partial(_read_state, org_id, known_ids, before.external_ids(provider))
        )
        payers = self._read_payers(before, observed) if provider == "lago" else ()
        with self.database.write() as session:
            organization = commands.lock(session, org_id)
            current = local_state.load(session, org_id)
            if organization is None or current is None or current.row_versions != before.row_versions:
                message = f"{org_id} changed meanwhile; run the command again"
                raise CannotResolveError(message)
            change = ChangeContext(session, self.clock(), Cause(actor=self.actor, source=RESOLVE_SOURCE))
            savepoint = session.begin_nested()
            taken = self._take(change, organization, observed=observed, provider=provider, payers=payers)
            if is_preview:
                savepoint.rollback()
                return taken
            if not link_commands.end_conflict(change, organization, provider, "theirs"):
                raise _no_conflict(org_id, provider)
        return taken

    def _load(self, org_id: str, provider: Provider) -> LocalState:
        with self.database.read() as session:
            if provider not in link_commands.conflicting_providers(session, org_id):
                raise _no_conflict(org_id, provider)
            found = local_state.load(session, org_id)
        if found is None:
            raise _no_conflict(org_id, provider)
        return found

    def _read_payers(self, local: LocalState, observed: ObservedState) -> Sequence[ObservedCustomer]:
        """The Stripe customers that Lago charges now, read in Stripe, if they are others than ours."""
        known = {local.links["stripe"].customer_id, None}
        payer_ids = sorted({each.payer_id for each in observed.customers if each.payer_id is not None} - known)
        if not payer_ids:
            return ()
        state = self.provider_reader("stripe", partial(_read_state, local.organization.id, payer_ids, OWN_IDS))
        return [each for each in state.customers if each.id in payer_ids]

    def _take(
        self,
        change: ChangeContext,
        organization: Organization,
        *,
        provider: Provider,
        observed: ObservedState,
        payers: Sequence[ObservedCustomer],
    ) -> list[str]:
        """Change the organization until the comparison finds no conflict. Each comparison is without a request."""
        taken: list[str] = []
        for _ in range(_MAX_CHANGES):
            finding = self._first_conflict(change.session, organization.id, provider, observed)
            if finding is None:
                return taken
            taken.append(self._take_one(change, organization, finding, payers))
        message = f"{organization.id} cannot be changed to what {PROVIDER_NAMES[provider]} has"
        raise CannotResolveError(message)

    def _first_conflict(
        self, session: Session, org_id: str, provider: Provider, observed: ObservedState
    ) -> Finding | None:
        session.flush()
        session.expire_all()  # the links are written by statements that the session does not see
        current = local_state.load(session, org_id)
        if current is None:
            raise _no_conflict(org_id, provider)
        found = compare(current, {provider: observed}, self.rules).findings
        return next((finding for finding in found if is_conflict(finding)), None)

    def _take_one(
        self,
        change: ChangeContext,
        organization: Organization,
        finding: Finding,
        payers: Sequence[ObservedCustomer],
    ) -> str:
        if finding.kind == "wrong_plan" and finding.theirs is not None and finding.field == "plan":
            tier = self._tier(organization, finding, finding.theirs)
            if tier == organization.plan_tier:
                # Sold under another code of the same plan: the code is all that changes here.
                link = change.session.get_one(BillingLink, (organization.id, finding.provider))
                link.sold_plan, link.sold_price_id = finding.theirs, None
                link.target_plan, link.target_at_period_end = None, False
                return f"plan {tier} as {finding.theirs}"
            plan_changes.adopt_plan(change, organization, tier)
            return f"plan {tier}"
        if finding.kind == "wrong_plan" and finding.field == "next_plan":
            return self._take_scheduled_plan(change, organization, finding)
        if finding.kind == "broken_link" and finding.theirs is not None:
            payer = next((each for each in payers if each.id == finding.theirs), None)
            _take_payer(change, organization, finding, payer)
            return f"Stripe customer {finding.theirs}"
        raise _cannot_take(organization, finding, finding.advice)

    def _take_scheduled_plan(self, change: ChangeContext, organization: Organization, finding: Finding) -> str:
        if finding.theirs is None:
            self._refuse_uncharged_plan(organization, finding, organization.plan_tier)
            plan_changes.change_plan(change, organization, organization.plan_tier, self.rules.catalog)
            return "no scheduled plan"
        tier = self._tier(organization, finding, finding.theirs)
        step = plan_changes.decide_plan_change(organization, tier, self.rules.catalog, is_theirs=True)
        if step.kind != "period_end":
            reason = f"it schedules the higher plan {tier}, but a higher plan applies immediately here"
            raise _cannot_take(organization, finding, reason)
        plan_changes.change_plan(change, organization, tier, self.rules.catalog, is_theirs=True)
        return f"scheduled plan {tier}"

    def _tier(self, organization: Organization, finding: Finding, plan_code: str) -> str:
        """The tier of a plan that the organization may get so: nobody else charges for it, now or then."""
        tier = self.rules.catalog.tier_of(finding.provider, plan_code)
        if tier is None:
            message = (
                f"the plan {plan_code} of {PROVIDER_NAMES[finding.provider]} is not in the catalog: add it to "
                "plans.toml, or correct the subscription there, then run the command again"
            )
            raise CannotResolveError(message)
        self._refuse_uncharged_plan(organization, finding, tier)
        if not self.rules.catalog.plan(tier).may_keep_code(finding.provider, plan_code):
            reason = f"{plan_code} is the plan of {tier} for the case that Stripe charges, and Lago charges for {tier}"
            raise _cannot_take(organization, finding, reason)
        current_plan = self.rules.catalog.plans.get(organization.plan_tier)
        currency = organization.currency or (current_plan.currency if current_plan else None)
        try:
            checked_plan_currency("plan_tier", tier, currency, self.rules.catalog)
        except InvalidChangeError as error:
            raise _cannot_take(organization, finding, str(error)) from error
        return tier

    def _refuse_uncharged_plan(self, organization: Organization, finding: Finding, tier: str) -> None:
        """What another provider charges is decided there: this one's plan must not change that price."""
        plans = [self.rules.catalog.plans.get(each) for each in (organization.plan_tier, tier)]
        if any(plan is None or plan.charged_by != finding.provider for plan in plans):
            reason = f"{PROVIDER_NAMES[finding.provider]} does not charge for {organization.plan_tier} and {tier}"
            raise _cannot_take(organization, finding, reason)


def _take_payer(
    change: ChangeContext, organization: Organization, finding: Finding, payer: ObservedCustomer | None
) -> None:
    """Lago charges this Stripe customer already; from now on it is also the organization's customer in Stripe."""
    lago_link = change.session.get_one(BillingLink, (organization.id, "lago"))
    stripe_link = change.session.get_one(BillingLink, (organization.id, "stripe"))
    if lago_link.without_payer and finding.theirs == stripe_link.customer_id:
        lago_link.payer_id, lago_link.without_payer = finding.theirs, False
        return
    if payer is None or payer.deleted or payer.org_id not in {None, organization.id}:
        reason = f"Stripe has no customer {finding.theirs} that is free for this organization"
        raise _cannot_take(organization, finding, reason)
    try:
        provider_ids.set_customer_ids(change, organization, {"stripe": payer.id})
    except InvalidChangeError as error:
        raise CannotResolveError(str(error)) from error
    lago_link.payer_id, lago_link.without_payer = payer.id, False


def _read_state(
    org_id: str, customer_ids: Collection[str], known_as: ExternalIds, reader: StateReader
) -> ObservedState:
    return reader.read(org_id, customer_ids, known_as)


def _no_conflict(org_id: str, provider: Provider) -> CannotResolveError:
    return CannotResolveError(
        f"{org_id} is not on hold for a change at {PROVIDER_NAMES[provider]}: `billing-sync status {org_id}` shows its "
        "state"
    )


def _cannot_take(organization: Organization, finding: Finding, reason: str) -> CannotResolveError:
    return CannotResolveError(
        f"what {PROVIDER_NAMES[finding.provider]} has cannot be taken over: {reason}. Its link stays on hold; "
        f"`billing-sync status {organization.id}` shows what else can be done"
    )
