-- Find slots whose jobs are gone, and release who waits for them: what no settlement did.
-- KEYS: turn
-- ARGV: turn_ms:int
-- Uses: clock wake limits unpause
-- Returns: 1 when it was this caller's turn, else 0
--
-- One worker of the fleet looks at a time, and at a few buckets of each limit: those that nobody
-- has used or looked at for longest. A bucket that is empty leaves the list.

local LOOKED_AT = 20

if not redis.call('SET', turn, '1', 'NX', 'PX', turn_ms) then
  return 0
end

local names = {}
for _, name in ipairs(redis.call('HKEYS', 'runner:limits')) do
  names[name] = 0
end
local declared = redis.call('HGETALL', 'runner:limits:declared')
for at = 1, #declared, 2 do
  local definition = cjson.decode(declared[at + 1])
  names[declared[at]] = definition.kind == 'running' and definition.count or 0
end

local function sweep(name, count)
  local buckets = 'runner:limit-buckets:' .. name
  for _, place in ipairs(redis.call('ZRANGE', buckets, 0, LOOKED_AT - 1)) do
    drop_stale(place)
    local left = redis.call('EXISTS', 'runner:parked:' .. place, 'runner:running:' .. place,
      'runner:reserved:' .. place, 'runner:window:' .. place, 'runner:bucket:' .. place)
    if left == 0 then
      redis.call('ZREM', buckets, place)
    else
      unpark(place, most_running(place, count))
      redis.call('ZADD', buckets, 'XX', now, place)
    end
  end
end

for name, count in pairs(names) do
  sweep(name, count)
end
for _, task in ipairs(redis.call('SMEMBERS', 'runner:parked-tasks')) do
  if redis.call('SISMEMBER', 'runner:paused-tasks', task) == 0 then
    unpause(task)  -- whoever resumed it did not come to the end
  end
end
wake_released()
return 1
