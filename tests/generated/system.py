"""The system under the generated messages and requests: every process of ours, Postgres, Valkey and the sandbox."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import kombu
import redis
from kombu import Connection

from core.catalog import publishing
from core.catalog.plans import Catalog
from core.db.database import Database
from providers.lago.provider import LagoProvider
from sandbox.server import Sandbox
from tests.generated.messages import JSON_TYPE, GeneratedMessage
from tests.generated.population import INVITED, Population, address_of, populate
from tests.generated.requests import WebhookSecrets
from tests.support.api_client import SIGNING_SECRET
from tests.support.deployment import Deployment, answers, environment_of, free_port
from tests.support.oidc_provider import AUDIENCE, CLIENT_ID, CLIENT_SECRET, OidcProvider
from tests.support.waiting import until

PROCESSES: Final = ("worker", "worker", "relay", "beat", "api")
QUEUE: Final = "events"
DROPPED: Final = "message_dropped"
STRIPE_WEBHOOK_SECRET: Final = "whsec_of_generated_requests"
LAGO_WEBHOOK_SECRET: Final = "the-hmac-key-of-generated-requests"
TOKEN_SECONDS: Final = 86_400
START_SECONDS: Final = 120.0


@dataclass
class SystemUnderTest:
    """``started``: each process with its words. None is started again, so one that ended is known by its handle."""

    deployed: Deployment
    database: Database
    broker: str
    oidc: OidcProvider
    port: int
    population: Population
    started: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def start(self) -> None:
        for words in PROCESSES:
            self.started.append((words, self.deployed.start(words)))
        until(self.is_well, "the API answers", seconds=START_SECONDS, details=lambda: self.deployed.logs)

    def is_well(self) -> bool:
        return answers(f"http://127.0.0.1:{self.port}/healthz")

    def ended(self) -> list[str]:
        """One sentence for each process that does not run any more."""
        return [
            f"{words} (process {process.pid}) ended with {process.returncode}"
            for words, process in self.started
            if process.poll() is not None
        ]

    def dropped(self) -> int:
        return self.deployed.logs.count(DROPPED)

    def waiting_messages(self) -> int:
        """Messages of others that no worker has finished: in the queue, or with a worker."""
        with redis.Redis.from_url(self.broker) as client:
            unfinished = [json.loads(each) for each in client.hvals("unacked")]
            waiting: int = client.llen(QUEUE)
        return waiting + sum(map(_is_event, unfinished))

    def callers(self) -> dict[str, str]:
        """The value of ``Authorization`` for each caller; none for nobody."""
        users = ("owner", "auth0|second owner", "billing admin", "member", INVITED, "stranger")
        key = self.population.key
        return {user: f"Bearer {self._token(user)}" for user in users} | {
            "service": f"Bearer {key}",
            "another service": f"Bearer {self.population.narrow_key}",
            "nobody": "",
            "somebody unknown": f"Bearer {key[:-1]}0",
            "somebody with a bad token": "Bearer a.b.c",
        }

    def _token(self, user: str) -> str:
        expires = int(time.time()) + TOKEN_SECONDS
        return self.oidc.token(user, exp=expires, email=address_of(user), email_verified=True, name=user)


class QueueWriter:
    """Writes messages to the queue byte by byte."""

    def __init__(self, url: str) -> None:
        self._connection = Connection(url)
        kombu.Queue(QUEUE)(self._connection.channel()).declare()
        self._producer = self._connection.Producer()

    def put(self, message: GeneratedMessage) -> None:
        named: dict[str, Any] = {"task": message.task, "id": str(uuid4()), "lang": "py", "argsrepr": "()"}
        self._producer.publish(
            message.body,
            exchange="",
            routing_key=QUEUE,
            content_type=message.content_type,
            content_encoding="utf-8" if message.content_type == JSON_TYPE else "binary",
            headers=named | dict(message.headers) if message.task else {},
        )

    def close(self) -> None:
        self._connection.release()


@contextmanager
def running(postgres: str, broker: str, sandbox: Sandbox, catalog: Catalog, folder: Path) -> Iterator[SystemUnderTest]:
    """``postgres``: a database of its own; it gets the schema, and organizations with members."""
    with ExitStack() as stack:
        oidc = stack.enter_context(OidcProvider())
        database = Database(postgres)
        stack.callback(database.close)
        database.upgrade()
        _publish(catalog, sandbox.url)
        environment = environment_of(postgres, broker, sandbox.url, folder) | _settings(oidc)
        deployed, population = Deployment(environment, folder), populate(database, catalog)
        system = SystemUnderTest(deployed, database, broker, oidc, int(environment["API_PORT"]), population)
        stack.callback(system.deployed.stop)
        system.start()
        yield system


def secrets() -> WebhookSecrets:
    return WebhookSecrets(stripe=STRIPE_WEBHOOK_SECRET, lago=LAGO_WEBHOOK_SECRET)


def _settings(oidc: OidcProvider) -> dict[str, str]:
    port = free_port()
    return {
        "API_PORT": str(port),
        "API_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "API_RATE_LIMIT": "100000",
        "USER_ORGANIZATIONS_PER_HOUR": "1000",
        "USER_INVITATIONS_PER_HOUR": "1000",
        "OIDC_ISSUER": oidc.issuer,
        "OIDC_AUDIENCE": AUDIENCE,
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "STRIPE_WEBHOOK_SECRET": STRIPE_WEBHOOK_SECRET,
        "LAGO_WEBHOOK_SECRET": LAGO_WEBHOOK_SECRET,
        "WEBHOOK_SIGNING_SECRET": SIGNING_SECRET,
    }


def _publish(catalog: Catalog, url: str) -> None:
    lago = LagoProvider(url, "key", payment_provider_code=None, ending=catalog.ending)
    publishing.publish(catalog, [lago])
    lago.close()


def _is_event(unfinished: Sequence[Any]) -> bool:
    """An entry of Redis is the message, the exchange and the routing key."""
    return bool(unfinished[0].get("headers", {}).get("task") == "events.receive")
