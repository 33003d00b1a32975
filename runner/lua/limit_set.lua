-- Set a limit at run time, or clear it back to what the code declares.
-- KEYS: limits gated
-- ARGV: name definition
-- Uses: gates
-- Returns: 1 when something was changed, 0 when it was so already
--
-- `definition` is JSON, '' clears. It holds from now on: admissions read it in their own script.

local before = redis.call('HGET', limits, name)
if definition == '' then
  redis.call('HDEL', limits, name)
else
  redis.call('HSET', limits, name, definition)
end
write_gates(gated)
return (before or '') == definition and 0 or 1
