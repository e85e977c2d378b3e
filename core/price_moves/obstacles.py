"""What keeps an organization from being moved to another price, by our own rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.db.models.billing_links import BillingLink
from core.db.models.organizations import Management, Organization
from core.organizations import management
from core.ports import arrangement
from core.ports.spec import PROVIDER_NAMES, Provider


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedPlan:
    provider: Provider
    tier: str
    from_code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """``is_lasting``: it does not pass by itself, or nobody is to be moved after it passed."""

    sentence: str
    is_lasting: bool = True


def find(
    organization: Organization, links: Mapping[Provider, BillingLink], moved: MovedPlan, installation: Management
) -> Obstacle | None:
    """The first one; None: it can be moved."""
    return next(_obstacles(organization, links, moved, installation), None)


def _obstacles(
    organization: Organization, links: Mapping[Provider, BillingLink], moved: MovedPlan, installation: Management
) -> Iterator[Obstacle]:
    link, name = links[moved.provider], PROVIDER_NAMES[moved.provider]
    if organization.status == "deleted":
        yield Obstacle(sentence="it is deleted")
    if organization.plan_tier != moved.tier:
        yield Obstacle(sentence=f"its plan is {organization.plan_tier}")
    if organization.pending_plan_tier is not None:
        yield Obstacle(sentence=f"its plan changes to {organization.pending_plan_tier} at the end of the period")
    yield from _other_charges(links, moved)
    if link.sold_plan != moved.from_code:
        yield Obstacle(sentence=f"it was sold {link.sold_plan or 'nothing'} at {name}")
    if management.is_observed(organization, links.values(), installation):
        yield Obstacle(sentence="it is observed, so nothing is written for it", is_lasting=False)
    if link.state != "active":
        state = "on hold" if link.state == "on_hold" else link.state
        yield Obstacle(sentence=f"its link to {name} is {state}: {link.error_message or ''}", is_lasting=False)
    arranged = arrangement.from_json(link.arrangement)
    if arranged is not None:
        yield Obstacle(sentence=f"somebody arranged {arranged.phrase} at {name}", is_lasting=False)
    is_behind = link.applied_version < organization.version or link.intent is not None
    if is_behind or link.subscription_id is None or link.plan_state != "applied":
        yield Obstacle(sentence=f"it is not in sync with {name} yet", is_lasting=False)
    if link.target_plan is not None:
        yield Obstacle(sentence=f"it is moved to {link.target_plan} already", is_lasting=False)


def _other_charges(links: Mapping[Provider, BillingLink], moved: MovedPlan) -> Iterator[Obstacle]:
    """After charged_by changed, whoever was not moved yet is charged by the other provider."""
    charge = links["stripe"].subscription_id if moved.provider == "lago" else links["lago"].payer_id
    if charge is not None:
        other = PROVIDER_NAMES["stripe" if moved.provider == "lago" else "lago"]
        yield Obstacle(
            sentence=f"{other} charges it, so nobody pays for it at {PROVIDER_NAMES[moved.provider]}: `billing-sync "
            f"charging move --to {moved.provider} --out FILE` lists it"
        )
