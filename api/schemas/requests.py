"""Request bodies and parameters, each with its constraints. A field that is not named here is rejected."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path, Query
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from core.common import email_addresses
from core.common.clock import to_utc
from core.common.validation import InvalidChangeError
from core.db.models.organizations import MembershipRole, OrganizationStatus
from core.organizations.validation import MAX_ORGANIZATION_NAME_LENGTH, checked_name, refuse_invisible

# Any text that both databases can store; core has the further rules.
_STORABLE_PATTERN = r"^[^\x00]*$"
_EXAMPLE_TOKEN = "q5v0bq0dFf0Bq3p0o1k8zq1m2n3v4c5x6z7l8k9j0h1"  # noqa: S105 - an example

# What a pattern can say of a name in the OpenAPI document: one line that is not blank. Core has the rule.
_ONE_LINE_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"

# The OpenAPI document lists the catalog's tiers where this marker is.
TIERS_MARKER: Final = "x-tiers"


def _check_new_name(name: str) -> str:
    """By core's own rule, but with a line end after the name refused, too."""
    try:
        refuse_invisible(name)
        return checked_name(name)
    except InvalidChangeError as error:
        raise PydanticCustomError("invalid_name", "{problem}", {"problem": str(error)}) from None


OrganizationName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_ORGANIZATION_NAME_LENGTH,
        examples=["Acme"],
        json_schema_extra={"pattern": _ONE_LINE_PATTERN},
    ),
    AfterValidator(_check_new_name),
]
# Core checks it, because it may be the present name, which may be older than the rule.
ChangedOrganizationName = Annotated[
    str, Field(min_length=1, max_length=MAX_ORGANIZATION_NAME_LENGTH, pattern=_STORABLE_PATTERN, examples=["Acme"])
]
PlanTier = Annotated[
    str,
    Field(
        min_length=1,
        max_length=200,
        pattern=_STORABLE_PATTERN,
        examples=["professional"],
        json_schema_extra={TIERS_MARKER: 1},
    ),
]
UserId = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$", examples=["user_1"])]
BillingEmail = Annotated[
    str,
    Field(max_length=512, pattern=r"^[^@\s,\x00]+@[^@\s,\x00]+\.[^@\s,\x00]+$", examples=["billing@acme.example"]),
]
CurrencyCode = Annotated[str, Field(pattern=r"^[A-Z]{3}$", examples=["USD"])]
ProviderCustomerId = Annotated[
    str, Field(min_length=1, max_length=255, pattern=_STORABLE_PATTERN, examples=["cus_9s6XKzkNRiz8i3"])
]

OrgId = Annotated[str, Path(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])]
UserIdInPath = Annotated[str, Path(min_length=1, max_length=255, pattern=_STORABLE_PATTERN, examples=["user_1"])]
# An id with a slash cannot be in a path.
UserIdInQuery = Annotated[str, Query(min_length=1, max_length=255, pattern=_STORABLE_PATTERN, examples=["auth0/1"])]
UserIdFilter = Annotated[
    str | None, Query(min_length=1, max_length=255, pattern=_STORABLE_PATTERN, description="A member's id.")
]
InvitationId = Annotated[
    str, Path(max_length=64, pattern=_STORABLE_PATTERN, examples=["inv_5a0c9c62-0f3e-4f5b-8c63-3b8f1d6f5a11"])
]
NameFilter = Annotated[str | None, Query(max_length=200, pattern=_STORABLE_PATTERN, description="A part of the name.")]
PlanFilter = Annotated[
    str | None, Query(max_length=200, pattern=_STORABLE_PATTERN, description="A tier of the catalog.")
]
PageLimit = Annotated[int, Query(ge=1, le=200)]
PageOffset = Annotated[int, Query(ge=0, le=1_000_000)]


TimeInRequest = Annotated[AwareDatetime, AfterValidator(to_utc)]


class RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CreateOrganizationRequest(RequestBody):
    """``owner_user_id``: only a service may name another owner; a user who calls becomes the owner."""

    name: OrganizationName
    plan_tier: PlanTier = "founders_friend"
    billing_email: BillingEmail | None = None
    currency: CurrencyCode | None = None
    owner_user_id: UserId | None = None


class UpdateOrganizationRequest(RequestBody):
    """A field that is left out stays unchanged."""

    name: ChangedOrganizationName | None = None
    billing_email: BillingEmail | None = None
    currency: CurrencyCode | None = None


class SetCustomerIdsRequest(RequestBody):
    """Ids of existing customers. Each is read at the provider before it is used; an id left out stays unchanged."""

    lago_id: Annotated[ProviderCustomerId | None, Field(examples=["1a901a90-1a90-1a90-1a90-1a901a901a90"])] = None
    stripe_id: ProviderCustomerId | None = None


class ChangePlanRequest(RequestBody):
    plan_tier: PlanTier


class LegacyChangePlanRequest(RequestBody):
    """``target_tier`` is the predecessor's name for ``plan_tier``."""

    target_tier: PlanTier


class ChangeStatusRequest(RequestBody):
    status: OrganizationStatus


class AddMemberRequest(RequestBody):
    user_id: UserId
    role: MembershipRole = "member"


class ChangeRoleRequest(RequestBody):
    role: MembershipRole


class ChangeRoleOfRequest(RequestBody):
    """``user_id``: a member's, also one with a slash, which cannot be in a path."""

    user_id: Annotated[str, Field(min_length=1, max_length=255, pattern=_STORABLE_PATTERN, examples=["auth0/1"])]
    role: MembershipRole


class InviteRequest(RequestBody):
    email: Annotated[
        str,
        Field(
            max_length=email_addresses.MAX_EMAIL_LENGTH,
            pattern=f"^{email_addresses.EMAIL_ADDRESS_REGEX}$",
            examples=["bob@acme.example"],
        ),
    ]
    role: MembershipRole = "member"


class AcceptInvitationRequest(RequestBody):
    """``token``: from the invitation email."""

    token: Annotated[str, Field(min_length=1, max_length=200, pattern=_STORABLE_PATTERN, examples=[_EXAMPLE_TOKEN])]
