-- Reserve numbers for nodes that a running node adds: the same when its job runs again.
-- KEYS: flow
-- ARGV: adder sequence:int count:int
-- Returns: the first number, or -1 when the flow does not run
--
-- `sequence` counts what this node adds in one attempt.

local facts = redis.call('HMGET', flow, 'state', 'stop')
if facts[1] ~= 'running' or facts[2] then
  return -1
end
local field = 'add:' .. adder .. ':' .. sequence
local known = redis.call('HGET', flow, field)
if known then
  local first, reserved = string.match(known, '^(%d+) (%d+)$')
  if tonumber(reserved) == count then
    return tonumber(first)
  end
  if redis.call('HEXISTS', flow .. ':plan', first) == 1 then
    return redis.error_reply('CHANGED this node has added something else before')
  end
end
local first = redis.call('HINCRBY', flow, 'next', count) - count
redis.call('HSET', flow, field, first .. ' ' .. count)
return first
