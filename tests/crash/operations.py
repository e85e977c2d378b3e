"""Operations on one organization: the messages of another service, and the earlier operation that each builds on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.ports.spec import Provider

ORG = "org_c4a5e000-0000-4000-8000-000000000001"
NAME = "Crash Test Dummies"
REFUSED = "Refused By Stripe"

Message = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A deployment. ``tiers`` has the charging providers that the plan file sets; ``also`` has more settings."""

    charged_by: str | None
    links_payer: bool = True
    tiers: tuple[tuple[str, str], ...] = ()
    also: tuple[tuple[str, str], ...] = ()


BY_LAGO = Setting(charged_by="lago")
BY_STRIPE = Setting(charged_by="stripe")
# Without a payer: a plan that moves to Stripe is parked for an operator while Lago charges a payer.
BY_PLAN = Setting(charged_by=None, links_payer=False, tiers=(("professional", "stripe"),))
# The hour has no place, so every change of what is paid is on hold.
WITHOUT_PLACES = Setting(charged_by="lago", also=(("MONEY_CHANGES_PER_HOUR", "0"),))
# So low a rate that the second organization must wait for the first.
SLOWLY = Setting(charged_by="lago", also=(("LAGO_RATE_LIMIT", "2"),))


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashOperation:
    """``after`` is the operation that this one starts from. ``faults`` are set in the sandbox before it starts.

    With ``period_ends``, a scheduled downgrade is due before it starts, in our database and at the provider. With
    ``is_released``, an operator lets go before what the payment brake holds. With ``moves_to``, the setting is another
    one than before, and an operator moves the organization to that provider before it starts.
    """

    name: str
    setting: Setting
    messages: tuple[Message, ...] = ()
    after: str | None = None
    faults: tuple[dict[str, Any], ...] = field(default=())
    period_ends: bool = False
    is_released: bool = False
    moves_to: Provider | None = None


def message(number: int, kind: str, org: str = ORG, **data: object) -> Message:
    return {
        "specversion": "1.0",
        "id": f"{number}",
        "source": "/crash",
        "type": kind,
        "subject": org,
        "data": data,
    }


def _created(number: int = 1, name: str = NAME, tier: str = "professional", org: str = ORG) -> Message:
    data = {"name": name, "plan_tier": tier, "billing_email": "first@dummies.test", "owner_user_id": "user_1"}
    return message(number, "organization.created", org, **data)


def _plan(number: int, tier: str) -> Message:
    return message(number, "organization.plan_changed", plan_tier=tier)


def _status(number: int, status: str) -> Message:
    return message(number, "organization.status_changed", status=status)


_RENAMED = (
    message(2, "organization.renamed", name="Dummies & Sons"),
    message(3, "organization.billing_details_changed", billing_email="second@dummies.test"),
)


def _charged(by: str, setting: Setting) -> list[CrashOperation]:
    return [
        CrashOperation(name=f"{by}: create", setting=setting, messages=(_created(),)),
        CrashOperation(name=f"{by}: update", setting=setting, messages=_RENAMED, after=f"{by}: create"),
        CrashOperation(
            name=f"{by}: upgrade", setting=setting, messages=(_plan(4, "enterprise"),), after=f"{by}: create"
        ),
        CrashOperation(
            name=f"{by}: downgrade", setting=setting, messages=(_plan(5, "starter"),), after=f"{by}: create"
        ),
        CrashOperation(
            name=f"{by}: cancel downgrade",
            setting=setting,
            messages=(_plan(6, "professional"),),
            after=f"{by}: downgrade",
        ),
        CrashOperation(
            name=f"{by}: downgrade takes effect", setting=setting, after=f"{by}: downgrade", period_ends=True
        ),
        CrashOperation(name=f"{by}: end", setting=setting, messages=(_status(7, "deleted"),), after=f"{by}: create"),
        CrashOperation(name=f"{by}: subscribe", setting=setting, messages=(_status(8, "active"),), after=f"{by}: end"),
    ]


OPERATIONS: tuple[CrashOperation, ...] = (
    *_charged("lago", BY_LAGO),
    *_charged("stripe", BY_STRIPE),
    CrashOperation(name="charging move to stripe", setting=BY_STRIPE, after="lago: create", moves_to="stripe"),
    CrashOperation(name="charging move to lago", setting=BY_LAGO, after="charging move to stripe", moves_to="lago"),
    CrashOperation(name="by plan: create", setting=BY_PLAN, messages=(_created(tier="starter"),)),
    CrashOperation(
        name="by plan: to stripe", setting=BY_PLAN, messages=(_plan(9, "professional"),), after="by plan: create"
    ),
    CrashOperation(
        name="by plan: to lago", setting=BY_PLAN, messages=(_plan(10, "enterprise"),), after="by plan: to stripe"
    ),
    CrashOperation(
        name="brake: upgrade on hold",
        setting=WITHOUT_PLACES,
        messages=(_plan(12, "enterprise"),),
        after="lago: create",
    ),
    CrashOperation(
        name="brake: upgrade released", setting=WITHOUT_PLACES, after="brake: upgrade on hold", is_released=True
    ),
    CrashOperation(
        name="brake: end on hold",
        setting=WITHOUT_PLACES,
        messages=(_status(13, "deleted"),),
        after="brake: upgrade on hold",
    ),
    CrashOperation(name="brake: end released", setting=WITHOUT_PLACES, after="brake: end on hold", is_released=True),
    CrashOperation(
        name="rejected by provider",
        setting=BY_LAGO,
        messages=(_created(name=REFUSED),),
        faults=(
            {
                "provider": "stripe",
                "operation": "POST /v1/customers",
                "kind": "status",
                "times": 0,
                "status": 400,
                "body": '{"error": {"type": "invalid_request_error", "code": "email_invalid", "message": "no"}}',
            },
        ),
    ),
    CrashOperation(
        name="fails once",
        setting=BY_LAGO,
        messages=(_created(),),
        faults=(
            {"provider": "stripe", "operation": "POST /v1/customers", "kind": "500_before"},
            {"provider": "lago", "operation": "POST /api/v1/subscriptions", "kind": "html_502"},
        ),
    ),
    CrashOperation(
        name="stored failure",
        setting=BY_LAGO,
        messages=(_created(),),
        faults=({"provider": "stripe", "operation": "POST /v1/customers", "kind": "500_stored"},),
    ),
    CrashOperation(
        name="stored failure, but done",
        setting=BY_STRIPE,
        messages=(_created(),),
        faults=(
            {"provider": "stripe", "operation": "POST /v1/customers", "kind": "500_after"},
            {"provider": "stripe", "operation": "POST /v1/subscriptions", "kind": "500_after"},
        ),
    ),
    CrashOperation(
        name="waits for permits",
        setting=SLOWLY,
        messages=tuple(_created(number, f"{NAME} {number}", org=f"{ORG[:-1]}{number}") for number in range(1, 4)),
    ),
    CrashOperation(
        name="rejected by us",
        setting=BY_LAGO,
        messages=(message(11, "organization.renamed", name=""),),
        after="lago: create",
    ),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}
