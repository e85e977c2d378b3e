"""Each request passes its quota under the name that the biller counts by, and a create before it is written ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from core.catalog import plans as plan_catalog
from core.catalog import publishing
from core.catalog.plans import Catalog
from core.ports.errors import MustWaitError
from core.ports.provider import Biller
from core.ports.spec import CustomerSpec, Known, SubscriptionSpec
from providers.lago.provider import LagoBiller
from providers.stripe.provider import StripeBiller
from sandbox.client import SandboxClient
from sandbox.server import Sandbox
from tests.providers.claims import MemoryClaim

SPEC = CustomerSpec(org_id="org_1", name="Acme")

Open = Callable[[str, Catalog], Biller]


def stripe(url: str, plans: Catalog) -> Biller:
    return StripeBiller("sk_test_1", url, ending=plans.ending)


def lago(url: str, plans: Catalog) -> Biller:
    return LagoBiller(url, "key", payment_provider_code="stripe_main", ending=plans.ending)


@pytest.mark.parametrize("opened", [stripe, lago])
def test_every_request_is_held_under_the_name_the_biller_counts_by(
    opened: Open, sandbox: SandboxClient, sandbox_server: Sandbox
) -> None:
    plans = plan_catalog.load(charged_by="stripe")
    biller = opened(sandbox_server.url, plans)
    publishing.push(plans, [biller])
    low, high = (offer.code for plan, offer in publishing.wanted(plans, biller.provider) if plan.rank in {1, 2})
    sandbox.reset_calls()
    claim = MemoryClaim()
    made = biller.make_customer(SPEC, Known(), claim)
    claim.stored = None
    known = Known(customer_id=made.id)
    biller.make_customer(replace(SPEC, name="Acme & Co"), known, claim)
    known = replace(known, verified=True)
    biller.make_customer(replace(SPEC, email="a@acme.test"), known, claim)
    wanted = SubscriptionSpec(org_id="org_1", customer_id=made.id, plan_code=low)
    there = biller.make_subscription(wanted, known, claim)
    claim.stored = None
    known = replace(known, subscription_id=there.id, plan_code=low)
    biller.make_subscription(replace(wanted, plan_code=high), known, claim)
    biller.end_subscription(known, "org_1", claim)
    assert claim.operations == [call.operation for call in sandbox.calls()]
    assert len(set(claim.operations)) > 3
    biller.close()


def test_a_create_that_must_wait_has_written_nothing(
    sandbox: SandboxClient, sandbox_server: Sandbox, plans: Catalog
) -> None:
    class Crowded(MemoryClaim):
        def book(self, operation: str) -> None:
            super().book(operation)
            raise MustWaitError(1.0, in_line=True)

    biller = stripe(sandbox_server.url, plans)
    claim = Crowded()
    with pytest.raises(MustWaitError):
        biller.make_customer(SPEC, Known(), claim)
    assert (claim.written, claim.operations, sandbox.calls()) == ([], [], [])
    begun = MemoryClaim()
    resent = Crowded(begun.write_ahead("create_customer", {"name": "Acme"}))
    with pytest.raises(MustWaitError):
        biller.make_customer(SPEC, Known(), resent)
    assert (resent.resent, sandbox.calls()) == ([], [])
    biller.close()
