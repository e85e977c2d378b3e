"""Customers of a business by seed, and what is true of each: which organization it is, and what it has at a provider.

The same seed and number make the same business, except for the ids that the providers choose. Each case of
``cases.CASES`` occurs, if there are that many customers; the rest are drawn by weight.
"""

import random
import string
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sandbox.business.catalog import lago_plans, stripe_prices
from sandbox.client import SandboxClient
from sandbox.http import JsonDocument

PAYMENT_PROVIDER_CODE: Final = "stripe_main"
BEGINNING: Final = datetime(2024, 1, 8, 9, 0, tzinfo=UTC)
# Names as customers have them: in several scripts, and some that a spreadsheet would run as a formula. Each occurs once
# only because of its number: a name that occurs twice is a case of its own.
_FIRST_WORDS: Final = (
    "Acme",
    "Blue Harbor",
    "Zürich",
    "Kite & Sons",
    "=Sum",
    "@Home",
    "東京",
    "O'Neill",
    '"Quoted"',
    "+49",
)
_SECOND_WORDS: Final = ("Analytics", "Foods", "Media", "Ltd", "GmbH", "Partners, Inc.", "Studio", "株式会社", "Labs")


@dataclass(frozen=True, slots=True, kw_only=True)
class BusinessOrganization:
    """What the organization manager's files say about an organization. The ids of customers may be missing."""

    id: str
    name: str
    plan_tier: str
    stripe_customer_id: str | None = None
    lago_customer_id: str | None = None


@dataclass(slots=True, kw_only=True)
class BusinessCustomer:
    """The truth about one customer. ``org_id`` None: no organization is it yet.

    ``stripe_customers`` holds ids, ``lago_customers`` and ``lago_subscriptions`` external ids.
    """

    number: int
    case: str
    is_clear: bool
    name: str
    email: str
    org_id: str | None = None
    stripe_customers: list[str] = field(default_factory=list)
    stripe_subscriptions: list[str] = field(default_factory=list)
    lago_customers: list[str] = field(default_factory=list)
    lago_subscriptions: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Business:
    customers: list[BusinessCustomer]
    organizations: list[BusinessOrganization]


