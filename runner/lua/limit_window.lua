-- Sliding window, an exact log: the last `count` admissions, the newest first. One more is
-- admitted when the one that is `count` back lies a whole period in the past.

local window = {}

function window.key(state)
  return 'runner:window:' .. state.bucket
end

-- When `weight` fits, in microseconds; not before what was admitted last.
function window.earliest(state, weight)
  local entry = redis.call('LINDEX', state.key, state.count - weight)
  if not state.last then
    state.last = tonumber(redis.call('LINDEX', state.key, 0)) or 0
  end
  return math.max(state.last, entry and tonumber(entry) + state.period or 0)
end

function window.take(state, weight, at)
  for _ = 1, weight do
    redis.call('LPUSH', state.key, at)
  end
  state.last = at
end

function window.flush(state)
  redis.call('LTRIM', state.key, 0, state.keeps - 1)
  redis.call('PEXPIRE', state.key, math.ceil((state.last - now_us + state.period) / 1000) + 1000)
end

function window.most(state)
  return state.count
end
