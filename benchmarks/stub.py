"""Stub of both providers, as fast as one Python process allows: it responds at once, checks nothing and stores nothing.

    python -m benchmarks.stub PORT

It supports the calls of a change (create or change customers and subscriptions, get the account of the key). All others
get 404. It only serves to measure throughput; the sandbox is used to test correctness.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from urllib.parse import parse_qs
from uuid import NAMESPACE_URL, uuid5

_END_OF_HEAD = b"\r\n\r\n"


class ProviderStub(asyncio.Protocol):
    """One connection; its requests arrive one after the other."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(_END_OF_HEAD)) >= 0:
            head, start = self._buffer[:end], end + len(_END_OF_HEAD)
            length = _length(head)
            if len(self._buffer) < start + length:
                return
            body, self._buffer = self._buffer[start : start + length], self._buffer[start + length :]
            self._respond(head, body)

    def _respond(self, head: bytes, body: bytes) -> None:
        method, path, _ = head.split(b" ", 2)
        status, document = _route(method.decode(), path.decode().partition("?")[0], body.decode())
        content = json.dumps(document).encode()
        if self._transport is not None:
            self._transport.write(
                b"HTTP/1.1 %d OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (status, len(content), content)
            )


def _length(head: bytes) -> int:
    found = head.lower().find(b"content-length:")
    return 0 if found < 0 else int(head[found + 15 :].split(b"\r\n", 1)[0])


def _route(method: str, path: str, body: str) -> tuple[int, object]:
    match method, path.strip("/").split("/"):
        case "POST", ["v1", "customers", *customer_id]:
            form = {name: values[0] for name, values in parse_qs(body).items()}
            return 200, _stripe_customer(customer_id[0] if customer_id else None, form)
        case "GET", ["v1", "account"]:
            return 200, {"id": "acct_stub", "object": "account"}
        case "POST", ["api", "v1", "customers"]:
            return 200, {"customer": _lago_customer(json.loads(body)["customer"])}
        case "POST", ["api", "v1", "subscriptions"]:
            return 200, {"subscription": _lago_subscription(json.loads(body)["subscription"])}
        case "GET", ["api", "v1", "organizations"]:
            return 200, {"organization": {"lago_id": "6f2c1d6e-6b5e-4a0e-9a55-0f7b0a4c8d11", "name": "stub"}}
    return 404, {"error": {"type": "invalid_request_error", "message": "the stub does not support this call"}}


def _stripe_customer(customer_id: str | None, form: dict[str, str]) -> dict[str, object]:
    org_id = form.get("metadata[billing_sync_org_id]", "")
    return {
        "id": customer_id or f"cus_{org_id.replace('-', '')}",
        "object": "customer",
        "created": 1_790_000_000,
        "email": form.get("email"),
        "livemode": False,
        "metadata": {"billing_sync_org_id": org_id} if org_id else {},
        "name": form.get("name"),
    }


def _lago_customer(sent: dict[str, object]) -> dict[str, object]:
    now = _now()
    return {
        "lago_id": str(uuid5(NAMESPACE_URL, str(sent["external_id"]))),
        "sequential_id": 1,
        "slug": "STU-0001-001",
        "external_id": sent["external_id"],
        "name": sent.get("name"),
        "email": sent.get("email"),
        "currency": sent.get("currency"),
        "created_at": now,
        "updated_at": now,
        "applicable_timezone": "UTC",
        "billing_configuration": sent.get("billing_configuration") or {},
        "metadata": [],
    }


def _lago_subscription(sent: dict[str, object]) -> dict[str, object]:
    now = _now()
    return {
        "lago_id": str(uuid5(NAMESPACE_URL, f"subscription {sent['external_id']}")),
        "external_id": sent["external_id"],
        "lago_customer_id": str(uuid5(NAMESPACE_URL, str(sent["external_customer_id"]))),
        "external_customer_id": sent["external_customer_id"],
        "plan_code": sent["plan_code"],
        "status": "active",
        "billing_time": "calendar",
        "name": None,
        "subscription_at": now,
        "started_at": now,
        "created_at": now,
        "ending_at": None,
        "previous_plan_code": None,
        "next_plan_code": None,
        "downgrade_plan_date": None,
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(ProviderStub, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
