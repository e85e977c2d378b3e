-- Twin of ``LocalRateLimiter.acquire`` and of the functions in core/flow_control/token_bucket.py, with their names.
-- KEYS: the reservations of the provider, then each bucket of the request.
-- ARGV: now (0: Redis' clock), holder, priority, five waits, then interval and burst of each bucket. All times are
-- microseconds. Returns the state of the permit and the wait.
-- Fields of a bucket: ``fresh`` and ``bulk`` are the ends of the interactive and the bulk queue, ``slow_until`` is
-- ``penalty_until``. Running processes share these names, so they stay.

local KEY_TTL_SECONDS = 3600

local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local holder, priority = ARGV[2], ARGV[3]
local max_inline_wait, max_queue_wait = tonumber(ARGV[4]), tonumber(ARGV[5])
local reservation_ttl = tonumber(ARGV[6])
local min_queue_full_wait = tonumber(ARGV[7])
local max_in_flight_wait = tonumber(ARGV[8])

local function load_bucket(key, interval, burst)
  local row = redis.call('HMGET', key, 'next_at', 'fresh', 'bulk', 'halvings', 'slow_until')
  local next_at, penalty_until = tonumber(row[1]) or 0, tonumber(row[5]) or 0
  local queue_end, bulk_queue_end = tonumber(row[2]) or 0, tonumber(row[3]) or 0
  if penalty_until > now then interval = interval * 2 ^ tonumber(row[4]) end
  if priority == 'bulk' then queue_end = math.max(queue_end, bulk_queue_end) end
  local free_at = math.max(now, next_at - (burst - 1) * interval)
  return {key = key, next_at = next_at, interval = interval, free_at = free_at, queue_end = queue_end}
end

local function store(bucket, field, value)
  redis.call('HSET', bucket.key, field, value)
  redis.call('EXPIRE', bucket.key, KEY_TTL_SECONDS)
end

local reservations, buckets = KEYS[1], {}
for n = 2, #KEYS do
  buckets[n - 1] = load_bucket(KEYS[n], tonumber(ARGV[5 + 2 * n]), tonumber(ARGV[6 + 2 * n]))
end
local narrowest, free_at, queue_end = buckets[1], now, 0
for _, bucket in ipairs(buckets) do
  if bucket.interval > narrowest.interval then narrowest = bucket end
  free_at = math.max(free_at, bucket.free_at)
  queue_end = math.max(queue_end, bucket.queue_end)
end
if priority == 'in_flight' then
  max_inline_wait = math.max(max_inline_wait, math.min(max_in_flight_wait, 2 * narrowest.interval))
end
local latest = now + max_inline_wait

redis.call('ZREMRANGEBYSCORE', reservations, '-inf', '(' .. string.format('%.0f', now - reservation_ttl))
local reserved_at = tonumber(redis.call('ZSCORE', reservations, holder) or nil)
local is_due = reserved_at and reserved_at <= latest
if free_at <= latest and (priority == 'in_flight' or is_due or queue_end <= latest) then
  redis.call('ZREM', reservations, holder)
  for _, bucket in ipairs(buckets) do
    store(bucket, 'next_at', math.max(bucket.next_at, now) + bucket.interval)
  end
  return {'go', free_at - now}
end
if reserved_at and not is_due then return {'queued', reserved_at - now} end

reserved_at = math.max(free_at, queue_end)
local wait = reserved_at - now
local too_long = wait - max_queue_wait
if too_long > 0 then
  redis.call('ZREM', reservations, holder)
  return {'full', math.max(min_queue_full_wait, too_long)}
end
store(narrowest, priority == 'bulk' and 'bulk' or 'fresh', reserved_at + narrowest.interval)
redis.call('ZADD', reservations, reserved_at, holder)
redis.call('EXPIRE', reservations, KEY_TTL_SECONDS)
return {'queued', wait}
