-- Stop a flow: nothing of it starts any more, and what runs is asked to end.
-- KEYS: flow
-- ARGV: id state
-- Uses: clock tell wake flow
-- Returns: 1 (it stops), 0 (it had ended, or stops already), -1 (there is none)

local facts = redis.call('HMGET', flow, 'state', 'stop', 'open', 'life')
if not facts[1] then
  return -1
end
if facts[1] ~= 'running' or facts[2] then
  return 0
end
flow_stop(id, flow, state)
if facts[3] == '0' then
  flow_end(id, flow, state, tonumber(facts[4]))
end
flow_wake('')
return 1
