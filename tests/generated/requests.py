"""Requests to the API, generated from a seed and the API's own document: right ones, mutated ones, and wild ones.

Request number n is the same in each run of a seed, except for ids that the system made up. Nobody waits for long, and
no address outside this machine is named.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from core.common.json_types import Json
from tests.generated.http_client import GeneratedRequest
from tests.generated.messages import DEEP_HTTP_SOURCE, MessageGenerator, deepened
from tests.generated.schema_values import SchemaValues
from tests.generated.values import encoded, mutated, nested_text, odd_text, odd_value

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
ODD_METHODS: Final = ("HEAD", "OPTIONS", "TRACE", "FOO", "get", "CONNECT")
WAITS: Final = ("0s", "0", "0s", "1s", "-1s", "31s", "1e9s", "soon", "5 s", "\u0661s")
# Delivered to by the worker, so none may exist.
ENDPOINT_URLS: Final = (
    *(
        "https://hooks.invalid/a",
        "https://hooks.invalid",
        "http://127.0.0.1:9/x",
        "https://[::1]/",
        "https://10.0.0.1/",
    ),
    *("ftp://hooks.invalid", "https://user:pass@hooks.invalid/", "https://xn--.invalid", "//", "https://h.invalid:0/"),
    *(
        "https://h.invalid:99999/",
        "https://é.invalid",
        "https://hooks.invalid/" + "a" * 3_000,
        "https://hooks\x00.invalid",
    ),
)
CONTENT_TYPES: Final = (
    *("application/json", "application/cloudevents+json", "application/cloudevents-batch+json", "text/plain", "", "/"),
    *("application/json; charset=utf-16", "application/x-www-form-urlencoded", "multipart/form-data", "a" * 300),
    *("multipart/form-data; boundary=", "application/json;charset=\xff", "application/problem+json", "*/*"),
)
WILD_BODIES: Final = (
    *(b"", b"{", b"null", b"[]", b"{}", b'"text"', b"NaN", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"\x00", b"0" * 5_000),
    *('{"name": "x"}'.encode("utf-16"), b'{"name": "\xff"}', b'{"name": "\\ud800"}', b"[" * 100_000, b'{"a":' * 5_000),
    *(
        nested_text(900, as_object=True).encode(),
        nested_text(960, as_object=False).encode(),
        b"9" * 4_301,
        b" " * 70_000,
    ),
    *(
        b'{"name": "a", "name": "b"}',
        b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--",
        b"a=1&b=2",
        b"-Infinity",
    ),
    b"x" * (2**20 + 1),
)
# Whose requests get furthest.
FREQUENT: Final = {"owner": 8, "service": 8, "invited": 2}
LEARNT: Final = {"next_cursor": "cursor", "org_id": "org_id"}
MOST_LEARNT: Final = 300
ODD_HEADERS: Final = (
    "X-Request-ID",
    "Accept",
    "Cookie",
    "X-Organization-ID",
    "Idempotency-Key",
    "Authorization",
    "Host",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecrets:
    stripe: str
    lago: str


class RequestGenerator:
    """``callers``: the value of ``Authorization`` by caller; empty: none is sent."""

    def __init__(
        self,
        seed: int,
        document: Mapping[str, Any],
        ids: Mapping[str, list[str]],
        callers: Mapping[str, str],
        secrets: WebhookSecrets,
    ) -> None:
        self._seed, self._document, self._ids = seed, document, ids
        self._values = SchemaValues(document, ids)
        self._callers, self._secrets = callers, secrets
        self._operations = [
            (method.upper(), path, operation)
            for path, methods in document["paths"].items()
            for method, operation in methods.items()
        ]

    def learn(self, body: bytes) -> None:
        """Take the ids of a response that the system made up into later requests."""
        try:
            document = json.loads(body)
        except ValueError:
            return
        for name, value in document.items() if isinstance(document, dict) else ():
            known = self._ids.get(LEARNT.get(name, ""), None)
            if isinstance(value, str) and known is not None and len(known) < MOST_LEARNT:
                known.append(value)

    def generate(self, number: int) -> GeneratedRequest:
        chance = random.Random(f"request {self._seed} {number}")  # noqa: S311 - a seeded story, no secret
        method, path, operation = chance.choice(self._operations)
        oddness = chance.choices((0.0, 0.25, 0.7), (55, 30, 15))[0]
        callers = sorted(self._callers)
        (caller,) = chance.choices(callers, [FREQUENT.get(each, 1) for each in callers])
        target, headers = self._target(chance, path, operation, oddness)
        body, content_type = self._body(chance, path, operation, oddness)
        headers |= {"Host": b"127.0.0.1", "Connection": b"close"}
        if self._callers[caller]:
            headers["Authorization"] = self._callers[caller].encode()
        if content_type:
            headers["Content-Type"] = content_type
        headers |= self._signature(chance, path, body)
        if chance.random() < oddness / 2:
            headers[chance.choice(ODD_HEADERS)] = _header_bytes(odd_text(chance))
        if body or chance.random() < 0.5:
            headers["Content-Length"] = str(len(body)).encode()
        else:
            body = b""
        sent = chance.choice((*METHODS, *ODD_METHODS)) if chance.random() < oddness / 4 else method
        return GeneratedRequest(
            number=number,
            operation=f"{method} {path}",
            caller=caller,
            method=sent,
            target=target,
            headers=list(headers.items()),
            body=body,
        )

    def _target(
        self, chance: random.Random, path: str, operation: Mapping[str, Any], oddness: float
    ) -> tuple[bytes, dict[str, bytes]]:
        """Path and query, and the headers that the document names for them."""
        query: list[str] = []
        headers: dict[str, bytes] = {}
        for parameter in operation.get("parameters", []):
            name, place = parameter["name"], parameter["in"]
            value = self._parameter(chance, parameter, oddness)
            if place == "path":
                path = path.replace(f"{{{name}}}", _quoted(value))
            elif parameter.get("required") or chance.random() < 0.4 + oddness / 2:
                if place == "header":
                    headers[name] = _header_bytes(value)
                elif place == "query":
                    query += [f"{_quoted(name)}={_quoted(value)}"] * chance.choices((1, 2), (97, 3))[0]
        if chance.random() < oddness / 3:
            query.append(f"{_quoted(odd_text(chance))}={_quoted(odd_text(chance))}")
        target = path + ("?" + "&".join(query) if query else "")
        raw = target.encode()
        if chance.random() < oddness / 10:
            at = chance.randrange(1, len(raw) + 1)
            raw = (
                raw[:at]
                + chance.choice((b"%", b"%zz", b"%ff", b"%00", b"//", b"/../", b"%2e%2e/", b"\xff", b"#"))
                + raw[at:]
            )
        return raw, headers

    def _parameter(self, chance: random.Random, parameter: Mapping[str, Any], oddness: float) -> str:
        if parameter["name"] == "wait":
            return chance.choice(WAITS)
        if chance.random() < oddness:
            return odd_text(chance)
        value = self._values.value(chance, parameter.get("schema", {}), parameter["name"])
        return value if isinstance(value, str) else json.dumps(value)

    def _body(
        self, chance: random.Random, path: str, operation: Mapping[str, Any], oddness: float
    ) -> tuple[bytes, bytes]:
        content = operation.get("requestBody", {}).get("content", {})
        if not content and chance.random() > oddness / 2:
            return b"", b""
        content_type = chance.choice(sorted(content) or ["application/json"])
        if chance.random() < oddness / 3:
            content_type = chance.choice(CONTENT_TYPES)
        if chance.random() < oddness / 2:
            return chance.choice(WILD_BODIES), content_type.encode("latin-1")
        if path == "/api/events" and chance.random() < 0.1:
            event = {"specversion": "1.0", "id": f"deep-{chance.random()}", "source": DEEP_HTTP_SOURCE, "data": {}}
            event |= {"type": "organization.renamed", "subject": chance.choice(self._ids["org_id"])}
            return deepened(chance, event).encode(), content_type.encode("latin-1")
        value = self._document_body(chance, path, content.get(content_type, {}).get("schema", {}))
        while chance.random() < oddness * 0.8:
            value = mutated(chance, value)
        return encoded(value), content_type.encode("latin-1")

    def _document_body(self, chance: random.Random, path: str, schema: Mapping[str, Any]) -> Json:
        if path == "/api/events":
            return self._events(chance)
        if "webhooks/stripe" in path:
            return self._stripe_webhook(chance)
        if "webhooks/lago" in path:
            return self._lago_webhook(chance)
        value = self._values.value(chance, schema)
        if path == "/api/webhooks" and isinstance(value, dict):
            value["url"] = chance.choice(ENDPOINT_URLS)
        return value

    def _events(self, chance: random.Random) -> Json:
        """The same as on the queue, from sources of their own."""
        generator = MessageGenerator(chance.randrange(10**9), ["starter", "professional"], self._ids["org_id"])
        events: list[Json] = []
        for message in generator.generate(chance.choice((1, 1, 1, 2, 5))):
            sent = odd_value(chance)
            if message.fate in {"row", "rejected"} and not message.is_deep:
                args, kwargs, _ = json.loads(message.body)
                sent = [*args, *kwargs.values(), None][0]
            if isinstance(sent, dict) and "source" in sent:
                sent = {**sent, "source": chance.choice(("/http/a", "/http/b", "/http/" + "s" * 249))}
            events.append(sent)
        return events if len(events) > 1 or chance.random() < 0.2 else events[0]

    def _stripe_webhook(self, chance: random.Random) -> Json:
        kind = chance.choice(
            ("customer.updated", "customer.subscription.updated", "invoice.payment_failed", "charge.x")
        )
        about: dict[str, Json] = {
            "id": chance.choice(("sub_1", "in_1", "cus_1", "")),
            "object": chance.choice(("subscription", "invoice", "customer")),
            "customer": chance.choice(("cus_1", None, odd_value(chance))),
            "metadata": {"billing_sync_org_id": chance.choice(self._ids["org_id"])},
        }
        named = chance.choice((f"evt_{chance.randrange(500)}", odd_text(chance)))
        return {"id": named, "object": "event", "type": kind, "livemode": False, "data": {"object": about}}

    def _lago_webhook(self, chance: random.Random) -> Json:
        kind = chance.choice(
            ("subscription.updated", "customer.updated", "invoice.payment_failure", "payment.succeeded")
        )
        object_type = chance.choice(("subscription", "customer", "invoice", "payment"))
        about: dict[str, Json] = {
            "lago_id": chance.choice(("l-1", odd_value(chance))),
            "external_customer_id": chance.choice(self._ids["org_id"]),
            "customer": odd_value(chance),
        }
        return {"webhook_type": kind, "object_type": object_type, "organization_id": "o-1", object_type: about}

    def _signature(self, chance: random.Random, path: str, body: bytes) -> dict[str, bytes]:
        """Mostly a right one, so that the body is read."""
        if chance.random() < 0.2:
            return {}
        if "webhooks/stripe" in path:
            moment = str(int(time.time())).encode()
            signed = hmac.new(self._secrets.stripe.encode(), moment + b"." + body, hashlib.sha256).hexdigest()
            return {"Stripe-Signature": b"t=" + moment + b",v1=" + signed.encode()}
        if "webhooks/lago" in path:
            digest = hmac.new(self._secrets.lago.encode(), body, hashlib.sha256).digest()
            key = chance.choice((f"u-{chance.randrange(500)}", odd_text(chance)))
            return {
                "X-Lago-Signature": base64.b64encode(digest),
                "X-Lago-Signature-Algorithm": b"hmac",
                "X-Lago-Unique-Key": _header_bytes(key),
            }
        return {}


def _quoted(text: str) -> str:
    """Lone surrogates become bytes that are no UTF-8."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def _header_bytes(text: str) -> bytes:
    """No line end: it would make another header of it."""
    return text.replace("\r", "").replace("\n", "").encode("utf-8", "surrogatepass")
