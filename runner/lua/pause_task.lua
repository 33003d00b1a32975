-- Pause a task in the whole fleet, or resume it and release who was parked.
-- KEYS: paused_tasks gated
-- ARGV: task paused:int
-- Uses: clock wake limits unpause gates
-- Returns: {1 when it was so before, else 0; how many parked jobs were looked at}
--
-- A resumed task has at most a page of its jobs released by one call: call again while there are.

open_limits()

if paused == 1 then
  local added = redis.call('SADD', paused_tasks, task)
  write_gates(gated)
  return {1 - added, 0}
end
local removed = redis.call('SREM', paused_tasks, task)
write_gates(gated)
local looked = unpause(task)
wake_released()
return {removed, looked}
