-- Rates: who may start now, and when the others come back.
--
-- Who is refused gets a place in `runner:reserved:<bucket>`, spaced at the rate behind the last
-- one, and comes back then. Places only order the jobs: what counts are admissions. So one who
-- comes late breaks no limit, and a place that nobody takes up blocks nothing: the next ones are
-- pulled forward. Newcomers stand behind all places. What fits within `HOLD_US` is admitted for
-- that moment, and its worker waits so long.

local HOLD_US, SLACK_US = 50000, 100000
local PULLED, DROPPED = 50, 1000
local DAY_MS = 86400000

local rates = {}  -- bucket → its state in this call

-- The state of one limit; nil when it is not set and nothing declares it.
local function rate_state(limit)
  local name, place = limit[2], limit[3]
  if rates[place] ~= nil then
    return rates[place] or nil
  end
  local kind, count, period, burst = limit[1], limit[4], limit[5], limit[6]
  local keeps, set = count, set_limit(name)
  if set and set.kind ~= 'running' then
    kind, count, period, burst = set.kind, set.count, set.period_us, set.burst
  end
  if count == 0 then
    rates[place] = false
    return nil
  end
  local state = {bucket = place, count = count, period = period, burst = burst,
    spacing = period / count, keeps = math.max(keeps, count),
    rule = kind == 'window' and window or bucket, reserved = 'runner:reserved:' .. place}
  state.key = state.rule.key(state)
  state.waiting = redis.call('ZCARD', state.reserved)
  rates[place] = state
  return state
end

-- A place names its job and what that weighs.
local function place_of(member, weight)
  return weight .. '\n' .. member
end

local function place_parts(place)
  local at = string.find(place, '\n', 1, true)
  return tonumber(string.sub(place, 1, at - 1)), member_parts(string.sub(place, at + 1))
end

-- Is there still a job in its queue behind a place?
local function is_taken_up(place)
  local _, queue_name, id = place_parts(place)
  return redis.call('ZSCORE', queue_name, id) ~= false
end

-- The last place, in microseconds; those at the end that nobody will take up are dropped.
local function last_place(state)
  if not state.tail then
    for _ = 1, DROPPED do
      local last = redis.call('ZRANGE', state.reserved, -1, -1, 'WITHSCORES')
      state.tail = (tonumber(last[2]) or 0) * 1000
      if not last[1] or is_taken_up(last[1]) then
        break
      end
      state.waiting = state.waiting - redis.call('ZREM', state.reserved, last[1])
    end
  end
  return state.waiting > 0 and state.tail or 0
end

-- When a job may start at the earliest, in microseconds; whether it has come for its place, and late.
local function turn_of(state, member, weight)
  local named = place_of(member, weight)
  weight = math.min(weight, state.rule.most(state))
  local at = math.max(now_us, state.rule.earliest(state, weight))
  if state.waiting == 0 then
    return at, false, false
  end
  local place = redis.call('ZSCORE', state.reserved, named)
  if not place then
    local last = last_place(state)
    return last > 0 and math.max(at, last + state.spacing * weight) or at,
      false, false
  end
  place = tonumber(place) * 1000
  local is_late = at > now_us + HOLD_US and place <= at
  if is_late then
    -- It has come late, and others were admitted in its place: such come back one after the other.
    local late = 'runner:late:' .. state.bucket
    if not state.late then
      state.late = tonumber(redis.call('GET', late)) or 0
    end
    at = math.max(at, state.late + state.spacing * weight)
  end
  return math.max(at, place), true, is_late
end

local function reserve(state, member, weight, at)
  local place = at / 1000
  state.waiting = state.waiting + redis.call('ZADD', state.reserved, score_text(place),
    place_of(member, weight))
  state.tail = math.max(last_place(state), place * 1000)
  state.moved = true
end

local function note_late(state, at)
  state.late = math.max(state.late, at)
  redis.call('SET', 'runner:late:' .. state.bucket, state.late, 'PX',
    math.ceil(math.max(state.late - now_us, 0) / 1000) + 1000)
end

local function forget_place(state, named)
  local gone = redis.call('ZREM', state.reserved, named)
  state.waiting = state.waiting - gone
  if gone > 0 then
    state.tail = nil
  end
end

local function take(state, member, weight, at, has_place)
  state.rule.take(state, math.min(weight, state.rule.most(state)), at)
  state.took = true
  if has_place then
    forget_place(state, place_of(member, weight))
  end
end

-- Whether a place lies later than it has to, and not by accident: it could be `rank` jobs from now.
local function is_loose(state, rank)
  local found = redis.call('ZRANGE', state.reserved, rank, rank, 'WITHSCORES')
  if not found[1] then
    return false
  end
  local weight = place_parts(found[1])
  local earliest = state.rule.earliest(state, math.min(weight, state.rule.most(state)))
  local at = math.max(now_us, earliest) + rank * state.spacing
  return tonumber(found[2]) * 1000 - at > 2 * state.spacing * weight + SLACK_US
end

-- Where places were given up, or the rate was raised, those behind come earlier. Given up places
-- leave a gap before the first; after a raise the first is no later than it was, and they lie too
-- far apart.
local function pull_forward(state)
  for _ = 1, DROPPED do
    local head = redis.call('ZRANGE', state.reserved, 0, 0, 'WITHSCORES')
    if not head[1] then
      return
    elseif is_taken_up(head[1]) then
      break
    end
    forget_place(state, head[1])
  end
  if not is_loose(state, 0) and not is_loose(state, math.min(PULLED, state.waiting) - 1) then
    return
  end
  local at = now_us
  local places = redis.call('ZRANGE', state.reserved, 0, PULLED - 1, 'WITHSCORES')
  for index = 1, #places, 2 do
    local score = tonumber(places[index + 1])
    local weight, queue_name, id = place_parts(places[index])
    at = math.max(at, state.rule.earliest(state, math.min(weight, state.rule.most(state))))
    if score * 1000 - at > 2 * state.spacing * weight
      and tonumber(redis.call('ZSCORE', queue_name, id) or 0) == score then
      redis.call('ZADD', queue_name, 'XX', score_text(at / 1000), id)
      redis.call('ZADD', state.reserved, score_text(at / 1000), places[index])
      note_release(queue_name)
    end
    at = at + state.spacing * weight
  end
  state.tail = nil
end

-- Write down what this call admitted and reserved.
local function flush_rates()
  for _, state in pairs(rates) do
    if state then
      if state.took then
        state.rule.flush(state)
      end
      if state.waiting > 0 then
        pull_forward(state)
      end
      if state.moved then
        local ahead = math.max(last_place(state) - now_us, 0)
        redis.call('PEXPIRE', state.reserved, math.ceil(ahead / 1000) + DAY_MS)
      end
    end
  end
end

-- Nothing holds the limit any more: who waits for a place comes now. Return how many were looked at.
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
