-- Append entries again that Redis kept below the writer's position, without their being applied.
-- KEYS: units
-- ARGV: moved_ms:int entries...
-- Returns: the new id of each entry, or '' for one that is not there any more
--
-- `entries` are two values each: entry id, id of the job that it completes or ''. A job's marker
-- moves along; for a unit without a job `runner:moved:<entry>` leads to the new entry. The call can
-- be repeated.

-- A full Redis refuses what needs memory only as a script's first write: what is moved is applied,
-- and that is the way out of it.
redis.call('PERSIST', units)
local moved = {}
for at = entries_at, #ARGV, 2 do
  local entry, id = ARGV[at], ARGV[at + 1]
  local found = redis.call('XRANGE', units, entry, entry)[1]
  local new = ''
  if found then
    new = redis.call('XADD', units, '*', unpack(found[2]))
    if id == '' then
      redis.call('SET', 'runner:moved:' .. entry, new, 'PX', moved_ms)
    elseif redis.call('GET', 'arq:in-progress:' .. id) == 'committing:' .. entry then
      redis.call('SET', 'arq:in-progress:' .. id, 'committing:' .. new)
    end
    redis.call('XDEL', units, entry)
  end
  moved[#moved + 1] = new
end
return moved
