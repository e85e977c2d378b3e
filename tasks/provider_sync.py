"""One task per provider, which reconciles one organization. A repeated, late or reordered message does no harm."""

from __future__ import annotations

from celery import shared_task

from tasks.base import BillingTask
from tasks.routing import SYNC_TO_LAGO, SYNC_TO_STRIPE


@shared_task(bind=True, base=BillingTask, name=SYNC_TO_STRIPE)
def sync_to_stripe(self: BillingTask, org_id: str, *, bulk: bool = False) -> str:
    return self.reconcile("stripe", org_id, bulk=bulk)


@shared_task(bind=True, base=BillingTask, name=SYNC_TO_LAGO)
def sync_to_lago(self: BillingTask, org_id: str, *, bulk: bool = False) -> str:
    return self.reconcile("lago", org_id, bulk=bulk)
