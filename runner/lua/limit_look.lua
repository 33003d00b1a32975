-- Count what uses a limit, and what waits for it.
-- KEYS: buckets
-- ARGV: kind name period_us:int burst:int count:int at_most:int wanted
-- Uses: clock wake limits limit_window limit_bucket limit_rates
-- Returns: {number of buckets, then for each of the latest `at_most`, or for the `wanted` one, four values: bucket, used, parked, reserved}
--
-- The declared values are as in limit_apply. `used` are slots, or what the rate counts now.

open_limits()

-- How many entries of a window's log lie within the period: it is sorted, the newest first.
local function logged(state)
  local low, high = 0, redis.call('LLEN', state.key)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if tonumber(redis.call('LINDEX', state.key, middle)) > now_us - state.period then
      low = middle + 1
    else
      high = middle
    end
  end
  return low
end

local function used(place)
  if kind == 'running' then
    return redis.call('ZCARD', 'runner:running:' .. place)
  end
  local state = rate_state({kind, name, place, count, period_us, burst})
  if not state then
    return 0
  elseif state.rule == window then
    return logged(state)
  end
  local full_at = tonumber(redis.call('GET', state.key)) or 0
  return math.max(math.ceil((full_at - now_us) / state.spacing - 0.001), 0)
end

local found = {redis.call('ZCARD', buckets)}
local places = wanted ~= '' and {wanted} or redis.call('ZREVRANGE', buckets, 0, at_most - 1)
for _, place in ipairs(places) do
  found[#found + 1] = place
  found[#found + 1] = used(place)
  found[#found + 1] = redis.call('ZCARD', 'runner:parked:' .. place)
  found[#found + 1] = redis.call('ZCARD', 'runner:reserved:' .. place)
end
return found
