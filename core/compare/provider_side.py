"""One provider's half of a comparison, and what a rule yields about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from core.catalog.plans import Catalog
from core.compare.advice import ADVICE_OF_ATTEMPTS, Advice, AdviceCode
from core.compare.desired_state import DesiredState, PayerPolicy, desired_state
from core.compare.findings import Finding, FindingKind, TheirWrite
from core.compare.local_state import LocalState
from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Organization
from core.ports.errors import RejectedError
from core.ports.observed import ObservedCustomer, ObservedState, ObservedSubscription
from core.ports.spec import PROVIDER_NAMES, Provider

REMOTE_WRITE_CLOCK_SKEW = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFinding:
    """A finding before its advice is a sentence. ``observed``: its object; ``object_id``: one that was not observed."""

    kind: FindingKind
    field: str
    ours: str | None
    theirs: str | None
    advice: Advice
    observed: ObservedCustomer | ObservedSubscription | None = None
    object_id: str | None = None
    repairable: bool = False


@dataclass(frozen=True, kw_only=True)
class ProviderSide:
    """``key_account``: the account of our API key, if it was read. ``is_remote_check``: as in ``DiffRules``."""

    local: LocalState
    provider: Provider
    observed: ObservedState
    catalog: Catalog
    policy: PayerPolicy
    key_account: str | None = None
    is_remote_check: bool = False

    @property
    def organization(self) -> Organization:
        return self.local.organization

    @property
    def link(self) -> BillingLink:
        return self.local.links[self.provider]

    @property
    def is_active(self) -> bool:
        """An observed link is compared, and one on hold for a conflict: an operator must see what was changed."""
        return self.link.state in {"active", "observed"} or self.link.is_conflict

    @cached_property
    def desired(self) -> DesiredState | RejectedError:
        try:
            return desired_state(self.provider, self.organization, self.local.links, self.catalog, self.policy)
        except RejectedError as error:
            return error

    @cached_property
    def customer(self) -> ObservedCustomer | None:
        """The linked customer, also if it was deleted."""
        return next((each for each in self.observed.customers if each.id == self.link.customer_id), None)

    @property
    def usable_customer(self) -> ObservedCustomer | None:
        return None if self.customer is None or self.customer.deleted else self.customer

    @cached_property
    def subscription(self) -> ObservedSubscription | None:
        """Ours: at Lago it has our id; at Stripe we know its id or, while we know none, it has our org_id."""
        return next((each for each in self.observed.subscriptions if self._is_ours(each)), None)

    def advice(self, code: AdviceCode, **parameters: str | None) -> Advice:
        """Every sentence may name the organization, the provider, and the command that makes the link try again."""
        decides_conflict = self.is_remote_check or self.link.is_conflict
        subject = {
            "org_id": self.organization.id,
            "retry_command": f"billing-sync resolve {self.organization.id} --ours"
            if decides_conflict
            else f"billing-sync retry {self.organization.id}",
            "provider": self.provider,
            "provider_name": PROVIDER_NAMES[self.provider],
        }
        return Advice(code, subject | parameters)

    def finding(self, found: RuleFinding) -> Finding:
        observed = found.observed
        is_on_hold = self.link.is_conflict and not self.is_remote_check
        # The error of a conflict names the decision; what the rule advises does not apply before it.
        advice = (self.link.error_message if is_on_hold else None) or found.advice.sentence
        is_observed = self._is_observed and not self.is_remote_check
        if is_observed and found.advice.code in ADVICE_OF_ATTEMPTS:
            advice = self.advice("observed_theirs" if self._has_theirs else "observed").sentence
        return Finding(
            kind=found.kind,
            provider=self.provider,
            object_id=found.object_id if observed is None else observed.id,
            field=found.field,
            ours=found.ours,
            theirs=found.theirs,
            repairable=found.repairable and not is_on_hold and not is_observed,
            is_on_hold=is_on_hold,
            advice=advice,
            their_write=None if observed is None else self._last_write(observed),
        )

    @property
    def _has_theirs(self) -> bool:
        """The organization is observed as a whole, so the customer of the other link may be the one to adopt."""
        return any(link.ownership == "theirs" for link in self.local.links.values())

    @property
    def _is_observed(self) -> bool:
        """Also a link that nothing has read since the organization became observed."""
        return self.link.state == "observed" or (self.link.state == "active" and self._has_theirs)

    def _is_ours(self, subscription: ObservedSubscription) -> bool:
        is_named = self.organization.id in {subscription.org_id, subscription.former_org_id}
        has_org_id = is_named and subscription.customer_id == self.link.customer_id
        if self.provider == "lago":
            return has_org_id and (subscription.started or subscription.waits_for_payment)
        return subscription.id == self.link.subscription_id or (has_org_id and self.link.subscription_id is None)

    def _last_write(self, observed: ObservedCustomer | ObservedSubscription) -> TheirWrite | None:
        """Judged by the object's own time: a write after our last sync was not ours."""
        synced_at, changed_at = self.link.synced_at, observed.changed_at
        if changed_at is None:
            return None
        after_our_write = synced_at is not None and changed_at > synced_at + REMOTE_WRITE_CLOCK_SKEW
        return TheirWrite(by="not us" if after_our_write else "unknown", at=changed_at)
