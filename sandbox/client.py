"""Typed Python client of the sandbox's control routes (control.py).

A request that the sandbox rejects raises ``SandboxError`` with its message.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from sandbox.http import JsonDocument

CONTROL_TIMEOUT_SECONDS = 30.0


class SandboxError(Exception):
    """The sandbox rejected a control request."""


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One request to a simulated provider; ``status`` is None if it was dropped without a response."""

    number: int
    provider: str
    operation: str
    method: str
    path: str
    query: str
    body: str
    at: float
    status: int | None
    idempotency_key: str | None
    replayed: bool
    fault: str | None


@dataclass(frozen=True, slots=True)
class ProviderCallCounts:
    """Calls to one provider: all, by operation (``POST /v1/customers``), by status (``200``, ``dropped``)."""

    total: int
    operations: Mapping[str, int]
    statuses: Mapping[str, int]

    def of(self, operation: str) -> int:
        return self.operations.get(operation, 0)


@dataclass(frozen=True, slots=True)
class CallCounters:
    stripe: ProviderCallCounts
    lago: ProviderCallCounts


class SandboxClient:
    def __init__(self, url: str) -> None:
        # The environment is ignored: a proxy named in it must not sit between a test and its loopback server.
        self._http = httpx.Client(base_url=url, timeout=CONTROL_TIMEOUT_SECONDS, trust_env=False)

    def clock(self) -> datetime:
        return datetime.fromisoformat(self._get("/clock")["now"])

    def advance(self, by: float | timedelta) -> datetime:
        """Move the clock forward by seconds or a timedelta; everything that becomes due happens, in order."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        return datetime.fromisoformat(self._send("POST", "/clock", {"advance": seconds})["now"])

    def set_clock(self, now: datetime) -> datetime:
        """Set the clock; time runs on from there. Setting it back undoes nothing."""
        return datetime.fromisoformat(self._send("POST", "/clock", {"set": now.isoformat()})["now"])

    def add_fault(  # noqa: PLR0913  # a fault has this many fields; see faults.py
        self,
        provider: str,
        operation: str,
        kind: str,
        *,
        times: int = 1,
        skip: int = 0,
        match: str = "",
        seconds: float = 1.0,
        reason: str = "",
        retry_after: int | None = None,
        headers: bool = True,
        status: int = 500,
        body: str = "",
    ) -> int:
        """``add_fault("stripe", "POST /v1/customers", "lost_answer")``; ``times=0`` repeats forever (see faults.py)."""
        fault = {
            "provider": provider,
            "operation": operation,
            "kind": kind,
            "times": times,
            "skip": skip,
            "match": match,
            "seconds": seconds,
            "reason": reason,
            "retry_after": retry_after,
            "headers": headers,
            "status": status,
            "body": body,
        }
        return int(self._send("POST", "/faults", fault)["id"])

    def faults(self) -> list[JsonDocument]:
        """The faults that are not used up."""
        return list(self._get("/faults"))

    def remove_fault(self, fault_id: int) -> None:
        self._send("DELETE", f"/faults/{fault_id}")

    def clear_faults(self) -> None:
        self._send("DELETE", "/faults")

    def calls(self, provider: str | None = None) -> list[LoggedCall]:
        """Oldest first; the last 20,000."""
        query = "" if provider is None else f"?provider={provider}"
        return [LoggedCall(**call) for call in self._get(f"/calls{query}")]

    def counters(self) -> CallCounters:
        counts = self._get("/counters")
        return CallCounters(stripe=ProviderCallCounts(**counts["stripe"]), lago=ProviderCallCounts(**counts["lago"]))

    def reset_calls(self) -> None:
        self._send("DELETE", "/calls")

    def preload_stripe_customers(self, customers: Iterable[JsonDocument]) -> list[JsonDocument]:
        """Customers created by hand; ``id`` and ``created`` may be chosen: ``[{"id": "cus_1", "name": "Acme"}]``."""
        return self._create("stripe/customers", customers)

    def preload_stripe_prices(self, prices: Iterable[JsonDocument]) -> list[JsonDocument]:
        """``[{"lookup_key", "currency", "unit_amount", "recurring": {"interval"}, "product_data": {"name"}}]``"""
        return self._create("stripe/prices", prices)

    def preload_stripe_subscription(self, customer: str, price: str, **fields: Any) -> JsonDocument:  # noqa: ANN401
        """A subscription that billing-sync did not create, billed by invoice."""
        return self._create("stripe/subscriptions", [{"customer": customer, "price": price, **fields}])[0]

    def preload_stripe_subscriptions(self, subscriptions: Iterable[JsonDocument]) -> list[JsonDocument]:
        """``[{"customer", "price"}]``, or ``items`` as Stripe takes them; billed by invoice if nothing else is said."""
        return self._create("stripe/subscriptions", subscriptions)

    def preload_lago_customers(self, customers: Iterable[JsonDocument]) -> list[JsonDocument]:
        """Customers created by hand; ``lago_id`` may be chosen: ``[{"external_id": "org_1", "name": "Acme"}]``."""
        return self._create("lago/customers", customers)

    def preload_lago_plans(self, plans: Iterable[JsonDocument]) -> list[JsonDocument]:
        return self._create("lago/plans", plans)

    def preload_lago_subscription(
        self,
        external_customer_id: str,
        plan_code: str,
        external_id: str,
        **fields: Any,  # noqa: ANN401
    ) -> JsonDocument:
        required = {"external_customer_id": external_customer_id, "plan_code": plan_code, "external_id": external_id}
        return self._create("lago/subscriptions", [{**required, **fields}])[0]

    def preload_lago_subscriptions(self, subscriptions: Iterable[JsonDocument]) -> list[JsonDocument]:
        return self._create("lago/subscriptions", subscriptions)

    def preload_applied_coupons(self, coupons: Iterable[JsonDocument]) -> list[JsonDocument]:
        return self._create("lago/applied_coupons", coupons)

    def patch(self, provider: str, object_type: str, key: str, **fields: Any) -> JsonDocument:  # noqa: ANN401
        """Change an object as in the dashboard: ``patch("stripe", "customers", "cus_1", name="Other")``."""
        return dict(self._send("PATCH", f"/{provider}/{object_type}/{quote(key, safe='')}", fields))

    def delete(self, provider: str, object_type: str, key: str) -> JsonDocument:
        """Delete an object as in the dashboard. Lago's key is the external id."""
        return dict(self._send("DELETE", f"/{provider}/{object_type}/{quote(key, safe='')}"))

    def settings(self, **changes: Any) -> JsonDocument:  # noqa: ANN401
        """All settings (settings.py) after the changes."""
        return dict(self._send("POST", "/settings", changes) if changes else self._get("/settings"))

    def set_webhooks(self, **endpoints: JsonDocument | None) -> JsonDocument:
        """``set_webhooks(stripe={"url": …, "secret": …})``, and what sandbox/webhooks.py lists; None removes one."""
        return dict(self._send("POST", "/webhooks", endpoints))

    def webhooks(self) -> JsonDocument:
        """``{"endpoints", "deliveries": [{"provider", "id", "type", "status", "tries"}], "waiting", "dropped"}``."""
        return dict(self._get("/webhooks"))

    def create(self, provider: str, object_type: str, **fields: Any) -> JsonDocument:  # noqa: ANN401
        """Create an object as in the dashboard: ``create("stripe", "invoices", customer="cus_1", status="failed")``."""
        return self._create(f"{provider}/{object_type}", [fields])[0]

    def state(self) -> JsonDocument:
        """``{"stripe": {"customers", "subscriptions", "products", "prices"}, "lago": {"customers", "subscriptions",
        "plans"}, "charges"}``: lists of the providers' documents, sorted by id. Equal states mean nothing changed."""
        return dict(self._get("/state"))

    def summary(self) -> JsonDocument:
        """Both providers without ids and times: equal for two sandboxes with the same result."""
        return dict(self._get("/outline"))

    def charges(self) -> list[JsonDocument]:
        """The charges that the providers would have made, oldest first (ledger.py)."""
        return list(self.state()["charges"])

    def reset(self) -> None:
        self._send("POST", "/reset")

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _create(self, path: str, objects: Iterable[JsonDocument]) -> list[JsonDocument]:
        return list(self._send("POST", f"/{path}", list(objects)))

    def _get(self, path: str) -> Any:  # noqa: ANN401  # JSON; the methods above convert it
        return self._send("GET", path)

    def _send(self, method: str, path: str, body: JsonDocument | list[JsonDocument] | None = None) -> Any:  # noqa: ANN401
        response = self._http.request(method, f"/sandbox{path}", json=body)
        if response.is_error:
            raise SandboxError(_error_message(response))
        return response.json()


def _error_message(response: httpx.Response) -> str:
    if response.headers.get("content-type", "").startswith("application/json"):
        return str(response.json().get("error", response.text))
    return f"{response.status_code} {response.text[:200]}"
