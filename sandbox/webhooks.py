"""The sandbox's webhooks: signed as the providers sign them, with three tries each.

They are sent in order and once, unless the endpoint asks for what both providers do as well: a share of them is lost
or doubled, and those that wait at the same time are shuffled.

The body of one of Lago's shows the object as it is at the moment of sending: it is written anew while it waits.

None are sent until an endpoint is set. One thread sends them and no request waits for it; if its queue is full, a
webhook is dropped and counted. Signatures contain real time, since the receiver does not know the sandbox's clock.
"""

import base64
import hashlib
import hmac
import json
import queue
import random
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
SHUFFLE_WAIT_SECONDS = 0.05
MAX_SHUFFLED_DELIVERIES = 50
DELIVERED_STATUSES = frozenset({200, 201, 202, 204})
WEBHOOK_PROVIDERS = ("stripe", "lago")


@dataclass(frozen=True, slots=True)
class SandboxEndpoint:
    """``lost`` and ``doubled`` are shares of the webhooks, from 0 to 1. ``events``: the types that are sent; ``None``:
    all.
    """

    url: str
    secret: str
    lost: float = 0.0
    doubled: float = 0.0
    shuffled: bool = False
    events: tuple[str, ...] | None = None
    disabled: bool = False

    def sends(self, event_type: str) -> bool:
        return not self.disabled and (self.events is None or event_type in self.events)


@dataclass(slots=True)
class SandboxDelivery:
    """``status`` is that of the last response; None: no response yet."""

    provider: str
    event_id: str
    event_type: str
    endpoint: SandboxEndpoint
    render: Callable[[], JsonDocument]
    body: bytes = b""
    status: int | None = None
    tries: int = 0

    def __post_init__(self) -> None:
        self.write()

    def write(self) -> None:
        self.body = json.dumps(self.render()).encode()

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
        self._unsent: dict[str, list[SandboxDelivery]] = {}
        self._sent: deque[SandboxDelivery] = deque(maxlen=MAX_LOGGED_DELIVERIES)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def configure(self, changes: JsonDocument) -> None:
        """``{"stripe": {"url", "secret", "lost", "doubled", "shuffled", "events", "disabled"}}``; null removes one.

        All but ``url`` and ``secret`` are optional.

        Providers that are not named are not changed.
        """
        for provider, endpoint in changes.items():
            if provider not in WEBHOOK_PROVIDERS:
                raise InvalidControlRequestError(provider, f"There is no provider {provider!r}.")
            if endpoint is None:
                self.endpoints.pop(provider, None)
                continue
            self.endpoints[provider] = _checked_endpoint(provider, endpoint)

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
        self, event_type: str, object_type: str, organization: str, object_id: str, document: Callable[[], JsonDocument]
    ) -> None:
        """``document`` is only called if an endpoint is set, and again if the object changes before it is sent."""
        # Here and not in the sending thread, which would read objects while a request changes them.
        unsent = [each for each in self._unsent.pop(object_id, []) if each.tries == 0]
        for each in unsent:
            each.write()
        delivery = self._enqueue(
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
        if delivery is None:
            return
        if len(self._unsent) >= MAX_QUEUED_DELIVERIES:
            self._unsent = {key: rows for key, rows in self._unsent.items() if rows[-1].tries == 0}
        self._unsent[object_id] = [*unsent, delivery]

    def clear(self) -> None:
        self.endpoints.clear()
        self._sent.clear()
        self._unsent.clear()
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

    def _enqueue(
        self, provider: str, event_id: str, event_type: str, render: Callable[[], JsonDocument]
    ) -> SandboxDelivery | None:
        endpoint = self.endpoints.get(provider)
        if endpoint is None or not endpoint.sends(event_type):
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sandbox-webhooks", daemon=True)
            self._thread.start()
        delivery = SandboxDelivery(provider, event_id, event_type, endpoint, render)
        try:
            self._queue.put_nowait(delivery)
        except queue.Full:
            self.dropped += 1
            return None
        return delivery

    def _run(self) -> None:
        with httpx.Client(timeout=DELIVERY_TIMEOUT_SECONDS, trust_env=False) as http:
            while (delivery := self._queue.get()) is not None:
                for each in self._waiting_with(delivery):
                    self._sent.append(each)
                    for _ in range(_copies(each)):
                        self._deliver(http, each)

    def _waiting_with(self, first: SandboxDelivery) -> list[SandboxDelivery]:
        """It and what else waits, in any order, if the endpoint asks for that."""
        if not first.endpoint.shuffled:
            return [first]
        self._stopping.wait(SHUFFLE_WAIT_SECONDS)
        found = [self._queue.get() for _ in range(min(self._queue.qsize(), MAX_SHUFFLED_DELIVERIES))]
        if None in found:  # the end of the queue
            self._queue.put(None)
        deliveries = [first, *(each for each in found if each is not None)]
        random.shuffle(deliveries)
        return deliveries

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


def _checked_endpoint(provider: str, sent: object) -> SandboxEndpoint:
    endpoint = sent if isinstance(sent, dict) else {}
    url, secret = endpoint.get("url"), endpoint.get("secret")
    shares = [endpoint.get(name, 0.0) for name in ("lost", "doubled")]
    if not (isinstance(url, str) and url and isinstance(secret, str) and secret):
        raise InvalidControlRequestError(provider, f"{provider} must be an object with url and secret, or null.")
    if not all(isinstance(share, int | float) and 0 <= share <= 1 for share in shares):
        raise InvalidControlRequestError(provider, f"{provider}: lost and doubled must be between 0 and 1.")
    events = endpoint.get("events")
    if events is not None and not (isinstance(events, list | tuple) and all(isinstance(each, str) for each in events)):
        raise InvalidControlRequestError(provider, f"{provider}: events must be a list of event types, or null.")
    return SandboxEndpoint(
        url,
        secret,
        float(shares[0]),
        float(shares[1]),
        endpoint.get("shuffled") is True,
        None if events is None else tuple(events),
        endpoint.get("disabled") is True,
    )


def _copies(delivery: SandboxDelivery) -> int:
    chosen = random.random()  # noqa: S311 - no secret
    if chosen < delivery.endpoint.lost:
        return 0
    return 2 if chosen > 1 - delivery.endpoint.doubled else 1


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
