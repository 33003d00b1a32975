-- Note that a worker lives and what it does; hand it the orders that wait for it.
-- KEYS: workers info control
-- ARGV: name facts keep_ms:int
-- Uses: clock
-- Returns: the orders, the oldest first

redis.call('SET', info, facts, 'PX', keep_ms)
redis.call('ZADD', workers, now + keep_ms, name)
redis.call('ZREMRANGEBYSCORE', workers, '-inf', now)
redis.call('PEXPIRE', workers, keep_ms)
local orders = redis.call('LRANGE', control, 0, -1)
if #orders > 0 then
  redis.call('DEL', control)
end
return orders
