"""Lago behind ``core.ports.provider.BillingProvider``: one customer and one subscription per organization.

Both have the organization's id, or the ids that they had before they were adopted. Every method may be repeated after
a crash, a timeout or a lost response and ends in the same state: Lago's writes are absolute under an ``external_id``
(lago.md 9), so no intent is recorded.
"""

from __future__ import annotations

from collections.abc import Sequence

from lago_python_client.base_model import BaseResponseModel

from core.catalog.plans import EndingPolicy
from core.ports.provider import AttemptContext, Customer, Subscription
from core.ports.registered_endpoints import RegisteredEndpoint
from core.ports.spec import Account, CustomerSpec, LastKnown, PriceSpec, Provider, SubscriptionSpec, key_suffix
from providers.lago import webhook_endpoints
from providers.lago.client import LagoClient, LagoRequest
from providers.lago.customers import LagoCustomers
from providers.lago.inventory import LagoInventory
from providers.lago.payers import LagoPayers
from providers.lago.plans import LagoPlans
from providers.lago.state_reader import LagoStateReader
from providers.lago.subscriptions import LagoSubscriptions
from providers.lago.usage_and_preview import LagoUsageAndPreview
from providers.transport.permits import READ_ONLY, UnlimitedPermits


class LagoOrganization(BaseResponseModel):
    """Lago's organization. The SDK's model drops its id (lago.md 1.3)."""

    lago_id: str


class LagoProvider:
    """Build one in each process, after the fork. ``timeout`` is in seconds, for a whole call.

    ``payment_provider_code`` is Lago's code of its Stripe connection. If it is None, no customer is linked to Stripe.
    ``payment_methods`` are given to a customer when it is linked for the first time. Empty: Lago's default.
    ``may_write``: whether ``create_price`` may; an attempt says by itself whether it may write.
    ``billing_entity_code``: of new customers. None: Lago's default.
    """

    def __init__(  # noqa: PLR0913 - one for each setting of Lago
        self,
        api_url: str,
        api_key: str,
        *,
        payment_provider_code: str | None,
        payment_methods: Sequence[str] = (),
        billing_entity_code: str | None = None,
        ending: EndingPolicy,
        timeout: float = 10.0,
        may_write: bool = True,
    ) -> None:
        self._client = LagoClient(api_url, api_key, timeout)
        self._key_suffix = key_suffix(api_key)
        self.reader = LagoStateReader(self._client)
        self.usage_and_preview = LagoUsageAndPreview(self._client)
        self._plans = LagoPlans(self._client, UnlimitedPermits(may_write))
        self._customers = LagoCustomers(self._client, payment_provider_code, payment_methods, billing_entity_code)
        self._payers = LagoPayers(self._client)
        self._subscriptions = LagoSubscriptions(self._client, ending, self._plans)

    @property
    def provider(self) -> Provider:
        return "lago"

    @property
    def inventory(self) -> LagoInventory:
        """A new one at each use."""
        return LagoInventory(self._client)

    def ensure_customer(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        return self._customers.ensure(spec, last_known, attempt)

    def ensure_subscription(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        return self._subscriptions.ensure(spec, last_known, attempt)

    def refuse_arranged_end(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        """Where Stripe charges from now on, the subscription in Lago goes on without a payer."""

    def end_subscription(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        self._subscriptions.end(last_known, org_id, attempt)

    def has_our_marks(self, customer_id: str, org_id: str, attempt: AttemptContext) -> bool:  # noqa: ARG002 - nothing is marked
        return False

    def write_marks(self, last_known: LastKnown, org_id: str, plan_code: str | None, attempt: AttemptContext) -> None:
        """The metadata of a customer is a list that replaces that of others (lago.md 3.3), so nothing is marked."""

    def remove_marks(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        """Nothing is marked."""

    def remove_payer(self, last_known: LastKnown, org_id: str, attempt: AttemptContext, *, collects: bool) -> None:
        self._payers.remove(last_known, org_id, attempt, collects=collects)

    def find_price(self, code: str) -> PriceSpec | None:
        return self._plans.find_price(code)

    def create_price(self, price: PriceSpec) -> None:
        self._plans.create_price(price)

    def fetch_account(self) -> Account:
        """The Lago organization of the key, which belongs to exactly one (lago.md 1.1). One call."""
        request = LagoRequest(
            context="the organization of the key",
            method="GET",
            path=("organizations",),
            root="organization",
            response_type=LagoOrganization,
        )
        return Account(id=self._client.send(request, READ_ONLY).lago_id, key_suffix=self._key_suffix)

    def webhook_endpoints(self) -> list[RegisteredEndpoint]:
        """Those that are registered in the Lago organization of the key. Raises ``ProviderError``."""
        return webhook_endpoints.list_endpoints(self._client)

    def close(self) -> None:
        self._client.close()
