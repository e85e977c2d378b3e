"""A look at one biller after a hint: read how things are there, under the link's own turn, and write nothing there.

So no webhook, true, late, doubled or forged, makes us charge, end or change anything, and a look makes no new event.
What somebody changed about money is parked with a sentence; names and addresses are left for `billing-sync plan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.catalog.plans import Catalog
from core.compare import diff
from core.compare.desired_state import Policy, Wish
from core.compare.diff import NAMES, Rules
from core.compare.findings import Finding, Kind
from core.compare.local_state import Ours
from core.ports.errors import RejectedError
from core.ports.observed import Sight
from core.ports.provider import Auditor
from core.reconcile.attempt import Turn

# Whose customer it is, what is charged, and by whom. The rest is no reason to stop an organization.
_STOPS: Final[frozenset[Kind]] = frozenset(
    {"missing", "deleted", "wrong_plan", "second_payer", "foreign_subscription", "broken_link"}
)
CHANGED_THERE: Final = "changed_there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """``came``: the plan that waits has taken effect there. ``owes``: a payment failed and is still open."""

    came: bool
    owes: bool


def look(auditor: Auditor, turn: Turn, wanted: Wish, catalog: Catalog, policy: Policy) -> Seen | None:
    """``None``: nothing of ours can be there. Raises what a biller raises, and ``RejectedError`` for a person."""
    org_id, customer_id = turn.organization.id, turn.link.customer_id
    if customer_id is None:
        return None
    auditor = auditor.paced(turn)
    sight = auditor.look(org_id, [customer_id])
    ours = Ours(organization=turn.organization, links=turn.links)
    for finding in diff.compare(ours, {turn.provider: sight}, Rules(catalog=catalog, policy=policy)).findings:
        if finding.kind in _STOPS and not (finding.kind == "broken_link" and finding.repaired):
            raise RejectedError(turn.provider, _sentence(finding, org_id), CHANGED_THERE)
    return Seen(came=_came(sight, wanted), owes=auditor.owes(org_id, sight))


def _came(sight: Sight, wanted: Wish) -> bool:
    """Nothing differs, so what is there is ours."""
    if not wanted.settles or wanted.next_plan_code in {None, wanted.plan_code}:
        return False
    return any(each.begun and each.plan_code == wanted.next_plan_code for each in sight.subscriptions)


def _sentence(finding: Finding, org_id: str) -> str:
    """What was found, and the way on where a usual round is one; whoever retries decides for it."""
    there = NAMES[finding.provider]
    again = f"`billing-sync retry {org_id}`"
    if not finding.about_subscription or finding.kind not in {"missing", "wrong_plan"}:
        return f"{finding.object_id} in {there}: {finding.to_do}"
    if finding.kind == "missing" and finding.repaired:
        return (
            f"its subscription ended in {there}, and not by us, so nothing is charged again by itself: {again} makes "
            "it again; if it is to end, give the organization the status deleted"
        )
    if finding.kind == "missing":
        return f"subscription {finding.object_id}: {finding.to_do}"
    what = "is on" if finding.field == "plan" else "goes on to"
    return (
        f"subscription {finding.object_id} {what} {finding.theirs or 'no other plan'} in {there}, here it is "
        f"{finding.ours or 'none'}, and that was not by us: change the plan here to what was meant, or {again} has "
        "it made ours there"
    )
