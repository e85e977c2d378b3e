-- Twin of ``penalize`` in core/flow_control/token_bucket.py, with its names.
-- KEYS: the bucket.
-- ARGV: now (0: Redis' clock), interval, burst, pause, then the constants of the throttle penalty. All times are
-- microseconds.
-- Fields of the bucket: ``slowed_at`` is ``penalized_at``, ``slow_until`` is ``penalty_until``. Running processes share
-- these names, so they stay.

local KEY_TTL_SECONDS = 3600

local key, now = KEYS[1], tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local interval, burst, pause = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local penalty, penalty_merge, max_halvings = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])

local row = redis.call('HMGET', key, 'next_at', 'halvings', 'slowed_at', 'slow_until')
local next_at, halvings = tonumber(row[1]) or 0, tonumber(row[2]) or 0
local penalized_at, penalty_until = tonumber(row[3]) or 0, tonumber(row[4]) or 0
local is_penalized = penalty_until > now
if not (is_penalized and now - penalized_at < penalty_merge) then
  halvings = math.min(max_halvings, (is_penalized and halvings or 0) + 1)
  penalized_at = now
end
next_at = math.max(next_at, now + pause + (burst - 1) * interval * 2 ^ halvings)
redis.call('HSET', key, 'next_at', next_at, 'slow_until', math.max(penalty_until, now + pause + penalty))
redis.call('HSET', key, 'halvings', halvings, 'slowed_at', penalized_at)
redis.call('EXPIRE', key, KEY_TTL_SECONDS)
return halvings
