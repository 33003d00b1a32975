-- Read how much waits in queues.
-- KEYS: queues_and_helds...
-- ARGV:
-- Uses: clock
-- Returns: for each queue {jobs in the set, due, held, ms that the oldest due one has waited,
--   1 if paused, leases that were ever lost}

-- A stock abort writes the score 1 for a moment: older than this no job is.
local OLDEST_MS = 1000000000000

local found = {}
for at = 1, #KEYS, 2 do
  local queue = KEYS[at]
  local first = redis.call('ZRANGEBYSCORE', queue, OLDEST_MS, now, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  found[#found + 1] = {
    redis.call('ZCARD', queue),
    redis.call('ZCOUNT', queue, '-inf', now),
    redis.call('HLEN', KEYS[at + 1]),
    math.floor(first and now - tonumber(first) or 0),
    redis.call('EXISTS', 'runner:paused:' .. queue),
    tonumber(redis.call('HGET', 'runner:counters:' .. queue, 'crashed') or 0),
  }
end
return found
