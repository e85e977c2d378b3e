"""Who may call which route: this table and nothing else decides it. A route that is not in it does not start.

Nobody signed in gets 401. An organization that a person is not in answers 404, whatever the person asks of it; a
member whose role does not suffice gets 403, and so does a service whose key lacks the scope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from core.access.api_keys import Scope
from core.db.models.organizations import Role

About = Literal["nothing", "organization", "current", "user"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``about``: whose business the path names; ``organization`` is {org_id}, ``user`` is {user_id}, only oneself;
    ``current`` is the organization of the header, else the caller's first.

    ``roles``: members of the organization who may; where the path names none, whoever may is any person signed in.
    ``scope``: what a service's key must hold; ``None``: no service may.
    """

    public: bool = False
    about: About = "nothing"
    people: bool = True
    roles: frozenset[Role] = frozenset()
    scope: Scope | None = None


def _members(*roles: Role, scope: Scope | None = None) -> Rule:
    return Rule(about="organization", people=bool(roles), roles=frozenset(roles), scope=scope)


PUBLIC: Final = Rule(public=True)
READ: Final = _members("owner", "billing_admin", "member", scope="organizations:read")
READ_MONEY: Final = _members("owner", "billing_admin", scope="organizations:read")
CHANGE: Final = _members("owner", "billing_admin", scope="organizations:write")
GOVERN: Final = _members("owner", scope="organizations:write")
BILLING: Final = _members(scope="billing:write")
READ_CURRENT: Final = replace(READ, about="current")
CHANGE_CURRENT: Final = replace(CHANGE, about="current")
LOOK: Final = Rule(scope="organizations:read")
BEGIN: Final = Rule(scope="organizations:write")
ONESELF: Final = Rule(about="user", scope="organizations:read")
PERSON: Final = Rule()
MEASURE: Final = Rule(people=False, scope="metrics:read")
SAY: Final = Rule(people=False, scope="events:write")
SUBSCRIBE: Final = Rule(people=False, scope="webhooks:write")

TABLE: Final[dict[tuple[str, str], Rule]] = {
    ("GET", "/healthz"): PUBLIC,
    ("GET", "/readyz"): PUBLIC,
    ("GET", "/metrics"): MEASURE,
    ("GET", "/auth/login"): PUBLIC,
    ("GET", "/auth/callback"): PUBLIC,
    # The signature is the sign-in.
    ("POST", "/webhooks/stripe"): PUBLIC,
    ("POST", "/webhooks/lago"): PUBLIC,
    ("POST", "/api/organizations"): BEGIN,
    ("GET", "/api/organizations"): LOOK,
    ("GET", "/api/organizations/selector"): PERSON,
    ("GET", "/api/organizations/{org_id}"): READ,
    ("PATCH", "/api/organizations/{org_id}"): CHANGE,
    ("PATCH", "/api/organizations/{org_id}/billing"): BILLING,
    ("PATCH", "/api/organizations/{org_id}/plan"): CHANGE,
    ("POST", "/api/organizations/{org_id}/plan/preview"): CHANGE,
    ("PUT", "/api/organizations/{org_id}/status"): GOVERN,
    ("GET", "/api/organizations/{org_id}/sync"): READ,
    ("GET", "/api/organizations/{org_id}/users"): READ,
    ("POST", "/api/organizations/{org_id}/users"): CHANGE,
    ("DELETE", "/api/organizations/{org_id}/users/{user_id}"): GOVERN,
    ("PUT", "/api/organizations/{org_id}/users/{user_id}/role"): GOVERN,
    ("POST", "/api/organizations/{org_id}/invitations"): CHANGE,
    ("GET", "/api/organizations/{org_id}/invitations"): READ_MONEY,
    ("DELETE", "/api/organizations/{org_id}/invitations/{invitation_id}"): CHANGE,
    ("POST", "/api/invitations/accept"): PERSON,
    ("GET", "/api/users/{user_id}/organizations"): ONESELF,
    ("GET", "/api/dashboard"): PERSON,
    ("POST", "/api/events"): SAY,
    ("POST", "/api/webhooks"): SUBSCRIBE,
    ("GET", "/api/webhooks"): SUBSCRIBE,
    ("DELETE", "/api/webhooks/{endpoint_id}"): SUBSCRIBE,
    ("POST", "/api/webhooks/{endpoint_id}/rotate"): SUBSCRIBE,
    ("POST", "/api/webhooks/{endpoint_id}/replay"): SUBSCRIBE,
    # The older paths: the same core, the words that their callers know.
    ("GET", "/api/v1/org/my-orgs"): PERSON,
    ("GET", "/api/v1/org/roles"): LOOK,
    ("GET", "/api/v1/org/{org_id}/members"): READ,
    ("POST", "/api/v1/org/{org_id}/members"): CHANGE,
    ("PUT", "/api/v1/org/{org_id}/members/{user_id}/role"): GOVERN,
    ("DELETE", "/api/v1/org/{org_id}/members/{user_id}"): GOVERN,
    ("GET", "/api/v1/org/{org_id}/stats"): READ,
    ("GET", "/api/v1/org/{org_id}/billing"): READ_MONEY,
    ("GET", "/api/v1/org/{org_id}/settings"): READ,
    ("PUT", "/api/v1/org/{org_id}/settings"): CHANGE,
    ("POST", "/api/v1/webhooks/lago"): PUBLIC,
    ("POST", "/api/v1/webhooks/stripe/checkout-completed"): PUBLIC,
    ("POST", "/api/v1/webhooks/stripe/subscription-updated"): PUBLIC,
    ("POST", "/api/v1/billing/webhooks/stripe"): PUBLIC,
    ("POST", "/api/v1/billing/webhooks/stripe/checkout"): PUBLIC,
    ("GET", "/api/v1/subscriptions/plans"): LOOK,
    ("GET", "/api/v1/subscriptions/current"): READ_CURRENT,
    ("GET", "/api/v1/subscriptions/preview-change"): CHANGE_CURRENT,
    ("POST", "/api/v1/subscriptions/upgrade"): CHANGE_CURRENT,
    ("POST", "/api/v1/subscriptions/downgrade"): CHANGE_CURRENT,
    ("POST", "/api/v1/subscriptions/change"): CHANGE_CURRENT,
}
