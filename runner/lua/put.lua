-- Put one job into the queue, and count what is to be said of it at the end.

local SOON_MS = 5000
local due = 0
local soon = false
local length  -- ids in the queue, asked for when the first entry with a bound comes

local function is_full(max_length)
  if max_length == '' then
    return false
  end
  if not length then
    local counted = redis.pcall('ZCARD', queue)
    length = type(counted) == 'number' and counted or 0  -- no set: the ZADD will say so
  end
  return length >= tonumber(max_length)
end

-- An immediate job gets Redis's time, less two ms so that no clock a little behind calls it
-- deferred, and a fraction that keeps the order of the call.
local function put(index, id, payload, run_at, lifetime)
  local stored = redis.pcall('SET', 'arq:job:' .. id, payload, 'PX', lifetime)
  if stored.err then
    return stored.err
  end
  local score
  if run_at == '' then
    score = now_exact - 2 + index / 1000
  else
    score = tonumber(run_at)
    if string.sub(run_at, 1, 1) == '+' then
      score = now_exact + score
    end
  end
  -- As a number: it travels with 17 digits, and costs less than to write it as text here.
  local added = redis.pcall('ZADD', queue, score, id)
  if type(added) == 'table' then
    redis.call('DEL', 'arq:job:' .. id)
    return added.err
  end
  if score <= now_exact + 1 then
    due = due + 1
  elseif score < now + SOON_MS then
    soon = true
  end
  if length then
    length = length + added
  end
  return 1
end

local function wake_for_these()
  if due == 0 and soon then
    due = 1  -- one worker wakes to set its timer
  end
  wake_idle(idle, wake, due)
end
