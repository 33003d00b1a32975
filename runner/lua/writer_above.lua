-- Add a marker of the writer's own to the stream, so that what follows gets ids above it.
-- KEYS: units
-- ARGV: entry
-- Returns: 1 (added) or 0 (the ids are above it already)

-- A full Redis refuses what needs memory only as a script's first write: a writer that begins is
-- the way out of it.
redis.call('PERSIST', units)
local added = redis.pcall('XADD', units, entry, 'm', 'position')
if type(added) == 'table' and added.err then
  if string.find(added.err, 'equal or smaller', 1, true) then
    return 0
  end
  return added
end
return 1
