"""The clients of ``benchmarks.held_open``: each holds one connection, and comes again when it has ended.

    python -m benchmarks.held_open_clients URL ORG_ID SECONDS < KEYS

It prints how many connections of each kind it made.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

ADDRESSES: Final = [f"127.0.{1 + number // 50}.{1 + number % 50}" for number in range(250)]
SILENT: Final = 600
SLOW: Final = 600
WAITING: Final = 600
FORGED: Final = 60
BODIES: Final = 60
BODY_BYTES: Final = 8_000_000
PAUSE_SECONDS: Final = 0.5  # before a client that was answered comes again
CHUNK: Final = b" " * 65_536

Client = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def main() -> None:
    url, org_id, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    keys = sys.stdin.read().split()
    counts = asyncio.run(_hold(url, _clients(org_id, keys), seconds))
    for kind, count in counts.items():
        print(kind, count, sep="\t")


def _clients(org_id: str, keys: list[str]) -> list[tuple[str, Client]]:
    wait = f"/api/organizations/{org_id}/sync?version=1&wait=30s"
    events, webhook = "/api/events", "/webhooks/stripe"
    return [
        *[("silent", _silent)] * SILENT,
        *[("a byte a second", _slow)] * SLOW,
        *[("waiting requests", _request("GET", wait, keys[number % len(keys)])) for number in range(WAITING)],
        *[("forged tokens", _request("GET", "/api/organizations", _forged_token())) for _ in range(FORGED)],
        *[("bodies without credentials", _body(events, None))] * (BODIES // 3),
        *[("bodies to webhooks", _body(webhook, None))] * (BODIES // 3),
        *[("bodies with a key", _body(events, keys[number])) for number in range(BODIES // 3)],
    ]


async def _hold(url: str, clients: list[tuple[str, Client]], seconds: float) -> Counter[str]:
    host, port = urlsplit(url).hostname, urlsplit(url).port
    counts: Counter[str] = Counter()
    until_time = time.monotonic() + seconds

    async def keep_coming(kind: str, client: Client, address: str) -> None:
        while time.monotonic() < until_time:
            try:
                reader, writer = await asyncio.open_connection(host, port, local_addr=(address, 0))
                counts[kind] += 1
                try:
                    await client(reader, writer)
                finally:
                    writer.transport.abort()
            except OSError:
                counts[f"{kind}, ended by the API"] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    tasks = [
        asyncio.create_task(keep_coming(kind, client, address))
        for (kind, client), address in zip(clients, itertools.cycle(ADDRESSES))
    ]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return counts


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
    await reader.read()


async def _slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    ended = asyncio.ensure_future(reader.read())
    while not ended.done():
        writer.write(b"a")
        await asyncio.wait({ended}, timeout=1)
    ended.result()


def _request(method: str, path: str, credential: str) -> Client:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {credential}\r\n"

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        await reader.read()

    return send


def _body(path: str, key: str | None) -> Client:
    credential = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{credential}Content-Type: application/json\r\n"

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Chunked, so that no length says beforehand how much will come.
        writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(BODY_BYTES // len(CHUNK)):
            writer.write(f"{len(CHUNK):x}\r\n".encode() + CHUNK + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.readline()

    return send


def _forged_token() -> str:
    """Of the right form, signed with no key of the sign-in service."""
    header = "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCIsImtpZCI6ImZvcmdlZCJ9"
    return f"{header}.{secrets.token_hex(64)}.{secrets.token_urlsafe(256)}"


if __name__ == "__main__":
    main()
