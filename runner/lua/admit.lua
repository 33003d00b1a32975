-- Admit claimed jobs of limited tasks; who may not run goes back in the same step.
-- KEYS: queue held
-- ARGV: entries...
-- Uses: clock wake fence again limits limit_window limit_bucket limit_rates
-- Returns: for each entry {1, us to wait} (admitted), {2, ms until it comes back, limit} (delayed), {3, 0, limit} (parked), {0} (the lease is lost), or an error text
--
-- An entry is five values: id, token of its claim, attempt, task, limits. The limits are packed,
-- each a list: kind, name, bucket, count, and of a rate also period_us, burst, weight. Kinds are
-- `running`, `window` and `bucket`; a count of 0 declares nothing, and holds as set at run time.
-- All limits of a job admit it, or none counts it. A job that was admitted before, and was claimed
-- again because its worker died, still has its slots.

open_limits()
local FIELDS = 5
local SOON_US = 5000000
local soon = false
local names = {}
for at = entries_at, #ARGV, FIELDS do
  names[#names + 1] = 'arq:in-progress:' .. ARGV[at]
end
local holders = redis.call('MGET', unpack(names))
local pauses = redis.call('EXISTS', 'runner:paused-tasks') == 1
local unpacked, touched = {}, {}

local function limits_of(packed)
  if not unpacked[packed] then
    unpacked[packed] = cmsgpack.unpack(packed)
  end
  return unpacked[packed]
end

-- Which buckets are in use, for whoever lists, changes or sweeps.
local function touch(limit)
  local name, place = limit[2], limit[3]
  if not touched[place] then
    touched[place] = true
    redis.call('ZADD', 'runner:limit-buckets:' .. name, now, place)
    redis.call('PEXPIRE', 'runner:limit-buckets:' .. name, LIMIT_MS)
  end
end

-- Give up what the job has: promised slots, and its places unless it keeps them.
local function let_go(limits, member, keeps_places)
  for _, limit in ipairs(limits) do
    if limit[1] == 'running' then
      free_slot(limit[3], member, limit[4])
    elseif not keeps_places then
      local state = rate_state(limit)
      if state and state.waiting > 0 then
        forget_place(state, place_of(member, limit[7]))
      end
    end
  end
end

local function park(id, key, at)
  local kept = put_back(id, at)
  redis.call('ZADD', key, score_text(kept), member_of(queue, id))
  redis.call('PEXPIRE', key, LIMIT_MS)
end

-- Whether a job has a slot of this limit, or could have one.
local function has_room(limit, member)
  local place = limit[3]
  local running = 'runner:running:' .. place
  if redis.call('ZSCORE', running, member) then
    return true
  end
  local most = most_running(place, limit[4])
  if redis.call('ZCARD', running) >= most then
    drop_stale(place)
  end
  unpark(place, most)  -- who is parked goes first
  return redis.call('ZCARD', running) < most
end

local function full_limit(limits, member)
  for _, limit in ipairs(limits) do
    if limit[1] == 'running' then
      touch(limit)
      if not has_room(limit, member) then
        return limit
      end
    end
  end
  return nil
end

-- When each of the rates lets a job start; the last of these times, and whose it is.
local function turns_of(limits, member)
  local turns, start, slowest = {}, now_us, nil
  for _, limit in ipairs(limits) do
    local state = limit[1] ~= 'running' and rate_state(limit)
    if state then
      touch(limit)
      local at, has_place, is_late = turn_of(state, member, limit[7])
      turns[#turns + 1] = {state = state, at = at, has_place = has_place, is_late = is_late,
        weight = limit[7]}
      if at > start then
        start, slowest = at, limit[2]
      end
    end
  end
  return turns, start, slowest
end

local function delay(id, member, limits, turns, start, slowest)
  let_go(limits, member, true)
  for _, turn in ipairs(turns) do
    if turn.at > now_us + HOLD_US or turn.has_place then
      reserve(turn.state, member, turn.weight, start)
      if turn.is_late then
        note_late(turn.state, start)
      end
    end
  end
  put_back(id, start / 1000)
  soon = soon or start < now_us + SOON_US
  return {2, math.ceil((start - now_us) / 1000), slowest}
end

local function admit(at, holder)
  local id, task = ARGV[at], ARGV[at + 3]
  if not is_mine(id, ARGV[at + 1], ARGV[at + 2], holder) then
    return {0}
  end
  local member, limits = member_of(queue, id), limits_of(ARGV[at + 4])
  if pauses and redis.call('SISMEMBER', 'runner:paused-tasks', task) == 1 then
    let_go(limits, member)
    park(id, 'runner:parked-task:' .. task, PAUSED_MS)
    redis.call('SADD', 'runner:parked-tasks', task)
    redis.call('PEXPIRE', 'runner:parked-tasks', LIMIT_MS)
    return {3, 0, ''}
  end
  local full = full_limit(limits, member)
  if full then
    let_go(limits, member)
    park(id, 'runner:parked:' .. full[3], PARKED_MS)
    return {3, 0, full[2]}
  end
  local turns, start, slowest = turns_of(limits, member)
  if start > now_us + HOLD_US then
    return delay(id, member, limits, turns, start, slowest)
  end
  for _, turn in ipairs(turns) do
    take(turn.state, member, turn.weight, start, turn.has_place)
  end
  for _, limit in ipairs(limits) do
    if limit[1] == 'running' and most_running(limit[3], limit[4]) < math.huge then
      redis.call('ZADD', 'runner:running:' .. limit[3], now, member)
      redis.call('PEXPIRE', 'runner:running:' .. limit[3], LIMIT_MS)
    end
  end
  return {1, math.ceil(start - now_us)}
end

local statuses = {}
for index = 1, #names do
  -- What goes wrong with one job stays with it.
  local ran, status = pcall(admit, entries_at + (index - 1) * FIELDS, holders[index])
  statuses[index] = ran and status
    or (type(status) == 'table' and status.err or tostring(status))
end
flush_rates()
if soon then
  note_release(queue)  -- one worker wakes to set its timer
end
wake_released()
return statuses
