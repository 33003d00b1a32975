-- Let the prepared part of a flow run again.
-- KEYS: flow queue
-- ARGV: token id deadline_ms:int left:int ready facts...
-- Uses: clock tell wake flow
-- Returns: 1 (it runs), 0 (somebody else was first)
--
-- `ready` are the nodes that wait for nobody, packed as first, last, ...; `facts` are the counts of
-- what has ended for good.

if redis.call('HGET', flow, 'again') ~= token or redis.call('HGET', flow, 'state') == 'running' then
  return 0
end
local life_ms = tonumber(redis.call('HGET', flow, 'life'))
redis.call('HDEL', flow, 'again', 'stop', 'swept', 'ended', 'fatal', 'bad', 'deadline')
redis.call('HSET', flow, 'state', 'running', 'open', 0, 'left', left, unpack(ARGV, facts_at))
local score = FLOW_FAR_OFF_MS
if deadline_ms > 0 then
  score = now + deadline_ms
  redis.call('HSET', flow, 'deadline', score)
end
redis.call('ZADD', queue, score, 'flow:' .. id)
flow_expire(flow, life_ms)
local nodes, ranges = {}, cmsgpack.unpack(ready)
for index = 1, #ranges, 2 do
  for number = ranges[index], ranges[index + 1] do
    nodes[#nodes + 1] = string.format('%d', number)
  end
end
flow_follow(id, flow, {}, nodes, flow_no_change())
flow_wake('')
return 1
