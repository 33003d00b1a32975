-- Store nodes of a flow that has not started; what is never started expires.
-- KEYS: flow
-- ARGV: lifetime_ms:int entries...
-- Returns: how many nodes are stored by now, or -1 when the flow has started
--
-- An entry is five values: number, packed plan, packed name and task, payload ('' for a gate), and how
-- many parents must end ('' for none or one).

local FIELDS = 5

if redis.call('HEXISTS', flow, 'state') == 1 then
  return -1
end
local plans, names, jobs, waits = {}, {}, {}, {}
for at = entries_at, #ARGV, FIELDS do
  local number = ARGV[at]
  plans[#plans + 1], plans[#plans + 2] = number, ARGV[at + 1]
  names[#names + 1], names[#names + 2] = number, ARGV[at + 2]
  if ARGV[at + 3] ~= '' then
    jobs[#jobs + 1], jobs[#jobs + 2] = number, ARGV[at + 3]
  end
  if ARGV[at + 4] ~= '' then
    waits[#waits + 1], waits[#waits + 2] = number, ARGV[at + 4]
  end
end
for part, flat in pairs({[':plan'] = plans, [':names'] = names, [':jobs'] = jobs, [':waits'] = waits}) do
  if #flat > 0 then
    redis.call('HSET', flow .. part, unpack(flat))
    redis.call('PEXPIRE', flow .. part, lifetime_ms)
  end
end
return redis.call('HLEN', flow .. ':plan')
