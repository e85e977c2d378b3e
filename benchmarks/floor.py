"""The bare calls of a rename, by our own provider clients in a loop, without a queue or a database.

    python -m benchmarks.floor STUB_URL CHANGES

It prints "ready", starts when it reads a line, and prints "done".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from uuid import NAMESPACE_URL, uuid4, uuid5

from core.catalog import plans
from core.common.json_types import Json
from core.ports.planned import PaymentChange, PlannedStep
from core.ports.provider import Intent
from core.ports.spec import CustomerSpec, LastKnown
from providers.lago.provider import LagoProvider
from providers.stripe.provider import StripeProvider


class UnlimitedAttempt:
    """An attempt without a rate limit whose lease never ends. A rename records no intent."""

    intent: Intent | None = None
    database_id = "benchmark"
    may_write = True

    def before_change(
        self, describe: Callable[[], Iterable[PlannedStep]], payment: PaymentChange | None = None
    ) -> None:
        """It does not plan."""

    def acquire_permit_ahead(self, operation: str) -> None:
        """The permit is always there."""

    def before_request(self, operation: str) -> None:
        """The lease is never lost."""

    def record_intent(self, operation: str, body: Mapping[str, Json]) -> Intent:
        raise NotImplementedError

    def resend_intent(self) -> Intent:
        raise NotImplementedError

    def after_response(self, request_id: str | None) -> None:
        pass

    def record_no_older_customer(self) -> None:
        return

    def record_subscription_request(self) -> None:
        raise NotImplementedError


def main(stub_url: str, changes: int) -> None:
    ending = plans.load().ending
    stripe = StripeProvider("sk_test_floor", stub_url, ending=ending)
    lago = LagoProvider(stub_url, "floor", payment_provider_code=None, ending=ending)
    attempt = UnlimitedAttempt()
    _write_line("ready")
    sys.stdin.readline()
    for _ in range(changes):
        org_id = f"org_{uuid4()}"
        spec = CustomerSpec(org_id=org_id, name=f"Renamed {org_id}")
        customer_id = f"cus_{org_id.replace('-', '')}"
        stripe.ensure_customer(spec, LastKnown(customer_id=customer_id, confirmed=True), attempt)
        lago.ensure_customer(spec, LastKnown(customer_id=str(uuid5(NAMESPACE_URL, org_id)), confirmed=True), attempt)
    _write_line("done")
    stripe.close()
    lago.close()


def _write_line(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
