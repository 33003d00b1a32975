-- Put jobs into one queue; each entry succeeds or fails alone.
-- KEYS: queue idle wake
-- ARGV: entries...
-- Uses: clock wake
-- Returns: for each entry 1 (queued), 0 (the id exists), -1 (the queue is full), or an error text
--
-- An entry is six values: id, payload, run-at in ms ('' for now), lifetime of the payload in
-- ms, '1' when the id may exist already, and how many ids the queue may hold for this entry to
-- be taken ('' for any number).
-- An immediate job gets Redis's time, less two ms so that no clock a little behind calls it
-- deferred, and a fraction that keeps the order of the call.

local FIELDS = 6
local SOON_MS = 5000
local statuses = {}
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

local function put(index, id, payload, run_at, lifetime)
  local stored = redis.pcall('SET', 'arq:job:' .. id, payload, 'PX', lifetime)
  if stored.err then
    return stored.err
  end
  local score = tonumber(run_at) or (now_exact - 2 + index / 1000)
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

for at = entries_at, #ARGV, FIELDS do
  local id = ARGV[at]
  local known = ARGV[at + 4] == '1'
    and redis.call('EXISTS', 'arq:job:' .. id, 'arq:result:' .. id) > 0
  local index = #statuses
  if known then
    statuses[index + 1] = 0
  elseif is_full(ARGV[at + 5]) then
    statuses[index + 1] = -1
  else
    statuses[index + 1] = put(index % 1000, id, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
  end
end

if due == 0 and soon then
  due = 1  -- one worker wakes to set its timer
end
wake_idle(idle, wake, due)
return statuses
