-- Read results, or register a reply channel for those that are still to come.
-- KEYS: queue
-- ARGV: channel ttl_ms:int ids...
-- Returns: for each id its result, '' while it is to come, or false when there is nothing to wait for

local answers = {}
for at = ids_at, #ARGV do
  local id = ARGV[at]
  local result = redis.pcall('GET', 'arq:result:' .. id)
  if type(result) == 'table' then
    answers[#answers + 1] = false  -- no result that anybody could read
  elseif result then
    -- Nothing in the place of a result is one that no codec reads; '' would have its waiter wait.
    answers[#answers + 1] = result ~= '' and result or '\0'
  elseif redis.call('ZSCORE', queue, id) then
    redis.pcall('SADD', 'runner:waiters:' .. id, channel)
    redis.call('PEXPIRE', 'runner:waiters:' .. id, ttl_ms)
    answers[#answers + 1] = ''
  else
    answers[#answers + 1] = false
  end
end
return answers
