"""Webhooks out of the sandbox: signed as the billers sign them, in the order of what happened, three tries each.

Off until an endpoint is set. One thread sends; nothing waits for it, and what it cannot keep up with is dropped and
counted. Times in signatures are real ones: who checks them does not know the sandbox's clock.
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

from sandbox.http import Doc, WrongRequestError

MOST_WAITING = 2_000
MOST_REMEMBERED = 500
TRIES = 3
PAUSES = (0.5, 2.0)  # seconds; Lago's own are 3 and 18 (lago.md 8), Stripe's hours
SECONDS = 5.0
DELIVERED = frozenset({200, 201, 202, 204})
BILLERS = ("stripe", "lago")


@dataclass(frozen=True, slots=True)
class Endpoint:
    url: str
    secret: str


@dataclass(slots=True)
class Delivery:
    """``status``: of the last answer; None: there was none yet."""

    biller: str
    id: str
    type: str
    endpoint: Endpoint
    body: bytes
    status: int | None = None
    tries: int = 0

    def document(self) -> Doc:
        return {"biller": self.biller, "id": self.id, "type": self.type, "status": self.status, "tries": self.tries}


@dataclass
class Webhooks:
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    dropped: int = 0

    def __post_init__(self) -> None:
        self._waiting: queue.Queue[Delivery | None] = queue.Queue(MOST_WAITING)
        self._sent: deque[Delivery] = deque(maxlen=MOST_REMEMBERED)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def set(self, wanted: Doc) -> None:
        """``{"stripe": {"url", "secret"}}``; null takes an endpoint away. What is not named stays."""
        for biller, endpoint in wanted.items():
            if biller not in BILLERS:
                raise WrongRequestError(biller, f"There is no biller {biller!r}.")
            if endpoint is None:
                self.endpoints.pop(biller, None)
                continue
            words = [endpoint.get(name) for name in ("url", "secret")] if isinstance(endpoint, dict) else [None]
            if not all(isinstance(word, str) and word for word in words):
                raise WrongRequestError(biller, f"{biller} takes an object with url and secret, or null.")
            self.endpoints[biller] = Endpoint(str(words[0]), str(words[1]))

    def document(self) -> Doc:
        """Endpoints without their secrets, and the last deliveries, oldest first."""
        return {
            "endpoints": {biller: endpoint.url for biller, endpoint in self.endpoints.items()},
            "deliveries": [delivery.document() for delivery in list(self._sent)],
            "waiting": self._waiting.qsize(),
            "dropped": self.dropped,
        }

    def stripe(self, event: Doc) -> None:
        self._send("stripe", event["id"], event["type"], lambda: event)

    def lago(self, kind: str, noun: str, organization: str, document: Callable[[], Doc]) -> None:
        """``document`` is only asked for where somebody listens."""
        self._send(
            "lago",
            str(uuid.uuid4()),
            kind,
            lambda: {
                "webhook_type": kind,
                "object_type": noun,
                "organization_id": organization,
                noun: document(),
            },
        )

    def clear(self) -> None:
        self.endpoints.clear()
        self._sent.clear()
        self.dropped = 0
        while not self._waiting.empty():
            try:
                self._waiting.get_nowait()
            except queue.Empty:
                return

    def close(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self.clear()
            self._waiting.put(None)
            self._thread.join(SECONDS * 2)

    def _send(self, biller: str, name: str, kind: str, document: Callable[[], Doc]) -> None:
        if (endpoint := self.endpoints.get(biller)) is None:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="sandbox-webhooks", daemon=True)
            self._thread.start()
        try:
            self._waiting.put_nowait(Delivery(biller, name, kind, endpoint, json.dumps(document()).encode()))
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        with httpx.Client(timeout=SECONDS, trust_env=False) as http:
            while (delivery := self._waiting.get()) is not None:
                self._sent.append(delivery)
                self._deliver(http, delivery)

    def _deliver(self, http: httpx.Client, delivery: Delivery) -> None:
        for number in range(TRIES):
            if self._stopping.is_set() or delivery.endpoint is not self.endpoints.get(delivery.biller):
                return
            delivery.tries += 1
            try:
                answer = http.post(delivery.endpoint.url, content=delivery.body, headers=_headers(delivery))
            except httpx.HTTPError:
                delivery.status = None
            else:
                delivery.status = answer.status_code
                if answer.status_code in DELIVERED:
                    return
            if number < len(PAUSES):
                self._stopping.wait(PAUSES[number])


def _headers(delivery: Delivery) -> dict[str, str]:
    secret = delivery.endpoint.secret.encode()
    if delivery.biller == "stripe":
        moment = str(int(time.time()))
        signed = hmac.new(secret, moment.encode() + b"." + delivery.body, hashlib.sha256).hexdigest()
        return {"Content-Type": "application/json", "Stripe-Signature": f"t={moment},v1={signed}"}
    digest = hmac.new(secret, delivery.body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "X-Lago-Signature": base64.b64encode(digest).decode(),
        "X-Lago-Signature-Algorithm": "hmac",
        "X-Lago-Unique-Key": delivery.id,
    }
