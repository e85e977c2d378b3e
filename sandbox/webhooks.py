"""The sandbox's webhooks: signed as the providers sign them, in order, with three tries each.

None are sent until an endpoint is set. One thread sends them and no request waits for it; if its queue is full, a
webhook is dropped and counted. Signatures contain real time, since the receiver does not know the sandbox's clock.
"""

import base64
import hashlib
import hmac
import json
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx

from sandbox.http import InvalidControlRequestError, JsonDocument

MAX_QUEUED_DELIVERIES = 2_000
MAX_LOGGED_DELIVERIES = 500
MAX_DELIVERY_TRIES = 3
DELIVERY_PAUSES_SECONDS = (0.5, 2.0)  # Lago's own are 3 and 18 seconds (lago.md 8), Stripe's are hours
DELIVERY_TIMEOUT_SECONDS = 5.0
DELIVERED_STATUSES = frozenset({200, 201, 202, 204})
WEBHOOK_PROVIDERS = ("stripe", "lago")


@dataclass(frozen=True, slots=True)
class SandboxEndpoint:
    url: str
    secret: str


@dataclass(slots=True)
class SandboxDelivery:
    """``status`` is that of the last response; None: no response yet."""

    provider: str
    event_id: str
    event_type: str
    endpoint: SandboxEndpoint
    body: bytes
    status: int | None = None
    tries: int = 0

    def document(self) -> JsonDocument:
        return {
            "provider": self.provider,
            "id": self.event_id,
            "type": self.event_type,
            "status": self.status,
            "tries": self.tries,
        }


@dataclass
class WebhookSender:
    endpoints: dict[str, SandboxEndpoint] = field(default_factory=dict)
    dropped: int = 0

    def __post_init__(self) -> None:
        self._queue: queue.Queue[SandboxDelivery | None] = queue.Queue(MAX_QUEUED_DELIVERIES)
        self._sent: deque[SandboxDelivery] = deque(maxlen=MAX_LOGGED_DELIVERIES)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def configure(self, changes: JsonDocument) -> None:
        """``{"stripe": {"url", "secret"}}``; null removes an endpoint. Providers that are not named are not changed."""
        for provider, endpoint in changes.items():
            if provider not in WEBHOOK_PROVIDERS:
                raise InvalidControlRequestError(provider, f"There is no provider {provider!r}.")
            if endpoint is None:
                self.endpoints.pop(provider, None)
                continue
            values = [endpoint.get(name) for name in ("url", "secret")] if isinstance(endpoint, dict) else [None]
            if not all(isinstance(value, str) and value for value in values):
                raise InvalidControlRequestError(
                    provider, f"{provider} must be an object with url and secret, or null."
                )
            self.endpoints[provider] = SandboxEndpoint(str(values[0]), str(values[1]))

    def document(self) -> JsonDocument:
        """Endpoints without their secrets, and the last deliveries, oldest first."""
        return {
            "endpoints": {provider: endpoint.url for provider, endpoint in self.endpoints.items()},
            "deliveries": [delivery.document() for delivery in list(self._sent)],
            "waiting": self._queue.qsize(),
            "dropped": self.dropped,
        }

    def send_stripe(self, event: JsonDocument) -> None:
        self._enqueue("stripe", event["id"], event["type"], lambda: event)

    def send_lago(
        self, event_type: str, object_type: str, organization: str, document: Callable[[], JsonDocument]
    ) -> None:
        """``document`` is only called if an endpoint is set."""
        self._enqueue(
            "lago",
            str(uuid.uuid4()),
            event_type,
            lambda: {
                "webhook_type": event_type,
                "object_type": object_type,
                "organization_id": organization,
                object_type: document(),
            },
        )

    def clear(self) -> None:
        self.endpoints.clear()
        self._sent.clear()
        self.dropped = 0
        while not self._queue.empty():
            try:
                self._queue.get_nowait()
            except queue.Empty:
                return

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self.clear()
            self._queue.put(None)
            self._thread.join(DELIVERY_TIMEOUT_SECONDS * 2)

    def _enqueue(self, provider: str, event_id: str, event_type: str, document: Callable[[], JsonDocument]) -> None:
        if (endpoint := self.endpoints.get(provider)) is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sandbox-webhooks", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(
                SandboxDelivery(provider, event_id, event_type, endpoint, json.dumps(document()).encode())
            )
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        with httpx.Client(timeout=DELIVERY_TIMEOUT_SECONDS, trust_env=False) as http:
            while (delivery := self._queue.get()) is not None:
                self._sent.append(delivery)
                self._deliver(http, delivery)

    def _deliver(self, http: httpx.Client, delivery: SandboxDelivery) -> None:
        for attempt in range(MAX_DELIVERY_TRIES):
            if self._stopping.is_set() or delivery.endpoint is not self.endpoints.get(delivery.provider):
                return
            delivery.tries += 1
            try:
                response = http.post(delivery.endpoint.url, content=delivery.body, headers=_headers(delivery))
            except httpx.HTTPError:
                delivery.status = None
            else:
                delivery.status = response.status_code
                if response.status_code in DELIVERED_STATUSES:
                    return
            if attempt < len(DELIVERY_PAUSES_SECONDS):
                self._stopping.wait(DELIVERY_PAUSES_SECONDS[attempt])


def _headers(delivery: SandboxDelivery) -> dict[str, str]:
    secret = delivery.endpoint.secret.encode()
    if delivery.provider == "stripe":
        timestamp = str(int(time.time()))
        signed = hmac.new(secret, timestamp.encode() + b"." + delivery.body, hashlib.sha256).hexdigest()
        return {"Content-Type": "application/json", "Stripe-Signature": f"t={timestamp},v1={signed}"}
    digest = hmac.new(secret, delivery.body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "X-Lago-Signature": base64.b64encode(digest).decode(),
        "X-Lago-Signature-Algorithm": "hmac",
        "X-Lago-Unique-Key": delivery.event_id,
    }
