-- Become or stay the elected candidate; the key is the heartbeat too.
-- KEYS: leader
-- ARGV: name term_ms:int
-- Returns: 1 (elected) or 0 (another candidate is)

local holder = redis.call('GET', leader)
if holder and holder ~= name then
  return 0
end
-- A full Redis refuses what needs memory as a script's first write: the writer is what frees it.
redis.call('PERSIST', leader)
redis.call('SET', leader, name, 'PX', term_ms)
return 1
