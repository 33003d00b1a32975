-- Start a flow whose nodes are all stored: the one step that makes it effective.
-- KEYS: flow queue
-- ARGV: id total:int deadline_ms:int life_ms:int roots facts...
-- Uses: clock tell wake flow
-- Returns: 1 (started), 0 (it was started before), -1 (nodes of it are gone: store them again)
--
-- `roots` are the nodes without parents, packed as first, last, ...; `facts` are fields and values;
-- `deadline_ms` counts from now, 0 for none.

-- How many flows are listed, and for how long.
local LISTED, LISTED_MS = 10000, 30 * 24 * 3600 * 1000

if redis.call('HEXISTS', flow, 'state') == 1 then
  return 0
end
if redis.call('HLEN', flow .. ':plan') ~= total then
  return -1
end
local score = FLOW_FAR_OFF_MS
redis.call('HSET', flow, unpack(ARGV, facts_at))
redis.call('HSET', flow, 'state', 'running', 'started', now, 'open', 0, 'home', queue,
  'life', life_ms, 'total', total, 'next', total)
if deadline_ms > 0 then
  score = now + deadline_ms
  redis.call('HSET', flow, 'deadline', score)
end
-- So that they exist, and get the lifetime of the rest.
for _, part in ipairs({':waits', ':states', ':results'}) do
  redis.call('HSET', flow .. part, '-', '')
end
redis.call('ZADD', queue, score, 'flow:' .. id)
local listed = 'runner:flows:' .. queue
redis.call('ZADD', listed, now, id)
redis.call('ZREMRANGEBYSCORE', listed, '-inf', now - LISTED_MS)
redis.call('ZREMRANGEBYRANK', listed, 0, -LISTED - 1)
redis.call('PEXPIRE', listed, LISTED_MS)
flow_expire(flow, life_ms)
local ready, ranges = {}, cmsgpack.unpack(roots)
for index = 1, #ranges, 2 do
  for number = ranges[index], ranges[index + 1] do
    ready[#ready + 1] = string.format('%d', number)
  end
end
flow_follow(id, flow, {}, ready, flow_no_change())
flow_wake('')
return 1
