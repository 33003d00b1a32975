-- Keep a dead letter, and the list of them, for 30 days.

local DEAD_MS = 2592000000

local function bury(dead_key, id, letter)
  redis.call('SET', 'runner:dead-letter:' .. id, letter, 'PX', DEAD_MS)
  redis.call('ZADD', dead_key, now, id)
  redis.call('ZREMRANGEBYSCORE', dead_key, '-inf', now - DEAD_MS)
  redis.call('PEXPIRE', dead_key, DEAD_MS)
end
