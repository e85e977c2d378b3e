"""Who is there before the first generated request: organizations, members, invitations, and a service account."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from core.access import api_keys, invitations, service_accounts
from core.access.api_keys import SCOPES
from core.access.invitations import Invitee
from core.access.limits import UserLimits
from core.catalog.plans import Catalog
from core.common.clock import utc_now
from core.db.database import Database
from core.db.models.organizations import MembershipRole
from core.events.event_types import ChangeContext
from core.organizations import commands, memberships
from core.organizations.commands import NewOrganization
from core.webhooks import endpoints
from core.webhooks.endpoints import NewEndpoint

API_ORGANIZATIONS: Final = 40
ENDPOINTS: Final = 10
MEMBERS: Final[Mapping[str, MembershipRole]] = {
    "owner": "owner",
    "auth0|second owner": "owner",
    "billing admin": "billing_admin",
    "member": "member",
    "team/ä b": "member",
}
INVITED: Final = "invited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Population:
    """``ids``: what can be named in a request, by the name of the parameter. The keys are those of one account."""

    org_ids: list[str]
    ids: Mapping[str, list[str]]
    key: str
    narrow_key: str


def address_of(user_id: str) -> str:
    return "".join(filter(str.isalnum, user_id)) + "@generated.test"


def populate(database: Database, catalog: Catalog) -> Population:
    org_ids: list[str] = []
    invitation_ids: list[str] = []
    tokens: list[str] = []
    for number in range(API_ORGANIZATIONS):
        with database.write() as session:
            change = ChangeContext(session, utc_now())
            tiers = catalog.tiers()
            new = NewOrganization(name=f"Organization {number}", plan_tier=tiers[number % len(tiers)])
            organization = commands.create(change, new, catalog)
            for user_id, role in MEMBERS.items():
                memberships.add(change, organization, user_id, role)
            invitee = Invitee(email=address_of(INVITED))
            many = UserLimits(organizations=1_000, invitations=1_000, invitations_to_recipient=1_000)
            invited = invitations.invite(change, organization, invitee, "member", None, many)
            tokens.append(invitations.new_token(session, invited.id)[1])
            org_ids.append(organization.id)
            invitation_ids.append(invited.id)
    with database.write() as session:
        account = service_accounts.create(session, "generated", utc_now()).id
        _, key = api_keys.create(session, "all", SCOPES, utc_now(), account_id=account)
        _, narrow_key = api_keys.create(session, "narrow", ("organizations:read",), utc_now(), account_id=account)
        new_endpoint = NewEndpoint(url="https://hooks.invalid/billing", account_id=account)
        added = [endpoints.add(session, new_endpoint, utc_now(), allow_private=False) for _ in range(ENDPOINTS)]
    ids = {"invitation_id": invitation_ids, "token": tokens, "endpoint_id": [endpoint.id for endpoint in added]}
    return Population(org_ids=org_ids, ids=ids, key=key, narrow_key=narrow_key)
