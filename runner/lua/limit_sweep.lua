-- Find slots and places whose jobs are gone, and release who waits behind them.
-- KEYS: turn
-- ARGV: turn_ms:int
-- Uses: clock wake limits limit_window limit_bucket limit_rates unpause
-- Returns: 1 when it was this caller's turn, else 0
--
-- One worker of the fleet looks at a time, and at a few buckets of each limit: those that nobody
-- has used or looked at for longest. A bucket that is empty leaves the list.

open_limits()
local LOOKED_AT, FORGOTTEN_MS = 20, 86400000

if not redis.call('SET', turn, '1', 'NX', 'PX', turn_ms) then
  return 0
end

local names = {}
local set = redis.call('HGETALL', 'runner:limits')
for at = 1, #set, 2 do
  names[set[at]] = cjson.decode(set[at + 1])
end
local declared = redis.call('HGETALL', 'runner:limits:declared')
for at = 1, #declared, 2 do
  local definition = cjson.decode(declared[at + 1])
  if tonumber(definition.seen_ms or now) < now - FORGOTTEN_MS then
    redis.call('HDEL', 'runner:limits:declared', declared[at])  -- no worker's code has it any more
  else
    names[declared[at]] = definition
  end
end

local function sweep(name, limit)
  local buckets = 'runner:limit-buckets:' .. name
  for _, place in ipairs(redis.call('ZRANGE', buckets, 0, LOOKED_AT - 1)) do
    drop_stale(place)
    local left = redis.call('EXISTS', 'runner:parked:' .. place, 'runner:running:' .. place,
      'runner:reserved:' .. place, 'runner:window:' .. place, 'runner:bucket:' .. place)
    if left == 0 then
      redis.call('ZREM', buckets, place)
    else
      if limit.kind == 'running' then
        unpark(place, most_running(place, limit.count))
      end
      local state = limit.kind ~= 'running' and rate_state({limit.kind, name, place, limit.count,
        limit.period_us, limit.burst})
      if state and state.waiting > 0 then
        pull_forward(state)
      end
      redis.call('ZADD', buckets, 'XX', now, place)
    end
  end
end

for name, limit in pairs(names) do
  sweep(name, limit)
end
for _, task in ipairs(redis.call('SMEMBERS', 'runner:parked-tasks')) do
  if redis.call('SISMEMBER', 'runner:paused-tasks', task) == 0 then
    unpause(task)  -- whoever resumed it did not come to the end
  end
end
wake_released()
return 1
