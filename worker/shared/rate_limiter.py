"""The quota of all worker processes together: the buckets of ``rate_limiter`` in Redis, one round trip a request.

Redis' own clock counts, and everything in it may be lost at any time: the buckets then start anew. While Redis does not
answer, each process goes on by itself with its share.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, cast

import redis
import structlog

from core.flow_control.rate_limiter import (
    MANNERS,
    MOST_PATIENT,
    PLACE_KEPT,
    SAME_MOMENT,
    SECOND,
    SLOW_FOR,
    SLOWEST,
    SOONEST,
    Limit,
    Limits,
    LocalQuota,
    Slot,
    Urgency,
    buckets,
    slowed,
)
from core.ports.spec import Provider

log = structlog.get_logger()

# A request waits for the answer inside a turn; Redis answers in less than a millisecond or is away.
ANSWERS_WITHIN: Final = 0.5  # seconds
ASK_AGAIN: Final = 2.0  # seconds
# Nobody knows how many processes there are while they cannot see each other: so many stay within the limits.
PROCESSES: Final = 4

# KEYS: the places, then every bucket that is passed. ARGV: the moment (0: Redis' own clock), then what take() knows.
_TAKE: Final = """
local now = tonumber(ARGV[1])
if now == 0 then local t = redis.call('TIME'); now = t[1] * 1000000 + t[2] end
local holder, urgency = ARGV[2], ARGV[3]
local patience, horizon = tonumber(ARGV[4]), tonumber(ARGV[5])
local kept, soonest, most_patient = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. string.format('%.0f', now - kept))
local wait, line, widest, passed = 0, 0, 0, {}
for n = 2, #KEYS do
  local row = redis.call('HMGET', KEYS[n], 'next_at', 'fresh', 'bulk', 'halvings', 'slow_until')
  local b = {key = KEYS[n], next_at = tonumber(row[1]) or 0}
  b.fresh, b.bulk = tonumber(row[2]) or 0, tonumber(row[3]) or 0
  b.interval = tonumber(ARGV[5 + 2 * n])
  if (tonumber(row[5]) or 0) > now then b.interval = b.interval * 2 ^ tonumber(row[4]) end
  wait = math.max(wait, b.next_at - (tonumber(ARGV[6 + 2 * n]) - 1) * b.interval - now)
  widest = math.max(widest, b.interval)
  line = math.max(line, b.fresh, urgency == 'bulk' and b.bulk or 0)
  passed[#passed + 1] = b
end
if urgency == 'started' then patience = math.max(patience, math.min(most_patient, 2 * widest)) end
local place = tonumber(redis.call('ZSCORE', KEYS[1], holder) or nil)
local due = place and place <= now + patience
if wait <= patience and (urgency == 'started' or due or line <= now + patience) then
  redis.call('ZREM', KEYS[1], holder)
  for _, b in ipairs(passed) do
    redis.call('HSET', b.key, 'next_at', math.max(b.next_at, now) + b.interval)
    redis.call('EXPIRE', b.key, 3600)
  end
  return {'go', wait}
end
if place and not due then return {'queued', place - now} end
place = math.max(now + wait, line)
if place - now > horizon then
  redis.call('ZREM', KEYS[1], holder)
  return {'full', math.max(soonest, place - now - horizon)}
end
local narrow = passed[1]
for _, b in ipairs(passed) do if b.interval > narrow.interval then narrow = b end end
redis.call('HSET', narrow.key, urgency == 'bulk' and 'bulk' or 'fresh', place + narrow.interval)
redis.call('EXPIRE', narrow.key, 3600)
redis.call('ZADD', KEYS[1], place, holder)
redis.call('EXPIRE', KEYS[1], 3600)
return {'queued', place - now}
"""

_SLOW_DOWN: Final = """
local now = tonumber(ARGV[1])
if now == 0 then local t = redis.call('TIME'); now = t[1] * 1000000 + t[2] end
local interval, burst, pause = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local slow_for, same_moment, slowest = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local row = redis.call('HMGET', KEYS[1], 'next_at', 'halvings', 'slowed_at', 'slow_until')
local next_at, halvings = tonumber(row[1]) or 0, tonumber(row[2]) or 0
local slowed_at, still = tonumber(row[3]) or 0, (tonumber(row[4]) or 0) > now
if not (still and now - slowed_at < same_moment) then
  halvings = math.min(slowest, (still and halvings or 0) + 1)
  slowed_at = now
end
next_at = math.max(next_at, now + pause + (burst - 1) * interval * 2 ^ halvings)
redis.call('HSET', KEYS[1], 'next_at', next_at, 'slow_until', now + slow_for)
redis.call('HSET', KEYS[1], 'halvings', halvings, 'slowed_at', slowed_at)
redis.call('EXPIRE', KEYS[1], 3600)
return halvings
"""


class SharedQuota:
    """``moment``: for tests that bring their own time; 0 asks Redis."""

    def __init__(self, limits: Mapping[Provider, Limits], redis_url: str) -> None:
        self.moment = 0
        self._limits = limits
        self._alone = LocalQuota({provider: _share(each) for provider, each in limits.items()})
        self._redis = redis.Redis.from_url(
            redis_url, socket_timeout=ANSWERS_WITHIN, socket_connect_timeout=ANSWERS_WITHIN, decode_responses=True
        )
        self._take = self._redis.register_script(_TAKE)
        self._slow_down = self._redis.register_script(_SLOW_DOWN)
        self._away_until = 0.0
        self._lock = threading.Lock()

    def take(self, provider: Provider, operation: str, holder: str, urgency: Urgency) -> Slot:
        if self._is_away():
            return self._alone.take(provider, operation, holder, urgency)
        passed = buckets(self._limits[provider], provider, operation)
        manner = MANNERS[urgency]
        arguments: list[str | int] = [
            self.moment,
            holder,
            urgency,
            manner.patience,
            manner.horizon,
            PLACE_KEPT,
            SOONEST,
            MOST_PATIENT,
        ]
        arguments += [number for _, limit in passed for number in (limit.interval, limit.burst)]
        keys = [_key(provider, "places"), *(_key(provider, name) for name, _ in passed)]
        try:
            state, micros = cast("tuple[str, int]", self._take(keys, arguments))
        except redis.RedisError as error:
            self._gone(error)
            return self._alone.take(provider, operation, holder, urgency)
        if state == "go":
            return Slot("go", micros / SECOND)
        return Slot("queued" if state == "queued" else "full", micros / SECOND)

    def slow_down(self, provider: Provider, operation: str, reason: str | None, pause: float) -> None:
        self._alone.slow_down(provider, operation, reason, pause)
        if self._is_away():
            return
        name, limit = slowed(self._limits[provider], provider, operation, reason)
        numbers = [limit.interval, limit.burst, int(pause * SECOND), SLOW_FOR, SAME_MOMENT, SLOWEST]
        try:
            self._slow_down([_key(provider, name)], [self.moment, *numbers])
        except redis.RedisError as error:
            self._gone(error)

    def pace(self, provider: Provider) -> float:
        return self._limits[provider].pace

    def close(self) -> None:
        self._redis.close()

    def _is_away(self) -> bool:
        with self._lock:
            return time.monotonic() < self._away_until

    def _gone(self, error: redis.RedisError) -> None:
        with self._lock:
            self._away_until = time.monotonic() + ASK_AGAIN
        # The class alone: the text may hold the address with its password.
        log.warning("quota_is_not_shared", error=type(error).__name__)


def _key(provider: Provider, name: str) -> str:
    # In braces what a cluster hashes by: one script reads them all.
    return f"billing-sync:{{{provider}}}:{name}"


def _share(limits: Limits) -> Limits:
    def part(limit: Limit) -> Limit:
        return replace(limit, rate=limit.rate / PROCESSES, burst=1)

    return Limits(part(limits.account), part(limits.operation) if limits.operation else None)
