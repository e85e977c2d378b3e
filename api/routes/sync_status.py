"""Receipts: do both billers hold a change, since when; and where one does not, why and what happens next.

A person reads plain words. The biller's own message goes to services alone: it may name ids of other organizations.
"""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from api import problems
from api.auth.authorization import TheAdmission
from api.context import Runtime, TheRuntime
from api.schemas.requests import OrgId
from core.db.models.billing_links import Payment
from core.ports.spec import Provider
from core.reconcile.link_status import LinkReport
from core.reconcile.link_status import Standing as Word
from core.reporting import sync_status
from core.reporting.sync_status import Receipt
from core.reporting.sync_status import Standing as Held

router = APIRouter(tags=["sync"])

LONGEST_WAIT: Final = 30  # seconds
FIRST_LOOK: Final = 0.05  # seconds
LAST_LOOK: Final = 0.5  # seconds: how late an answer may be, and how often a waiting one asks the database

NAMES: Final[dict[Provider, str]] = {"stripe": "Stripe", "lago": "Lago"}

Through = Annotated[
    int | None, Query(ge=1, le=2**63 - 1, description="`sync.sequence` of a change; left out: the newest.")
]
Wait = Annotated[
    str,
    Query(
        pattern=r"^([0-9]|[12][0-9]|30)s?$",
        examples=["5s"],
        description="Answer as soon as both hold it, at the latest after these seconds.",
    ),
]


class Trouble(BaseModel):
    """``code`` is the biller's own word; ``message`` and ``request_id`` are for services alone."""

    kind: str = Field(examples=["unavailable"])
    code: str | None
    message: str | None
    request_id: str | None
    at: datetime | None


class PaymentTrouble(BaseModel):
    """``failed``: an invoice could not be charged and is open. ``refused``: the payment provider does not take the
    customer. ``code`` is the biller's own word. The plan stays as it is.
    """

    state: Payment
    since: datetime | None
    code: str | None = Field(examples=["card_declined"])


class ProviderSync(BaseModel):
    """``next_at``: when it is tried by itself; null: nothing waits, or a person must act. ``payment`` null: nothing is
    known to be wrong with paying there.
    """

    in_sync: bool
    since: datetime | None
    standing: Word
    why: str | None = Field(examples=["Stripe does not answer."])
    next: str | None = Field(examples=["It is tried again by itself."])
    next_at: datetime | None
    error: Trouble | None
    payment: PaymentTrouble | None


class SyncReport(BaseModel):
    """``sequence`` is the newest change, ``through`` the one asked about; ``in_sync``: both billers hold that."""

    org_id: str
    sequence: int
    through: int
    in_sync: bool
    providers: dict[Provider, ProviderSync]


@router.get("/api/organizations/{org_id}/sync")
async def show(  # noqa: PLR0913 - what is asked, and who asks
    *,
    org_id: OrgId,
    request: Request,
    runtime: TheRuntime,
    admission: TheAdmission,
    through: Through = None,
    wait: Wait = "0s",
) -> SyncReport:
    """Whether both billers hold a change; waits for it if asked to."""
    ends = time.monotonic() + int(wait.removesuffix("s"))
    look = FIRST_LOOK
    while True:
        receipt = await run_in_threadpool(_read, runtime, org_id, through)
        left = ends - time.monotonic()
        if receipt.in_sync or left <= 0 or request.app.state.stopping.is_set():
            return _report(org_id, receipt, full=admission.role == "service")
        await asyncio.sleep(min(look, left))
        look = min(look * 1.5, LAST_LOOK)


def _read(runtime: Runtime, org_id: str, through: int | None) -> Receipt:
    with runtime.database.read() as session:
        receipt = sync_status.receipt(session, org_id, runtime.clock(), through)
    if receipt is None:
        raise problems.no_organization()
    if receipt.through > receipt.sequence:
        raise problems.unprocessable("query.through", f"the newest change is {receipt.sequence}")
    return receipt


def _report(org_id: str, receipt: Receipt, *, full: bool) -> SyncReport:
    return SyncReport(
        org_id=org_id,
        sequence=receipt.sequence,
        through=receipt.through,
        in_sync=receipt.in_sync,
        providers={provider: _provider(held, full=full) for provider, held in receipt.billers.items()},
    )


def _provider(held: Held, *, full: bool) -> ProviderSync:
    link = held.link
    if held.holds:
        return ProviderSync(
            in_sync=True,
            since=link.synced_at,
            standing="in_sync",
            why=None,
            next=None,
            next_at=None,
            error=None,
            payment=_payment(link),
        )
    return ProviderSync(
        in_sync=False,
        since=None,
        standing=link.standing,
        why=_why(link),
        next=_next(link),
        next_at=link.next_at,
        error=_trouble(link, full=full),
        payment=_payment(link),
    )


def _payment(link: LinkReport) -> PaymentTrouble | None:
    if link.payment is None:
        return None
    return PaymentTrouble(state=link.payment, since=link.payment_since, code=link.payment_code)


def _why(link: LinkReport) -> str:
    name = NAMES[link.provider]
    match link.standing:
        case "working":
            return "A worker is at it now."
        case "stopped":
            return f"{name} takes nothing from us now."
        case "waiting":
            return "Lago waits for the customer at Stripe, whom it is to charge."
        case "parked" | "held":
            return f"{name} cannot take it as it is."
        case "retrying":
            reasons = {"throttled": f"{name} asks for a pause.", "misconfigured": f"Our access to {name} is not right."}
            return reasons.get(link.error_kind or "", f"{name} did not answer as expected.")
        case "in_sync" | "queued":
            return "It has not had its turn yet."


def _next(link: LinkReport) -> str:
    match link.standing:
        case "parked" | "held":
            return "A person must look at it; a change of the organization has it tried again, too."
        case "stopped":
            return f"It is taken up by itself once {NAMES[link.provider]} answers."
        case "waiting":
            return "It goes on as soon as that is there, without it at `next_at`."
        case "working":
            return "Nothing to do; should the worker die, another takes over at `next_at`."
        case "retrying":
            return "It is tried again by itself at `next_at`."
        case "in_sync" | "queued":
            return "It is taken up within moments; its message is sent again at `next_at`."


def _trouble(link: LinkReport, *, full: bool) -> Trouble | None:
    if link.error_kind is None or link.standing == "waiting":
        return None
    return Trouble(
        kind=link.error_kind,
        code=link.error_code,
        message=link.error_message if full else None,
        request_id=link.error_request_id if full else None,
        at=link.error_at,
    )
