-- Find slots and places whose jobs are gone, and release who waits behind them.
-- KEYS: turn
-- ARGV: turn_ms:int
-- Uses: clock wake limits limit_window limit_bucket limit_rates unpause
-- Returns: 0 when it was another one's turn, 1 when all is done, 2 when more is to be released at once
--
-- One worker of the fleet looks at a time, and at a few buckets of each limit: those that nobody
-- has used or looked at for longest. A bucket that is empty leaves the list. A limit that no worker
-- has in its code any more holds nobody: who was parked for it, or waits for a place, comes now.

open_limits()
local LOOKED_AT, EMPTIED = 20, 500
local GONE_MS, FORGOTTEN_MS = 300000, 86400000

if not redis.call('SET', turn, '1', 'NX', 'PX', turn_ms) then
  return 0
end

local names, gone = {}, {}
local set = redis.call('HGETALL', 'runner:limits')
for at = 1, #set, 2 do
  names[set[at]] = cjson.decode(set[at + 1])
end
local declared = redis.call('HGETALL', 'runner:limits:declared')
for at = 1, #declared, 2 do
  local name, definition = declared[at], cjson.decode(declared[at + 1])
  local unseen = now - tonumber(definition.seen_ms or now)
  -- One that was set on a task holds without anybody's code.
  gone[name] = unseen > GONE_MS and not (names[name] and names[name].task)
  if unseen > FORGOTTEN_MS and redis.call('EXISTS', 'runner:limit-buckets:' .. name) == 0 then
    redis.call('HDEL', 'runner:limits:declared', name)
  else
    names[name] = definition
  end
end

local more = false

local function release(place, name, limit)
  local looked = 0
  drop_stale(place)
  if limit.kind == 'running' then
    looked = unpark(place, gone[name] and math.huge or most_running(place, limit.count))
  elseif gone[name] then
    looked = release_reserved(place)
  else
    local state = rate_state({limit.kind, name, place, limit.count, limit.period_us, limit.burst})
    if state and state.waiting > 0 then
      pull_forward(state)
    end
  end
  -- Who is parked stays on the list for as long as somebody looks.
  redis.call('PEXPIRE', 'runner:parked:' .. place, LIMIT_MS)
  more = more or looked >= RELEASES or (gone[name] and looked > 0)
end

local function sweep(name, limit)
  local buckets, looked_at = 'runner:limit-buckets:' .. name, 0
  for _, place in ipairs(redis.call('ZRANGE', buckets, 0, EMPTIED - 1)) do
    local left = redis.call('EXISTS', 'runner:parked:' .. place, 'runner:running:' .. place,
      'runner:reserved:' .. place, 'runner:window:' .. place, 'runner:bucket:' .. place)
    if left == 0 then
      redis.call('ZREM', buckets, place)
    elseif looked_at < LOOKED_AT then
      looked_at = looked_at + 1
      redis.call('ZADD', buckets, 'XX', now, place)
      pcall(release, place, name, limit)  -- a bad key of one bucket keeps no other from its look
    end
  end
  redis.call('PEXPIRE', buckets, LIMIT_MS)
end

for name, limit in pairs(names) do
  sweep(name, limit)
end
for _, task in ipairs(redis.call('SMEMBERS', 'runner:parked-tasks')) do
  redis.call('PEXPIRE', 'runner:parked-task:' .. task, LIMIT_MS)
  redis.call('PEXPIRE', 'runner:parked-tasks', LIMIT_MS)
  if redis.call('SISMEMBER', 'runner:paused-tasks', task) == 0 then
    -- Whoever resumed it did not come to the end.
    more = unpause(task) >= RELEASES or more
  end
end
wake_released()
if more then
  redis.call('DEL', turn)
  return 2
end
return 1
