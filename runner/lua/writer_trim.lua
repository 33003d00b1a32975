-- Drop old entries of the stream; the one at the position, and what is after it, always stay.
-- KEYS: units writer
-- ARGV: position oldest keep:int
-- Returns: how many entries were dropped
--
-- Kept is what is younger than the id `oldest`, but at most `keep` entries behind the position.

local info = redis.call('XINFO', 'STREAM', units)
local added, length = 0, 0
for at = 1, #info, 2 do
  if info[at] == 'entries-added' then
    added = info[at + 1]
  elseif info[at] == 'length' then
    length = info[at + 1]
  end
end
local waiting = math.max(0, added - tonumber(redis.call('HGET', writer, 'done') or '0'))

-- `oldest` is no later than the position: the caller sees to it.
local dropped = redis.call('XTRIM', units, 'MINID', oldest)
if length - dropped - waiting > keep then
  local spare = length - dropped - waiting - keep
  local from = redis.call('XRANGE', units, '-', position, 'COUNT', 1)[1]
  if from then
    dropped = dropped + redis.call('XTRIM', units, 'MAXLEN', length - dropped - spare)
  end
end
if dropped > 0 then
  local first = redis.call('XRANGE', units, '-', '+', 'COUNT', 1)[1]
  redis.call('HSET', writer, 'trimmed', first and first[1] or position)
end
return dropped
