-- Token bucket by GCRA: one number, the time at which the bucket will be full again. Each
-- admission moves it on by its weight, and it may lie `burst` tokens ahead.

local bucket = {}

function bucket.key(state)
  return 'runner:bucket:' .. state.bucket
end

-- When `weight` fits, in microseconds.
function bucket.earliest(state, weight)
  if not state.full_at then
    state.full_at = tonumber(redis.call('GET', state.key)) or 0
  end
  return state.full_at + (weight - state.burst) * state.spacing
end

function bucket.take(state, weight, at)
  state.full_at = math.max(state.full_at, at) + weight * state.spacing
end

-- As a number: it travels with 17 digits.
function bucket.flush(state)
  local left = math.ceil((state.full_at - now_us) / 1000) + 1000
  redis.call('SET', state.key, state.full_at, 'PX', math.max(left, 1000))
end

function bucket.most(state)
  return state.burst
end
