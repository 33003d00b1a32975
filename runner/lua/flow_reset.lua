-- Prepare nodes of a flow that has ended to run again; nothing runs before `flow_again`.
-- KEYS: flow
-- ARGV: token id entries...
-- Returns: 1, or 0 when the flow runs, or somebody else prepares it
--
-- An entry is three values: number, new payload ('' keeps the old one), how many parents must end.

local FIELDS = 3

local facts = redis.call('HMGET', flow, 'again', 'state')
if facts[1] ~= token or not facts[2] or facts[2] == 'running' then
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
  redis.pcall('ZREM', 'arq:abort', job)
end
return 1
