-- Let jobs that wait for their time, or for another try, run now.
-- KEYS: queue held idle wake
-- ARGV: ids...
-- Uses: clock wake fence
-- Returns: how many were moved
--
-- Jobs that run, are due already, or are parked stay where they are.

local FAR_OFF_MS = 4102444800000
local moved = 0
for at = ids_at, #ARGV do
  local id = ARGV[at]
  local score = tonumber(redis.call('ZSCORE', queue, id) or 0)
  if score > now and score < FAR_OFF_MS and redis.call('EXISTS', 'arq:in-progress:' .. id) == 0 then
    local claim = redis.call('HGET', held, id)
    if not claim or held_parts(claim) == '-' then
      redis.call('ZADD', queue, 'XX', score_text(now_exact), id)
      moved = moved + 1
    end
  end
end
wake_idle(idle, wake, moved)
return moved
