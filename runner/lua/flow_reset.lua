-- Prepare nodes of a flow that has ended to run again; nothing runs before `flow_again`.
-- KEYS: flow
-- ARGV: token id entries...
-- Returns: 1, or 0 when the flow runs, or somebody else prepares it
--
-- An entry is three values: number, new payload ('' keeps the old one), how many parents must end.

local FIELDS = 3

if redis.call('HGET', flow, 'again') ~= token or redis.call('HGET', flow, 'state') == 'running' then
  return 0
end
for at = entries_at, #ARGV, FIELDS do
  local number = ARGV[at]
  redis.call('HDEL', flow .. ':states', number)
  redis.call('HDEL', flow .. ':results', number)
  redis.call('HDEL', flow .. ':waits', 'x' .. number)
  redis.call('HSET', flow .. ':waits', number, ARGV[at + 2])
  if ARGV[at + 1] ~= '' then
    redis.call('HSET', flow .. ':jobs', number, ARGV[at + 1])
  end
  local job = 'flow:' .. id .. ':' .. number
  redis.call('DEL', 'arq:result:' .. job, 'arq:retry:' .. job)
end
return 1
