-- Put jobs into one queue; each entry succeeds or fails alone.
-- KEYS: queue idle wake
-- ARGV: entries...
-- Uses: clock wake put
-- Returns: for each entry 1 (queued), 0 (the id exists), -1 (the queue is full), or an error text
--
-- An entry is six values: id, payload, run-at in ms ('' for now, '+' and ms from now: whoever
-- enqueues may have another clock), lifetime of the payload in ms, '1' when the id may exist
-- already, and how many ids the queue may hold for this entry to be taken ('' for any number).
-- Entries with a place of their own go through enqueue_unique.

local FIELDS = 6
local statuses = {}

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

wake_for_these()
return statuses
