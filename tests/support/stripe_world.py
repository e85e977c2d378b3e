"""Our Stripe provider with the sandbox's Stripe: its objects, the requests, the charges and the faults.

Every request that the provider sends is checked against Stripe's official document, if that is next to the checkout.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx

from core.catalog.plans import EndingPolicy
from providers.stripe.provider import StripeProvider
from sandbox.client import SandboxClient
from sandbox.http import Exchange
from sandbox.server import Sandbox
from tests import contract
from tests.support.in_memory_attempt import InMemoryAttempt
from tests.support.waiting import PATIENCE_SECONDS, until

T = TypeVar("T")

PLANS = {"founders_friend": 0, "starter": 1900, "professional": 4900, "enterprise": 9900}
ENDING = EndingPolicy(lago_invoice="generate", lago_credit_note="credit", stripe_invoice_now=True, stripe_prorate=True)
SPY = "X-Test-Spy"  # marks the test's own requests to Stripe, which our provider did not send


class StripeCallRecorder:
    """Observer of the sandbox that records the requests of our provider."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.violations: list[str] = []

    def clear(self) -> None:
        self.exchanges.clear()
        self.violations.clear()

    def __call__(self, exchange: Exchange) -> None:
        if SPY.lower() in exchange.headers:
            return
        self.exchanges.append(exchange)
        if contract.available():
            self.violations += contract.violations(
                "stripe",
                exchange.method,
                exchange.path,
                exchange.query,
                exchange.body,
                exchange.headers.get("content-type", ""),
            )


@contextlib.contextmanager
def running() -> Iterator[tuple[Sandbox, StripeCallRecorder]]:
    """One sandbox for many tests, with its recorder."""
    recorder = StripeCallRecorder()
    with Sandbox(limits=False, observer=recorder) as sandbox:
        yield sandbox, recorder


@contextlib.contextmanager
def empty_world(sandbox: Sandbox, recorder: StripeCallRecorder) -> Iterator[StripeWorld]:
    """An empty sandbox without recorded requests. At the end, every request must be one that Stripe documents."""
    world = StripeWorld(sandbox, recorder)
    try:
        yield world
    finally:
        world.close()
    assert recorder.violations == []


class StripeWorld:
    def __init__(self, sandbox: Sandbox, recorder: StripeCallRecorder) -> None:
        self._recorder = recorder
        self._ahead = timedelta(0)
        recorder.clear()
        self._control = SandboxClient(sandbox.url)
        self._control.reset()
        self._spy = httpx.Client(
            base_url=sandbox.url, headers={SPY: "1", "Authorization": "Bearer sk_test_spy"}, trust_env=False
        )
        self.provider = StripeProvider("sk_test_provider", sandbox.url, ending=ENDING, clock=self.now)
        # For a call that is to meet its deadline.
        self.hasty = StripeProvider("sk_test_provider", sandbox.url, ending=ENDING, timeout=2.0, clock=self.now)

    def close(self) -> None:
        self.provider.close()
        self.hasty.close()
        self._spy.close()
        self._control.close()

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def advance(self, step: timedelta) -> None:
        """Move the sandbox's clock and ours together."""
        self._ahead += step
        self._control.advance(step)

    def fault(self, operation: str, kind: str, *, times: int = 1, skip: int = 0, seconds: float = 0.3) -> None:
        self._control.add_fault("stripe", operation, kind, times=times, skip=skip, seconds=seconds)

    def forgive(self) -> None:
        """No fault is left."""
        self._control.clear_faults()

    def calls(self) -> list[str]:
        return [exchange.operation for exchange in self._recorder.exchanges]

    def queries(self, operation: str) -> list[str]:
        return [exchange.query for exchange in self._recorder.exchanges if exchange.operation == operation]

    def replays(self) -> int:
        return sum(call.replayed for call in self._control.calls("stripe"))

    def clear_calls(self) -> None:
        self._recorder.exchanges.clear()

    def charged(self) -> int:
        """The sum of what Stripe charged and credited, in minor units."""
        return sum(int(entry["amount"]) for entry in self._control.charges() if entry["provider"] == "stripe")

    def sell_all(self) -> None:
        self._control.preload_stripe_prices(
            {
                "lookup_key": code,
                "currency": "usd",
                "unit_amount": amount,
                "recurring": {"interval": "month"},
                "product_data": {"name": code},
            }
            for code, amount in PLANS.items()
        )

    def price(self, lookup_key: str) -> str:
        return str(self._get("/v1/prices", {"lookup_keys[0]": lookup_key})["data"][0]["id"])

    def customers(self) -> list[dict[str, Any]]:
        return list(self._get("/v1/customers", {"limit": "100"})["data"])

    def subscriptions(self, customer: str) -> list[dict[str, Any]]:
        return list(self._get("/v1/subscriptions", {"customer": customer, "status": "all"})["data"])

    def invoices(self, customer: str) -> list[dict[str, Any]]:
        """Newest first."""
        return list(self._get("/v1/invoices", {"customer": customer})["data"])

    def post(self, path: str, form: dict[str, str]) -> dict[str, Any]:
        return self._document(self._spy.post(path, data=form))

    def delete(self, path: str) -> None:
        self._document(self._spy.delete(path))

    def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        return self._document(self._spy.get(path, params=query))

    @staticmethod
    def _document(answer: httpx.Response) -> dict[str, Any]:
        assert answer.status_code == httpx.codes.OK, answer.text
        document: dict[str, Any] = answer.json()
        return document

    @staticmethod
    def in_thread(work: Callable[[], T]) -> Callable[[], T]:
        """Start ``work`` now; calling the result waits for it."""
        done: list[T] = []
        thread = threading.Thread(target=lambda: done.append(work()))
        thread.start()

        def result() -> T:
            thread.join(PATIENCE_SECONDS)
            return done[0]

        return result

    @staticmethod
    def wait_until_written(attempt: InMemoryAttempt) -> None:
        until(lambda: attempt.stored is not None, "the intent")
        time.sleep(0.1)  # the request is sent soon after its intent is written
