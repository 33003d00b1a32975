-- The account of what waits for the writer: entries and bytes, and how much may wait.
--
-- The leader writes the bounds; until there has been one, ours hold. The account is put right by
-- each new leader, and whenever nothing waits. `writer` is a key of the script that uses this.

local BOUND_ENTRIES = 1000000
local BOUND_BYTES = 67108864

local backlog_entries, backlog_bytes, bound_entries, bound_bytes
local entries_added, bytes_added = 0, 0

local function read_account()
  if not backlog_entries then
    local facts = redis.call('HMGET', writer, 'backlog', 'backlog_bytes', 'bound', 'bound_bytes')
    backlog_entries, backlog_bytes = tonumber(facts[1]) or 0, tonumber(facts[2]) or 0
    bound_entries = tonumber(facts[3]) or BOUND_ENTRIES
    bound_bytes = tonumber(facts[4]) or BOUND_BYTES
  end
end

-- Whether so many bytes more may wait, in a part of the room; a unit that is larger than all of it may
-- wait alone.
local function has_room(bytes, part)
  part = part or 1
  read_account()
  if backlog_entries + entries_added < 1 then
    return true
  end
  return backlog_entries + entries_added < bound_entries * part
    and backlog_bytes + bytes_added + bytes <= bound_bytes * part
end

-- Whether so much waits that no work shall be begun that adds to it: half of what may.
local function is_behind()
  read_account()
  return 2 * (backlog_entries + entries_added) > bound_entries
    or 2 * (backlog_bytes + bytes_added) > bound_bytes
end

local function note_added(bytes)
  entries_added, bytes_added = entries_added + 1, bytes_added + bytes
end

local function keep_account()
  if entries_added > 0 then
    redis.pcall('HINCRBY', writer, 'backlog', entries_added)
    redis.pcall('HINCRBY', writer, 'backlog_bytes', bytes_added)
  end
end
