"""While Redis is down the fallback is used, and the log says so once for each try."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from structlog.testing import capture_logs

from worker.shared.redis_fallback import RedisWithFallback

URL = "redis://:password-of-redis@127.0.0.1:1/0"


class FallbackClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class ScriptedRedis:
    """An operation that fails while ``is_down``, and counts how often it was tried."""

    def __init__(self) -> None:
        self.is_down = False
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.is_down:
            message = f"cannot reach {URL}"
            raise redis.ConnectionError(message)
        return "redis"


@pytest.fixture
def time() -> FallbackClock:
    return FallbackClock()


@pytest.fixture
def shared(time: FallbackClock) -> Iterator[RedisWithFallback]:
    opened = RedisWithFallback(URL, "cache", timeout_seconds=0.25, retry_seconds=5.0, monotonic=time)
    yield opened
    opened.close()


def local() -> str:
    return "local"


def test_the_fallback_is_used_for_a_while_after_a_failure_and_then_redis_is_tried_again(
    shared: RedisWithFallback, time: FallbackClock
) -> None:
    operation = ScriptedRedis()
    assert shared.run(operation, local) == "redis"
    operation.is_down = True
    assert [shared.run(operation, local) for _ in range(10)] == ["local"] * 10
    assert operation.tries == 2
    operation.is_down = False
    time.now += 4.9
    assert shared.run(operation, local) == "local"
    time.now += 0.2
    assert shared.run(operation, local) == "redis"


def test_each_period_without_redis_is_logged_once_and_without_the_url(
    shared: RedisWithFallback, time: FallbackClock
) -> None:
    operation = ScriptedRedis()
    operation.is_down = True
    with capture_logs() as lines:
        for _ in range(3):
            shared.run(operation, local)
    line = {"event": "redis_fallback_active", "component": "cache", "error": "ConnectionError", "log_level": "warning"}
    assert lines == [line]
    time.now += 5.1
    with capture_logs() as lines:
        shared.run(operation, local)
    assert lines == [line]


def test_operations_that_fail_at_the_same_time_log_one_line(shared: RedisWithFallback) -> None:
    first, second = ScriptedRedis(), ScriptedRedis()
    first.is_down = second.is_down = True

    def operation() -> str:
        shared.run(second, local)  # fails while the first is still under way
        return first()

    with capture_logs() as lines:
        assert shared.run(operation, local) == "local"
    assert (first.tries, second.tries, len(lines)) == (1, 1, 1)


def test_an_error_that_is_not_of_redis_is_raised(shared: RedisWithFallback) -> None:
    def broken() -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shared.run(broken, local)


def test_the_timeouts_are_those_of_the_component(shared: RedisWithFallback) -> None:
    options = shared.client.connection_pool.connection_kwargs
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (0.25, 0.25)
