-- Let those who wait feel a change of their limit: release who has room now, in order.
-- KEYS: buckets
-- ARGV: kind name offset:int period_us:int burst:int count:int
-- Uses: clock wake limits limit_window limit_bucket limit_rates
-- Returns: {the next offset, or -1 at the end; 1 when the same part has to be applied again}
--
-- `kind`, `period_us`, `burst` and `count` are what the code declares, the count 0 when it does not.

open_limits()
local PAGE = 50

-- Nothing holds the limit any more: who waits for a place comes now.
local function release_reserved(place)
  local key = 'runner:reserved:' .. place
  local heads = redis.call('ZRANGE', key, 0, RELEASES - 1)
  for _, named in ipairs(heads) do
    local _, queue_name, id = place_parts(named)
    local score = redis.call('ZSCORE', key, named)
    if tonumber(redis.call('ZSCORE', queue_name, id) or 0) == tonumber(score) then
      redis.call('ZADD', queue_name, 'XX', score_text(now_exact), id)
      note_release(queue_name)
    end
    redis.call('ZREM', key, named)
  end
  return #heads
end

local function apply(place)
  if kind == 'running' then
    return unpark(place, most_running(place, count))
  end
  local state = rate_state({kind, name, place, count, period_us, burst})
  if not state then
    return release_reserved(place)
  end
  if state.waiting > 0 then
    pull_forward(state)
  end
  return 0
end

local again = 0
local places = redis.call('ZRANGE', buckets, offset, offset + PAGE - 1)
for _, place in ipairs(places) do
  if apply(place) >= RELEASES then
    again = 1
  end
end
wake_released()
return {#places < PAGE and -1 or offset + PAGE, again}
