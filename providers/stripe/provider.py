"""Stripe behind ``core.ports.provider.BillingProvider``: the customer, and the subscription if Stripe charges."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import stripe

from core.catalog.plans import EndingPolicy
from core.ports.observed import ObservedCredit
from core.ports.provider import AttemptContext, Customer, Subscription
from core.ports.registered_endpoints import RegisteredEndpoint
from core.ports.spec import Account, CustomerSpec, LastKnown, PriceSpec, Provider, SubscriptionSpec, key_suffix
from providers.stripe import errors, rights, webhook_endpoints
from providers.stripe.client import StripeClient
from providers.stripe.collection import DEFAULT_COLLECTION, CollectionPolicy
from providers.stripe.customers import StripeCustomers
from providers.stripe.events import StripeEventReader
from providers.stripe.inventory import StripeInventory
from providers.stripe.invoice_preview import StripeInvoicePreviewer
from providers.stripe.marks import StripeMarks
from providers.stripe.prices import StripePrices
from providers.stripe.responses import StripeResource
from providers.stripe.rights import MissingRight
from providers.stripe.state_reader import StripeStateReader
from providers.stripe.subscriptions import StripeSubscriptions
from providers.transport.permits import READ_ONLY, UnlimitedPermits

_LIVEMODE_BY_KEY_PREFIX = {"live_": True, "test_": False}
STRIPE_CALL_SECONDS = 20.0  # for one request, up to the last byte of the response


def _utc_now() -> datetime:
    return datetime.now(UTC)


class StripeProvider:
    """Build one in each process, after the fork. Threads share it. Close it when the process ends.

    ``api_base`` has no default, so that no test and no staging system reaches live systems by accident.
    ``account_id``: as in ``StripeClient``. ``may_write``: whether ``create_price`` may; an attempt says by itself
    whether it may write.
    """

    provider: Provider = "stripe"

    def __init__(  # noqa: PLR0913 - the settings of one provider, all named
        self,
        secret_key: str,
        api_base: str,
        *,
        ending: EndingPolicy,
        collection: CollectionPolicy = DEFAULT_COLLECTION,
        timeout: float = STRIPE_CALL_SECONDS,
        account_id: str | None = None,
        may_write: bool = True,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._client = StripeClient(secret_key, api_base, timeout, account_id)
        self._key_suffix = key_suffix(secret_key)
        self._livemode = _LIVEMODE_BY_KEY_PREFIX.get(secret_key[3:8]) if secret_key.startswith(("sk_", "rk_")) else None
        self.reader = StripeStateReader(self._client)
        self.inventory = StripeInventory(self._client)
        self.event_reader = StripeEventReader(self._client)
        self._prices = StripePrices(self._client, UnlimitedPermits(may_write))
        self.invoice_previewer = StripeInvoicePreviewer(self._client, self._prices)
        self._marks = StripeMarks(self._client)
        self._customers = StripeCustomers(self._client, clock)
        self._subscriptions = StripeSubscriptions(self._client, self._prices, ending, collection, clock)

    def ensure_customer(self, spec: CustomerSpec, last_known: LastKnown, attempt: AttemptContext) -> Customer:
        return self._customers.ensure(spec, last_known, attempt)

    def ensure_subscription(
        self, spec: SubscriptionSpec, last_known: LastKnown, attempt: AttemptContext
    ) -> Subscription:
        return self._subscriptions.ensure(spec, last_known, attempt)

    def refuse_arranged_end(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        self._subscriptions.refuse_arranged_end(last_known, org_id, attempt)

    def end_subscription(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> ObservedCredit | None:
        return self._subscriptions.end(last_known, org_id, attempt)

    def has_our_marks(self, customer_id: str, org_id: str, attempt: AttemptContext) -> bool:
        return self._marks.has(customer_id, org_id, attempt)

    def write_marks(self, last_known: LastKnown, org_id: str, plan_code: str | None, attempt: AttemptContext) -> None:
        self._marks.write(last_known, org_id, plan_code, attempt)

    def remove_marks(self, last_known: LastKnown, org_id: str, attempt: AttemptContext) -> None:
        self._marks.remove(last_known, org_id, attempt)

    def remove_payer(self, last_known: LastKnown, org_id: str, attempt: AttemptContext, *, collects: bool) -> None:
        """There is none beside the customer."""

    def find_price(self, code: str) -> PriceSpec | None:
        return self._prices.find_price(code)

    def create_price(self, price: PriceSpec) -> None:
        self._prices.create_price(price)

    def fetch_account(self) -> Account:
        """The account of the key. Both modes have one account id, so the key's prefix shows the mode. One call.

        A restricted key that may not read it has the account that Stripe names in the refusal.
        """

        def read_account() -> stripe.StripeObject:
            try:
                return self._client.v1.accounts.retrieve_current()
            except stripe.PermissionError as refused:
                account_id = errors.account_of_refusal(refused)
                if account_id is None:
                    raise
            return stripe.StripeObject.construct_from({"id": account_id}, None)

        account = self._client.send(
            READ_ONLY,
            "GET /v1/account",
            "read the account",
            read_account,
            StripeResource,
        )
        return Account(id=account.id, livemode=self._livemode, key_suffix=self._key_suffix)

    def webhook_endpoints(self) -> list[RegisteredEndpoint]:
        """Those that are registered in the account and mode of the key. Raises ``ProviderError``."""
        return webhook_endpoints.list_endpoints(self._client)

    def missing_rights(self) -> list[MissingRight]:
        """The rights that a restricted key cannot even read with. Sends one read for each. Raises ``ProviderError``."""
        return rights.missing_rights(self._client)

    def close(self) -> None:
        self._client.close()
