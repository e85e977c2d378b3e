"""The product as a user has it: ``billing-sync up`` in a folder, its commands and its API. Nothing is imported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.deployment import SCRIPT, free_port

START_SECONDS: Final = 60.0
COMMAND_SECONDS: Final = 120
STOP_SECONDS: Final = 20.0
SYNC_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1
# An operator must act: waiting longer changes nothing.
NEEDS_OPERATOR: Final = frozenset({"parked", "on_hold", "provider_down"})
_OURS: Final = ("STRIPE_", "LAGO_", "REDIS_", "POSTGRES_", "CELERY_", "DATABASE_", "OIDC_", "SMTP_", "API_", "PLANS_")


Document = dict[str, Any]


class StoryFailedError(Exception):
    """What was expected does not hold. The message says what was found."""


@dataclass
class Product:
    """``environment`` holds the settings; nothing of the user's own environment or ``.env`` gets to it."""

    environment: dict[str, str]
    folder: Path
    api: httpx.Client
    _numbers: Iterator[int]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command that ends."""
        return subprocess.run(
            [SCRIPT, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def document(self, *arguments: str, allowed: tuple[int, ...] = (0,)) -> Document:
        """The JSON that a command prints with ``--json``."""
        ended = self.run(*arguments, "--json")
        if ended.returncode not in allowed:
            message = f"billing-sync {' '.join(arguments)} exited with {ended.returncode}: {ended.stdout}{ended.stderr}"
            raise StoryFailedError(message)
        return dict(json.loads(ended.stdout))

    def send(self, kind: str, org_id: str, **data: str) -> None:
        """Send one service event, as another service does, and expect that it is applied."""
        event = {
            "specversion": "1.0",
            "id": f"{org_id}-{next(self._numbers)}",
            "source": "/story",
            "type": f"organization.{kind}",
            "subject": org_id,
            "data": data,
        }
        response = self.api.post("/api/events", json=event)
        document = response.json()
        if response.status_code != httpx.codes.OK or document.get("status") != "applied":
            message = f"{kind} of {org_id} is not applied: {response.text}"
            raise StoryFailedError(message)

    def organization(self, org_id: str) -> Document:
        response = self.api.get(f"/api/organizations/{org_id}")
        response.raise_for_status()
        return dict(response.json())

    def wait_until_in_sync(self, org_id: str) -> None:
        """Raises with the product's own reason, if an operator must act or if it takes too long."""
        ends_at = time.monotonic() + SYNC_SECONDS
        while True:
            response = self.api.get(f"/api/organizations/{org_id}/sync", params={"wait": "1s"})
            response.raise_for_status()
            found = response.json()
            if found["in_sync"]:
                return
            problems = {name: each for name, each in found["providers"].items() if not each["in_sync"]}
            is_final = any(each["status"] in NEEDS_OPERATOR for each in problems.values())
            if is_final or time.monotonic() > ends_at:
                reasons = "; ".join(
                    f"{name}: {each['status']}, {(each['error'] or {}).get('message') or each['reason']}"
                    for name, each in problems.items()
                )
                message = f"{org_id} is not in sync: {reasons}"
                raise StoryFailedError(message)
            time.sleep(POLL_SECONDS)


def settings_of(folder: Path, providers: dict[str, str]) -> dict[str, str]:
    """The environment of the product: what the machine needs, and these settings of the providers."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(_OURS)},
        "DATA_DIR": str(folder / "data"),
        "LOG_LEVEL": "WARNING",
        "API_PORT": str(free_port()),
        **providers,
    }


@contextmanager
def running(environment: dict[str, str], folder: Path) -> Iterator[Product]:
    """``billing-sync up`` until the block ends. The plans must be at the providers already."""
    product = idle(environment, folder)
    with (folder / "up.log").open("wb") as log:
        process = subprocess.Popen(
            [SCRIPT, "up"], env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait_for_api(product, process, folder / "up.log")
        scopes = ("organizations:read", "organizations:write", "events:write")
        created = product.document("keys", "create", "story", *(word for each in scopes for word in ("--scope", each)))
        product.api.headers["Authorization"] = f"Bearer {created['key']}"
        yield product
    finally:
        product.api.close()
        stop(process)


def idle(environment: dict[str, str], folder: Path) -> Product:
    """The product without a running process: only its commands."""
    base_url = f"http://127.0.0.1:{environment['API_PORT']}"
    return Product(environment, folder, httpx.Client(base_url=base_url, timeout=60), count(1))


def stop(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_api(product: Product, process: subprocess.Popen[bytes], log: Path) -> None:
    ends_at = time.monotonic() + START_SECONDS
    while time.monotonic() < ends_at and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if product.api.get("/healthz").status_code == httpx.codes.OK:
                return
        time.sleep(POLL_SECONDS)
    message = f"billing-sync up does not run: {log.read_text(errors='replace')[-2000:]}"
    raise StoryFailedError(message)
