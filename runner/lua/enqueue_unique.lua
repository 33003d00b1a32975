-- Put jobs into one queue, some of which may have no second beside them; each succeeds or fails alone.
-- KEYS: queue idle wake held places
-- ARGV: entries...
-- Uses: clock wake tell put places
-- Returns: for each entry 1 (queued), 0 (the id exists), -1 (the queue is full), {id, 1 if it runs} of the job that has its place, or an error text
--
-- An entry is eleven values: the six of enqueue.lua, and of its place
--   digest    what it is about; '' for a job without a place, and so are the others
--   rule      see places.lua
--   replaces  '1' when it takes the place of a job that waits
--   ms        rule `time`: for how long the place is taken; `debounce`: the time to its start
--   most ms   `debounce`: how long after the first call it starts at the latest; '' for any time

local FIELDS = 11
local statuses = {}

local function put_unique(index, at)
  local id, lifetime = ARGV[at], tonumber(ARGV[at + 3])
  local digest, rule, ms = ARGV[at + 6], ARGV[at + 7], tonumber(ARGV[at + 9])
  local other, state, since = holder_of(digest, rule)
  if other and not (ARGV[at + 8] == '1' and state == 'waits') then
    return {other, state == 'runs' and 1 or 0}
  elseif not other and is_full(ARGV[at + 5]) then
    return -1
  end
  since = since or now
  local run_at = ARGV[at + 2]
  if rule == 'debounce' then
    run_at = now_exact + ms
    if ARGV[at + 10] ~= '' then
      run_at = math.min(run_at, since + tonumber(ARGV[at + 10]))
    end
  end
  local status = put(index, id, ARGV[at + 1], run_at, lifetime)
  if status ~= 1 then
    return status
  end
  if other then
    local removed = take_out(other, id)
    if length then
      length = length - removed
    end
  end
  local over = rule == 'time' and now + ms or 0
  give_place(digest, since, over, id, math.max(lifetime, ms))
  return 1
end

local function enqueue(index, at)
  local id = ARGV[at]
  if ARGV[at + 4] == '1' and redis.call('EXISTS', 'arq:job:' .. id, 'arq:result:' .. id) > 0 then
    return 0
  elseif ARGV[at + 6] ~= '' then
    return put_unique(index, at)
  elseif is_full(ARGV[at + 5]) then
    return -1
  end
  return put(index, id, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
end

for at = entries_at, #ARGV, FIELDS do
  local index = #statuses
  -- What goes wrong with one entry stays with it: the others are queued.
  local ran, status = pcall(enqueue, index % 1000, at)
  statuses[index + 1] = ran and status
    or (type(status) == 'table' and status.err or tostring(status))
end

pcall(tidy_places)
wake_for_these()
return statuses
