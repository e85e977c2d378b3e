"""The permission table: it alone decides who may call which route. The app does not start if a documented route is not
in it; the pages of the documentation itself are public. docs/how-to/permissions.md says the same for people, and a test
compares each route with it: change the page first.

A caller without a valid credential gets 401. For an organization that a user is not a member of, every route responds
404. A member whose role is not sufficient gets 403, and so does a service whose API key lacks the scope.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from core.access.api_keys import Scope
from core.db.models.organizations import MembershipRole

PathSubject = Literal["nothing", "organization", "current", "user"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionRule:
    """Who may call one route.

    ``path_subject``: what the path names. ``organization`` is {org_id}; ``user`` is {user_id}, for a user only their
    own; ``current`` is the organization of the header, else the caller's first.

    ``roles``: the roles in that organization that may call. If the path names no organization, any signed-in user
    may, unless ``allows_users`` is False.
    ``scope``: what a service's API key must have; ``None``: no service may call.
    ``is_unlimited``: a public route whose callers are not counted by their address.
    """

    public: bool = False
    is_unlimited: bool = False
    path_subject: PathSubject = "nothing"
    allows_users: bool = True
    roles: frozenset[MembershipRole] = frozenset()
    scope: Scope | None = None


def _organization_rule(*roles: MembershipRole, scope: Scope | None = None) -> PermissionRule:
    return PermissionRule(path_subject="organization", allows_users=bool(roles), roles=frozenset(roles), scope=scope)


PUBLIC_ROUTE: Final = PermissionRule(public=True)
# Load balancers and providers send many requests from one address.
UNLIMITED_ROUTE: Final = PermissionRule(public=True, is_unlimited=True)
READ_ORGANIZATION: Final = _organization_rule("owner", "billing_admin", "member", scope="organizations:read")
READ_BILLING: Final = _organization_rule("owner", "billing_admin", scope="organizations:read")
CHANGE_ORGANIZATION: Final = _organization_rule("owner", "billing_admin", scope="organizations:write")
LEAVE_ORGANIZATION: Final = _organization_rule("owner", "billing_admin", "member")
OWNER_ONLY: Final = _organization_rule("owner", scope="organizations:write")
READ_HISTORY: Final = _organization_rule(scope="organizations:read")
SET_CUSTOMER_IDS: Final = _organization_rule(scope="billing:write")
READ_CURRENT_ORG: Final = replace(READ_ORGANIZATION, path_subject="current")
CHANGE_CURRENT_ORG: Final = replace(CHANGE_ORGANIZATION, path_subject="current")
LIST_ORGANIZATIONS: Final = PermissionRule(scope="organizations:read")
CREATE_ORGANIZATION: Final = PermissionRule(scope="organizations:write")
OWN_ACCOUNT: Final = PermissionRule(path_subject="user", scope="organizations:read")
ANY_USER: Final = PermissionRule()
READ_METRICS: Final = PermissionRule(allows_users=False, scope="metrics:read")
SEND_EVENTS: Final = PermissionRule(allows_users=False, scope="events:write")
MANAGE_WEBHOOKS: Final = PermissionRule(allows_users=False, scope="webhooks:write")

PERMISSIONS: Final[dict[tuple[str, str], PermissionRule]] = {
    ("GET", "/healthz"): UNLIMITED_ROUTE,
    ("GET", "/readyz"): UNLIMITED_ROUTE,
    ("GET", "/metrics"): READ_METRICS,
    ("GET", "/auth/login"): PUBLIC_ROUTE,
    ("GET", "/auth/callback"): PUBLIC_ROUTE,
    # Authenticated by the webhook's signature.
    ("POST", "/webhooks/stripe"): UNLIMITED_ROUTE,
    ("POST", "/webhooks/lago"): UNLIMITED_ROUTE,
    ("POST", "/api/organizations"): CREATE_ORGANIZATION,
    ("GET", "/api/organizations"): LIST_ORGANIZATIONS,
    ("GET", "/api/organizations/selector"): ANY_USER,
    ("GET", "/api/organizations/{org_id}"): READ_ORGANIZATION,
    ("PATCH", "/api/organizations/{org_id}"): CHANGE_ORGANIZATION,
    ("PATCH", "/api/organizations/{org_id}/billing"): SET_CUSTOMER_IDS,
    ("PATCH", "/api/organizations/{org_id}/plan"): CHANGE_ORGANIZATION,
    ("POST", "/api/organizations/{org_id}/plan/preview"): CHANGE_ORGANIZATION,
    ("PUT", "/api/organizations/{org_id}/status"): OWNER_ONLY,
    ("GET", "/api/organizations/{org_id}/sync"): READ_ORGANIZATION,
    ("GET", "/api/organizations/{org_id}/history"): READ_HISTORY,
    ("GET", "/api/organizations/{org_id}/users"): READ_ORGANIZATION,
    ("POST", "/api/organizations/{org_id}/users"): CHANGE_ORGANIZATION,
    ("PUT", "/api/organizations/{org_id}/users"): OWNER_ONLY,
    ("DELETE", "/api/organizations/{org_id}/users"): OWNER_ONLY,
    ("DELETE", "/api/organizations/{org_id}/users/{user_id}"): OWNER_ONLY,
    ("PUT", "/api/organizations/{org_id}/users/{user_id}/role"): OWNER_ONLY,
    ("POST", "/api/organizations/{org_id}/leave"): LEAVE_ORGANIZATION,
    ("POST", "/api/organizations/{org_id}/invitations"): CHANGE_ORGANIZATION,
    ("GET", "/api/organizations/{org_id}/invitations"): READ_BILLING,
    ("DELETE", "/api/organizations/{org_id}/invitations/{invitation_id}"): CHANGE_ORGANIZATION,
    ("GET", "/api/invitations"): ANY_USER,
    ("POST", "/api/invitations/accept"): ANY_USER,
    ("POST", "/api/invitations/{invitation_id}/accept"): ANY_USER,
    ("POST", "/api/invitations/{invitation_id}/decline"): ANY_USER,
    ("GET", "/api/users/{user_id}/organizations"): OWN_ACCOUNT,
    ("GET", "/api/dashboard"): ANY_USER,
    ("POST", "/api/events"): SEND_EVENTS,
    ("POST", "/api/webhooks"): MANAGE_WEBHOOKS,
    ("GET", "/api/webhooks"): MANAGE_WEBHOOKS,
    ("DELETE", "/api/webhooks/{endpoint_id}"): MANAGE_WEBHOOKS,
    ("POST", "/api/webhooks/{endpoint_id}/rotate"): MANAGE_WEBHOOKS,
    ("POST", "/api/webhooks/{endpoint_id}/replay"): MANAGE_WEBHOOKS,
    # The predecessor's paths: the same core, with the names that their callers know.
    ("GET", "/api/v1/org/my-orgs"): ANY_USER,
    ("GET", "/api/v1/org/roles"): LIST_ORGANIZATIONS,
    ("GET", "/api/v1/org/{org_id}/members"): READ_ORGANIZATION,
    ("POST", "/api/v1/org/{org_id}/members"): CHANGE_ORGANIZATION,
    ("PUT", "/api/v1/org/{org_id}/members/{user_id}/role"): OWNER_ONLY,
    ("DELETE", "/api/v1/org/{org_id}/members/{user_id}"): OWNER_ONLY,
    ("GET", "/api/v1/org/{org_id}/stats"): READ_ORGANIZATION,
    ("GET", "/api/v1/org/{org_id}/billing"): READ_BILLING,
    ("GET", "/api/v1/org/{org_id}/settings"): READ_ORGANIZATION,
    ("PUT", "/api/v1/org/{org_id}/settings"): CHANGE_ORGANIZATION,
    ("POST", "/api/v1/webhooks/lago"): UNLIMITED_ROUTE,
    ("POST", "/api/v1/webhooks/stripe/checkout-completed"): UNLIMITED_ROUTE,
    ("POST", "/api/v1/webhooks/stripe/subscription-updated"): UNLIMITED_ROUTE,
    ("POST", "/api/v1/billing/webhooks/stripe"): UNLIMITED_ROUTE,
    ("POST", "/api/v1/billing/webhooks/stripe/checkout"): UNLIMITED_ROUTE,
    ("GET", "/api/v1/subscriptions/plans"): LIST_ORGANIZATIONS,
    ("GET", "/api/v1/subscriptions/current"): READ_CURRENT_ORG,
    ("GET", "/api/v1/subscriptions/preview-change"): CHANGE_CURRENT_ORG,
    ("POST", "/api/v1/subscriptions/upgrade"): CHANGE_CURRENT_ORG,
    ("POST", "/api/v1/subscriptions/downgrade"): CHANGE_CURRENT_ORG,
    ("POST", "/api/v1/subscriptions/change"): CHANGE_CURRENT_ORG,
}
