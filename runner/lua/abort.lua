-- Let a job that waits be claimed now, so that its abort is acted on.
-- KEYS: queue held idle wake
-- ARGV: id
-- Uses: clock wake
-- Returns: 1 when the job waits or runs, 0 when it is not in the queue any more
--
-- Only a job that nobody holds is moved, and only within the set: an id that has just ended is never
-- put back. A job that is committing has ended: for it an abort comes too late.

local score = redis.call('ZSCORE', queue, id)
if not score then
  return 0
end
local holder = redis.call('GET', 'arq:in-progress:' .. id)
if holder then
  return string.sub(holder, 1, 11) == 'committing:' and 0 or 1
end
local claim = redis.call('HGET', held, id)
if tonumber(score) > now and (not claim or string.sub(claim, 1, 2) == '- ') then
  redis.call('ZADD', queue, 'XX', now, id)
  wake_idle(idle, wake, 1)
end
return 1
