"""A webhook of a provider that only asks for a remote check, as it comes from the API and is processed by a worker."""

from __future__ import annotations

from itertools import count

from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.ports.spec import Provider
from tests.support.sync_world import SyncWorld

_NUMBERS = count(1)


def receive_webhook(world: SyncWorld, org_id: str, provider: Provider) -> None:
    """It is stored and processed, and no attempt is made yet."""
    webhook = ParsedWebhook(
        provider=provider,
        id=f"evt_{next(_NUMBERS)}",
        type="any",
        effect="check",
        customer_id=world.link(org_id, provider).customer_id,
        org_id=org_id if provider == "lago" else None,
    )
    with world.database.write() as session:
        provider_webhooks.store(session, webhook, world.now)
    provider_webhooks.process(world.database, world.clock)


def check_after_webhook(world: SyncWorld, org_id: str, provider: Provider) -> None:
    """It is received, and the remote check that it asks for is made."""
    receive_webhook(world, org_id, provider)
    world.reconcile_until_idle(org_id)
    world.wait(10)
