-- Write schedules down, new ones and changed ones.
-- KEYS: schedules
-- ARGV: book mode entries...
-- Returns: for each entry 1 (written), 0 (it was so already), -1 (absent), or whose it is: a text
--
-- An entry is four values: name, definition, what its trigger is, first due time in ms.
-- Modes:
--   add       of the API: refuses every name that is there
--   change    of the API: refuses those of the settings, and names that are not there
--   settings  of a worker's settings: refuses those of the API
-- A schedule whose trigger stays as it is keeps its due time: so what was missed is known.

local FIELDS = 4
local FAR_OFF_MS = 4102444800000
local source = mode == 'settings' and 'settings' or 'api'

local function put(name, definition, trigger, due)
  local key = book .. name
  local state = redis.call('HMGET', key, 'source', 'definition', 'trigger', 'paused')
  if state[1] and (mode == 'add' or state[1] ~= source) then
    return state[1]
  elseif not state[1] and mode == 'change' then
    return -1
  elseif state[2] == definition and state[3] == trigger then
    return 0
  end
  redis.call('HSET', key, 'source', source, 'definition', definition, 'trigger', trigger)
  redis.call('HDEL', key, 'call')  -- what its runs have decided on went with the former call
  if state[3] ~= trigger then
    redis.call('HSET', key, 'due', due)
    redis.call('ZADD', schedules, state[4] == '1' and FAR_OFF_MS or due, name)
  end
  return 1
end

local statuses = {}
for at = entries_at, #ARGV, FIELDS do
  statuses[#statuses + 1] = put(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
end
return statuses
