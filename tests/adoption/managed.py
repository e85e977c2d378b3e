"""The adopted organizations once they are managed: each is reconciled as a worker does, told of webhooks, changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from core.catalog import plans
from core.inbox import provider_webhooks
from core.inbox.provider_webhooks import ParsedWebhook
from core.ports.spec import PROVIDERS, Provider
from providers.lago.webhooks import LagoWebhookParser
from providers.stripe.webhooks import parse_event
from sandbox.business.catalog import UPGRADES
from sandbox.business.comparison import new_objects
from sandbox.business.seeded import BusinessCustomer
from sandbox.http import JsonDocument
from tests.adoption.judge import AdoptedIdentity
from tests.adoption.site import AdoptionSite
from tests.support.sync_world import SyncWorld, open_world
from tests.support.webhook_receiver import WebhookReceiver, receiving

# Their plan stays as somebody arranged it at the provider.
ARRANGED_CASES: Final = frozenset(
    {"lago with a planned end", "stripe with a planned end", "stripe paused", "stripe with a schedule"}
)
BATCH: Final = 200
SECRET: Final = "whsec_sandbox"


@dataclass(kw_only=True)
class ManagedBusiness:
    site: AdoptionSite
    world: SyncWorld
    identities: list[AdoptedIdentity]

    @classmethod
    def open(cls, site: AdoptionSite, identities: list[AdoptedIdentity]) -> Self:
        catalog = plans.load(site.folder / "plans.toml")
        world = open_world(site.open_database(), site.sandbox, catalog, site.url)
        return cls(site=site, world=world, identities=identities)

    def close(self) -> None:
        for provider in self.world.providers.values():
            provider.close()
        self.world.database.close()

    def reconcile_all(self) -> Iterator[str]:
        """Yields what is not in sync afterwards."""
        for identity in self.identities:
            yield from self._reconcile(identity.org_id)

    def _reconcile(self, org_id: str) -> Iterator[str]:
        self.world.reconcile_until_idle(org_id)
        if self.world.is_in_sync(org_id):
            return
        for provider in PROVIDERS:
            link = self.world.link(org_id, provider)
            yield f"{org_id} at {provider}: {link.state}, {link.error_message or link.observation}"

    def unannounced(self, before: JsonDocument, after: JsonDocument) -> Iterator[str]:
        """New objects that are not of an adopted organization that had none of them."""
        without_stripe = {each.org_id for each in self.identities if each.stripe_customer is None}
        begun_in_lago = {each.org_id for each in self.identities if each.lago_subscription is None}
        without_lago = {each.org_id for each in self.identities if each.lago_customer is None}
        for customer in new_objects(before, after, "customers in Stripe"):
            if customer["metadata"].get("billing_sync_org_id") not in without_stripe:
                yield f"a new customer in Stripe: {customer['id']}"
        for subscription in new_objects(before, after, "subscriptions in Stripe"):
            yield f"a new subscription in Stripe: {subscription['id']}"
        for customer in new_objects(before, after, "customers in Lago"):
            if customer["external_id"] not in without_lago:
                yield f"a new customer in Lago: {customer['external_id']}"
        for subscription in new_objects(before, after, "subscriptions in Lago"):
            if subscription["external_id"] not in begun_in_lago:
                yield f"a new subscription in Lago: {subscription['external_id']}"
            yield from self._charged_twice(subscription, after)
        for invoice in new_objects(before, after, "invoices in Stripe"):
            yield f"a new invoice in Stripe: {invoice['id']} of {invoice['total']}"

    def _charged_twice(self, subscription: JsonDocument, state: JsonDocument) -> Iterator[str]:
        """Lago charges whoever is the payer, so what Stripe charges for must have none in Lago."""
        tier = self.world.catalog.tier_of("lago", subscription["plan_code"])
        [customer] = [
            each for each in state["lago"]["customers"] if each["lago_id"] == subscription["lago_customer_id"]
        ]
        payer = customer["billing_configuration"].get("provider_customer_id")
        if payer is not None and tier is not None and self.world.catalog.plan(tier).charged_by == "stripe":
            yield f"Lago charges {payer} for {tier}, and Stripe charges for it, too: {subscription['external_id']}"

    def unmarked(self, state: JsonDocument) -> Iterator[str]:
        by_id = {each["id"]: each for each in state["stripe"]["subscriptions"]}
        for identity in self.identities:
            if identity.stripe_subscription is not None:
                metadata = by_id[identity.stripe_subscription]["metadata"]
                if metadata.get("billing_sync_org_id") != identity.org_id:
                    yield f"{identity} has the metadata {metadata}"

    # --- webhooks

    def lost_webhooks(self) -> Iterator[str]:
        """Each customer pays an invoice; what the providers send about it must ask for a check of its link."""
        with self._webhooks() as receiver:
            for start in range(0, len(self.identities), BATCH):
                yield from self._lost_in_batch(self.identities[start : start + BATCH], receiver)

    @contextmanager
    def _webhooks(self) -> Iterator[WebhookReceiver]:
        with receiving() as receiver:
            endpoint = {"url": receiver.url, "secret": SECRET}
            self.site.sandbox.set_webhooks(
                stripe={**endpoint, "events": ["invoice.paid"]},
                lago={**endpoint, "events": ["invoice.payment_status_updated"]},
            )
            try:
                yield receiver
            finally:
                self.site.sandbox.set_webhooks(stripe=None, lago=None)

    def _lost_in_batch(self, identities: list[AdoptedIdentity], receiver: WebhookReceiver) -> Iterator[str]:
        concerned = [(identity.org_id, *customer) for identity in identities for customer in sorted(identity.customers)]
        asked_before = {(org_id, provider): self._checks(org_id, provider) for org_id, provider, _ in concerned}
        seen = len(receiver.requests)
        for _, provider, customer in concerned:
            if provider == "stripe":
                self.site.sandbox.create("stripe", "invoices", customer=customer, status="paid")
            else:
                paid = {"external_customer_id": customer, "payment_status": "succeeded"}
                self.site.sandbox.create("lago", "invoices", **paid)
        for request in receiver.wait(seen + len(concerned))[seen:]:
            with self.world.database.write() as session:
                provider_webhooks.store(session, _parsed(request.headers, request.body), self.world.now)
        while provider_webhooks.process(self.world.database, self.world.clock)[0]:
            pass
        for org_id, provider, customer in concerned:
            if self._checks(org_id, provider) <= asked_before[org_id, provider]:
                yield f"{customer} at {provider} of {org_id}"
        for identity in identities:
            yield from self._reconcile(identity.org_id)

    def _checks(self, org_id: str, provider: Provider) -> int:
        return self.world.link(org_id, provider).checks_requested

    # --- changes

    def lost_renames(self) -> Iterator[str]:
        before = self.site.sandbox.state()
        for number, identity in enumerate(self.identities):
            self.world.rename(identity.org_id, f"Renamed {number}")
            yield from self._reconcile(identity.org_id)
        after = self.site.sandbox.state()
        stripe = {each["id"]: each["name"] for each in after["stripe"]["customers"] if not each.get("deleted")}
        lago = {each["external_id"]: each["name"] for each in after["lago"]["customers"]}
        for number, identity in enumerate(self.identities):
            for provider, customer in sorted(identity.customers):
                name = (stripe if provider == "stripe" else lago).get(customer)
                if name != f"Renamed {number}":
                    yield f"{customer} at {provider} is still called {name}"
        yield from self._created_in(before, after)

    def lost_upgrades(self) -> Iterator[str]:
        truth = {one.stripe_customers[0]: one for one in self.site.business.customers if one.stripe_customers}
        truth |= {one.lago_customers[0]: one for one in self.site.business.customers if one.lago_customers}
        before = self.site.sandbox.state()
        upgraded: dict[AdoptedIdentity, str] = {}
        for identity in self.identities:
            tier = UPGRADES.get(self.world.organization(identity.org_id).plan_tier)
            if tier is not None and _can_change(identity, truth):
                self.world.change_plan(identity.org_id, tier)
                yield from self._reconcile(identity.org_id)
                upgraded[identity] = tier
        after = self.site.sandbox.state()
        for identity, tier in upgraded.items():
            yield from self._not_upgraded(identity, tier, before, after)
        yield from self._created_in(before, after)

    def _not_upgraded(
        self, identity: AdoptedIdentity, tier: str, before: JsonDocument, after: JsonDocument
    ) -> Iterator[str]:
        plan = self.world.catalog.plan(tier)
        if identity.stripe_subscription is not None:
            then, now = (_items(state, identity.stripe_subscription) for state in (before, after))
            expected = [(plan.stripe_lookup_key, quantity) for _, quantity in then]
            if now != expected:
                yield f"{identity}: {now} instead of {expected}"
        if identity.lago_subscription is not None:
            active = [
                each["plan_code"]
                for each in after["lago"]["subscriptions"]
                if each["external_id"] == identity.lago_subscription and each["status"] == "active"
            ]
            if active != [plan.lago_plan_code]:
                yield f"{identity}: {active} instead of {plan.lago_plan_code}"

    def _created_in(self, before: JsonDocument, after: JsonDocument) -> Iterator[str]:
        """Customers, and subscriptions in Stripe; an upgrade in Lago is a new one under the same external id."""
        for object_type, key in (
            ("customers in Stripe", "id"),
            ("subscriptions in Stripe", "id"),
            ("customers in Lago", "external_id"),
        ):
            yield from (f"{object_type}: {each[key]} is new" for each in new_objects(before, after, object_type))


def _parsed(headers: Mapping[str, str], body: bytes) -> ParsedWebhook:
    """As the API parses it; the signatures are the subject of other tests."""
    lago_key = next((value for name, value in headers.items() if name.lower() == "x-lago-unique-key"), None)
    if lago_key is None:
        return parse_event(json.loads(body))
    return LagoWebhookParser(lambda _raw, _signature: True).parse(body, "signed", lago_key)


def _can_change(identity: AdoptedIdentity, truth: Mapping[str, BusinessCustomer]) -> bool:
    return all(truth[customer].case not in ARRANGED_CASES for _, customer in identity.customers)


def _items(state: JsonDocument, subscription_id: str) -> list[tuple[Any, int]]:
    [found] = [each for each in state["stripe"]["subscriptions"] if each["id"] == subscription_id]
    return [(item["price"]["lookup_key"], item["quantity"]) for item in found["items"]["data"]]
