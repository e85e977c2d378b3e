"""The words of requests: bodies and parameters, each with what it may be. What is not named here is refused."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from core.common import email_addresses
from core.db.models.organizations import Role, Status
from core.organizations.validation import NAME_LIMIT

# A text that both databases can hold; what it may be beyond that, core says.
_STORABLE = r"^[^\x00]*$"
_TOKEN = "q5v0bq0dFf0Bq3p0o1k8zq1m2n3v4c5x6z7l8k9j0h1"  # noqa: S105 - an example

# One line of plain text that is not blank.
_LINE = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"

# The document lists the catalog's tiers in place of this word.
TIERS: Final = "x-tiers"

Name = Annotated[str, Field(min_length=1, max_length=NAME_LIMIT, pattern=_LINE, examples=["Acme"])]
Tier = Annotated[
    str, Field(min_length=1, max_length=200, pattern=_STORABLE, examples=["professional"], json_schema_extra={TIERS: 1})
]
# Without a slash: it stands in paths, too.
UserId = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f/]*$", examples=["user_1"])]
Email = Annotated[
    str,
    Field(max_length=512, pattern=r"^[^@\s,\x00]+@[^@\s,\x00]+\.[^@\s,\x00]+$", examples=["billing@acme.example"]),
]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$", examples=["USD"])]
CustomerId = Annotated[str, Field(min_length=1, max_length=255, pattern=_STORABLE, examples=["cus_9s6XKzkNRiz8i3"])]

OrgId = Annotated[str, Path(examples=["org_0b7c6a9e-2f4d-4c53-9a55-0f7b0a4c8d11"])]
UserIdInPath = Annotated[str, Path(min_length=1, max_length=255, pattern=_STORABLE, examples=["user_1"])]
InvitationId = Annotated[
    str, Path(max_length=64, pattern=_STORABLE, examples=["inv_5a0c9c62-0f3e-4f5b-8c63-3b8f1d6f5a11"])
]
Search = Annotated[str | None, Query(max_length=200, pattern=_STORABLE, description="A part of the name.")]
Plan = Annotated[str | None, Query(max_length=200, pattern=_STORABLE, description="A tier of the catalog.")]
Limit = Annotated[int, Query(ge=1, le=200)]
Offset = Annotated[int, Query(ge=0, le=1_000_000)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NewOrganization(Body):
    """``owner_user_id``: only a service names the owner; a person becomes it."""

    name: Name
    plan_tier: Tier = "founders_friend"
    billing_email: Email | None = None
    currency: Currency | None = None
    owner_user_id: UserId | None = None


class Details(Body):
    """What is left out stays as it is."""

    name: Name | None = None
    billing_email: Email | None = None
    currency: Currency | None = None


class CustomerIds(Body):
    """Ids of customers that exist at the billers; each is read there before it is used. Left out: stays as it is."""

    lago_id: Annotated[CustomerId | None, Field(examples=["1a901a90-1a90-1a90-1a90-1a901a901a90"])] = None
    stripe_id: CustomerId | None = None


class WantedPlan(Body):
    plan_tier: Tier


class TargetPlan(Body):
    """The older paths' word for it."""

    target_tier: Tier


class WantedStatus(Body):
    status: Status


class NewMember(Body):
    user_id: UserId
    role: Role = "member"


class WantedRole(Body):
    role: Role


class NewInvitation(Body):
    email: Annotated[
        str, Field(max_length=email_addresses.LIMIT, pattern=f"^{email_addresses.FORM}$", examples=["bob@acme.example"])
    ]
    role: Role = "member"


class Acceptance(Body):
    """``token``: from the mail."""

    token: Annotated[str, Field(min_length=1, max_length=200, pattern=_STORABLE, examples=[_TOKEN])]
