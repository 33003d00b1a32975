-- Pause a queue: nothing is claimed from it; or resume it, and wake its workers.
-- KEYS: queue paused_key paused_queues idle wake
-- ARGV: paused:int
-- Uses: clock wake
-- Returns: 1 when it was paused before, else 0

local before = redis.call('EXISTS', paused_key)
if paused == 1 then
  redis.call('SET', paused_key, '1')
  redis.call('SADD', paused_queues, queue)
  return before
end
redis.call('DEL', paused_key)
redis.call('SREM', paused_queues, queue)
local waiting = redis.pcall('ZCARD', queue)
if type(waiting) == 'number' then  -- a key of another type holds no jobs
  wake_idle(idle, wake, waiting)
end
return before
