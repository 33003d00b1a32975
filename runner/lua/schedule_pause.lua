-- Pause a schedule, or let it go on.
-- KEYS: schedules
-- ARGV: book name paused due
-- Returns: 1, or -1 when there is no such schedule
--
-- `paused` is '1' or '0'. What was due meanwhile is not made up for: `due` is the next due time
-- of a schedule that goes on; one that was not paused keeps its own.

local FAR_OFF_MS = 4102444800000
local key = book .. name
if redis.call('EXISTS', key) == 0 then
  return -1
end
if paused == '1' then
  redis.call('HSET', key, 'paused', '1')
  redis.call('ZADD', schedules, FAR_OFF_MS, name)
elseif redis.call('HGET', key, 'paused') == '1' or redis.call('HGET', key, 'due') == '' then
  redis.call('HSET', key, 'paused', '0', 'due', due)
  redis.call('ZADD', schedules, due, name)
end
return 1
