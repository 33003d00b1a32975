-- Close a batch: it ends when the jobs that it has by now have ended.
-- KEYS: flow
-- ARGV: id
-- Uses: clock tell wake flow
-- Returns: 1 (closed), 0 (it was closed before, or stopped), -1 (there is none)
--
-- The first node stands for its being open.

local facts = redis.call('HMGET', flow, 'state', 'stop')
if not facts[1] then
  return -1
end
if facts[1] ~= 'running' or facts[2] or redis.call('HSETNX', flow .. ':states', '0', 's') == 0 then
  return 0
end
flow_follow(id, flow, {{flow_plans(flow, {'0'})[1], true, 'whole', false}}, {}, flow_no_change())
flow_wake('')
return 1
