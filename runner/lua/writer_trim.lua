-- Drop the entries of the stream below an id, and note from where on it is whole.
-- KEYS: units writer
-- ARGV: oldest
-- Returns: how many entries were dropped
--
-- `oldest` is never after the writer's position, so the entry there always stays.

local dropped = redis.call('XTRIM', units, 'MINID', oldest)
if dropped > 0 then
  local first = redis.call('XRANGE', units, '-', '+', 'COUNT', 1)[1]
  redis.call('HSET', writer, 'trimmed', first and first[1] or oldest)
end
-- Where nothing waits, the account of what does says so again.
local last = redis.call('XREVRANGE', units, '+', '-', 'COUNT', 1)[1]
if last and last[1] == redis.call('HGET', writer, 'answered') then
  redis.call('HSET', writer, 'backlog', 0, 'backlog_bytes', 0)
end
return dropped
