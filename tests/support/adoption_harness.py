"""Customers that we did not make at both providers in the sandbox, rows of a table for them, and the adopter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from core.adoption import provider_objects
from core.adoption.adopter import Adopter, AdoptionResult
from core.adoption.adoption import AdoptionRules
from core.adoption.provider_objects import ProviderObjects
from core.adoption.row import AdoptionAction, AdoptionRow, AdoptionSide
from core.events.event_types import Cause
from core.ports.inventory import Inventory
from core.ports.spec import PROVIDERS, Provider
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider
from sandbox.client import LoggedCall
from tests.support.sync_world import PAYMENT_PROVIDER_CODE, SyncWorld

ReadT = TypeVar("ReadT")

BY_OPERATOR = Cause(actor="operator:ada", source="billing-sync adopt apply")


def adopt_known(world: SyncWorld, org_id: str) -> AdoptionResult:
    """As an operator adopts an organization at what it pays, after an import or `set-customer-id` brought its ids."""
    organization = world.organization(org_id)
    links = {provider: world.link(org_id, provider) for provider in PROVIDERS}
    is_lago_theirs = links["lago"].ownership == "theirs"
    harness = AdoptionHarness(world=world, url=world.url)
    try:
        return harness.adopt(
            harness.row(
                org_id=org_id,
                action="adopt-keep-price",
                tier=organization.pending_plan_tier or organization.plan_tier,
                stripe=links["stripe"].customer_id,
                lago=(links["lago"].external_customer_id or org_id) if is_lago_theirs else None,
                resets_calls=False,
            )
        )
    finally:
        harness.close()


@dataclass(kw_only=True)
class AdoptionHarness:
    world: SyncWorld
    url: str

    def __post_init__(self) -> None:
        ending = self.world.catalog.ending
        self._stripe = StripeProvider("sk_test_sandbox", self.url, ending=ending, clock=self.world.clock)
        self._lago = LagoProvider(self.url, "sandbox", payment_provider_code=PAYMENT_PROVIDER_CODE, ending=ending)

    def close(self) -> None:
        self._stripe.close()
        self._lago.close()

    @property
    def inventories(self) -> dict[Provider, Inventory]:
        return {"stripe": self._stripe.inventory, "lago": self._lago.inventory}

    def read(self, provider: Provider, read: Callable[[Inventory], ReadT]) -> ReadT:
        return read(self.inventories[provider])

    def environment(self, folder: Path, plans_file: Path) -> dict[str, str | None]:
        """Of a command that is typed at this place."""
        return {
            "DATABASE_URL": self.world.database.url.render_as_string(hide_password=False),
            "DATA_DIR": str(folder),
            "PLANS_FILE": str(plans_file),
            "STRIPE_SECRET_KEY": "sk_test_sandbox",
            "STRIPE_API_BASE": self.url,
            "LAGO_API_KEY": "lago-key",
            "LAGO_API_URL": self.url,
            "LAGO_STRIPE_PROVIDER_CODE": PAYMENT_PROVIDER_CODE,
            "COLUMNS": "80",
            "REDIS_URL": None,
            "CELERY_BROKER_URL": None,
        }

    def adopter(self, *, with_marks: bool = True, is_dry_run: bool = False) -> Adopter:
        rules = AdoptionRules(catalog=self.world.catalog, policy=self.world.policy, with_marks=with_marks)
        return Adopter(
            database=self.world.database,
            read=self.read,
            rules=rules,
            clock=self.world.clock,
            cause=BY_OPERATOR,
            is_dry_run=is_dry_run,
        )

    def adopt(self, row: AdoptionRow, **options: bool) -> AdoptionResult:
        (result,) = self.adopter(**options).apply([row])
        return result

    def stripe_customer(self, customer_id: str = "cus_theirs", **fields: Any) -> str:  # noqa: ANN401 - JSON
        customer = {"id": customer_id, "name": "Acme at Stripe", "email": "pay@acme.test", **fields}
        return str(self.world.sandbox.preload_stripe_customers([customer])[0]["id"])

    def lago_customer(
        self,
        external_id: str = "acme",
        *,
        payer: str | None = "cus_theirs",
        plan: str | None = None,
        subscription: str = "contract",
        **fields: Any,  # noqa: ANN401 - JSON
    ) -> str:
        """``plan`` None: without a subscription."""
        configuration = {
            "payment_provider": "stripe",
            "payment_provider_code": PAYMENT_PROVIDER_CODE,
            "provider_customer_id": payer,
        }
        customer = {
            "external_id": external_id,
            "name": "Acme at Lago",
            "email": "bill@acme.test",
            "billing_configuration": configuration if payer else {},
            **fields,
        }
        self.world.sandbox.preload_lago_customers([customer])
        if plan is not None:
            self.world.sandbox.preload_lago_subscription(external_id, plan, external_id=subscription)
        return external_id

    def side(self, provider: Provider, key: str) -> AdoptionSide:
        """As ``discover`` reads it."""
        customer, subscriptions = self.read(
            provider, lambda inventory: (inventory.customer(key), inventory.subscriptions_of(key))
        )
        assert customer is not None
        assert len(subscriptions) <= 1
        subscription = subscriptions[0] if subscriptions else None
        return provider_objects.side_of(ProviderObjects(customer=customer, subscription=subscription))

    def row(  # noqa: PLR0913 - the fields of a row that tests change
        self,
        *,
        org_id: str | None = None,
        action: AdoptionAction = "adopt",
        tier: str = "professional",
        stripe: str | None = None,
        lago: str | None = None,
        resets_calls: bool = True,
        **fields: Any,  # noqa: ANN401 - of a row
    ) -> AdoptionRow:
        keys: dict[Provider, str | None] = {"stripe": stripe, "lago": lago}
        row = AdoptionRow(
            org_id=org_id,
            sides={provider: self.side(provider, key) for provider, key in keys.items() if key is not None},
            matched_by="payer",
            plan_tier=tier,
            difference=0,
            currency="USD",
            name_source="lago" if lago else "stripe",
            email_source="lago" if lago else "stripe",
            action=action,
            reason="it pays the price of the catalog",
        )
        if resets_calls:
            self.world.sandbox.reset_calls()
        return replace(row, **fields)

    def writes(self) -> list[LoggedCall]:
        """Requests since the last reset that change something."""
        return [call for call in self.world.sandbox.calls() if call.method != "GET"]