class BusinessDraft:
    """What is to be created. Objects are created in few requests, in the order in which they depend on each other."""

    def __init__(self, seed: int, database_id: str) -> None:
        self.random = random.Random(seed)  # noqa: S311  # to repeat a business, not to hide anything
        self.database_id = database_id
        self.organizations: list[BusinessOrganization] = []
        self._stripe_customers: list[JsonDocument] = []
        self._stripe_subscriptions: list[tuple[BusinessCustomer, str, JsonDocument]] = []
        self._lago_customers: list[JsonDocument] = []
        self._lago_subscriptions: list[JsonDocument] = []
        self._applied_coupons: list[JsonDocument] = []
        self._patches: list[tuple[str, str, str, JsonDocument]] = []
        self._deletions: list[tuple[str, str, str]] = []

    def new_customer(self, number: int, case: str, *, is_clear: bool) -> BusinessCustomer:
        name = f"{self.random.choice(_FIRST_WORDS)} {self.random.choice(_SECOND_WORDS)} {number + 1}"
        return BusinessCustomer(number=number, case=case, is_clear=is_clear, name=name, email=f"billing@c{number}.test")

    def organization(
        self,
        one: BusinessCustomer,
        plan_tier: str,
        *,
        stripe_customer_id: str | None = None,
        lago_customer_id: str | None = None,
    ) -> str:
        """An organization that is this customer. Returns its id."""
        org_id = self.new_org_id()
        one.org_id = org_id
        self.organizations.append(
            BusinessOrganization(
                id=org_id,
                name=one.name,
                plan_tier=plan_tier,
                stripe_customer_id=stripe_customer_id,
                lago_customer_id=lago_customer_id,
            )
        )
        return org_id

    def new_org_id(self) -> str:
        return f"org_{self._uuid()}"

    def stripe_customer(self, one: BusinessCustomer, **fields: Any) -> str:  # noqa: ANN401
        """With a card. Returns its id."""
        customer_id = "cus_" + "".join(self.random.choices(string.ascii_letters + string.digits, k=14))
        created = BEGINNING + timedelta(minutes=len(self._stripe_customers))
        card = {"default_payment_method": f"pm_{one.number}"}
        document: JsonDocument = {"id": customer_id, "name": one.name, "email": one.email, "invoice_settings": card}
        self._stripe_customers.append(document | {"created": int(created.timestamp())} | fields)
        one.stripe_customers.append(customer_id)
        return customer_id

    def stripe_subscription(self, one: BusinessCustomer, *prices: str, quantity: int = 1, **fields: Any) -> None:  # noqa: ANN401
        """Of the customer's newest Stripe customer, charged automatically. ``prices`` are our names of them."""
        charged: JsonDocument = {"collection_method": "charge_automatically", "days_until_due": None}
        items = [{"price": price, "quantity": quantity} for price in prices]
        document = charged | {"customer": one.stripe_customers[-1], "items": items} | fields
        self._stripe_subscriptions.append((one, one.stripe_customers[-1], document))

    def marks(self, org_id: str, **more: str) -> dict[str, str]:
        """Our complete marks, as metadata."""
        marks = {"org_id": org_id, "database_id": self.database_id, **more}
        return {f"billing_sync_{name}": value for name, value in marks.items()}

    def lago_customer(
        self,
        one: BusinessCustomer,
        external_id: str | None = None,
        *,
        payer: str | None = None,
        lago_id: str | None = None,
        **fields: Any,  # noqa: ANN401
    ) -> str:
        """Returns its external id, which is one of the business's own if none is given."""
        external_id = external_id or f"acct-{one.number}"
        document: JsonDocument = {"external_id": external_id, "name": one.name, "email": one.email, "currency": "USD"}
        if payer is not None:
            document["billing_configuration"] = {
                "payment_provider": "stripe",
                "payment_provider_code": PAYMENT_PROVIDER_CODE,
                "provider_customer_id": payer,
            }
        self._lago_customers.append(document | {"lago_id": lago_id or self._uuid()} | fields)
        one.lago_customers.append(external_id)
        return external_id

    def lago_subscription(
        self,
        one: BusinessCustomer,
        plan_code: str,
        external_id: str | None = None,
        **fields: Any,  # noqa: ANN401
    ) -> str:
        """Of the customer's newest Lago customer. Returns its external id."""
        external_id = external_id or f"sub-{one.number}-{len(one.lago_subscriptions)}"
        document = {"external_customer_id": one.lago_customers[-1], "external_id": external_id, "plan_code": plan_code}
        self._lago_subscriptions.append(document | fields)
        if external_id not in one.lago_subscriptions:
            one.lago_subscriptions.append(external_id)
        return external_id

    def applied_coupon(self, external_customer_id: str, **fields: Any) -> None:  # noqa: ANN401
        self._applied_coupons.append({"external_customer_id": external_customer_id, "coupon_code": "loyal"} | fields)

    def patch(self, provider: str, object_type: str, key: str, **fields: Any) -> None:  # noqa: ANN401
        """After everything is created. ``key`` "subscription of cus_…" is the newest one of a Stripe customer."""
        self._patches.append((provider, object_type, key, fields))

    def delete(self, provider: str, object_type: str, key: str) -> None:
        self._deletions.append((provider, object_type, key))

    def new_lago_id(self) -> str:
        return self._uuid()

    def create(self, sandbox: SandboxClient) -> None:
        price_ids = _create_catalog(sandbox)
        sandbox.preload_stripe_customers(self._stripe_customers)
        subscription_ids = self._create_stripe_subscriptions(sandbox, price_ids)
        sandbox.preload_lago_customers(self._lago_customers)
        sandbox.preload_lago_subscriptions(self._lago_subscriptions)
        sandbox.preload_applied_coupons(self._applied_coupons)
        for provider, object_type, key, fields in self._patches:
            sandbox.patch(provider, object_type, subscription_ids.get(key, key), **fields)
        for provider, object_type, key in self._deletions:
            sandbox.delete(provider, object_type, key)

    def _create_stripe_subscriptions(self, sandbox: SandboxClient, price_ids: dict[str, str]) -> dict[str, str]:
        documents = [
            document | {"items": [_priced(item, price_ids) for item in document["items"]]}
            for _, _, document in self._stripe_subscriptions
        ]
        found: dict[str, str] = {}
        created = sandbox.preload_stripe_subscriptions(documents)
        for (one, customer_id, _), subscription in zip(self._stripe_subscriptions, created, strict=True):
            one.stripe_subscriptions.append(subscription["id"])
            found[subscription_of(customer_id)] = subscription["id"]
        return found

    def _uuid(self) -> str:
        return str(uuid.UUID(int=self.random.getrandbits(128), version=4))


def subscription_of(stripe_customer_id: str) -> str:
    """The key of ``BusinessDraft.patch`` for a subscription, whose id is known only when it is created."""
    return f"subscription of {stripe_customer_id}"


def _priced(item: JsonDocument, price_ids: dict[str, str]) -> JsonDocument:
    fields = {"price": price_ids[item["price"]]}
    return fields if item["price"] == "usage" else fields | {"quantity": item["quantity"]}


def _create_catalog(sandbox: SandboxClient) -> dict[str, str]:
    """Returns Stripe's ids of the prices by our names."""
    prices = stripe_prices()
    created = sandbox.preload_stripe_prices(prices.values())
    sandbox.preload_lago_plans(lago_plans())
    sandbox.create("stripe", "coupons", id="LOYAL20", percent_off=20, duration="forever", name="Loyal customers")
    return {name: price["id"] for name, price in zip(prices, created, strict=True)}
