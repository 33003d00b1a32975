-- Take jobs that do not run out of their queue, and tell those who wait; each alone.
-- KEYS: queue held
-- ARGV: keep_ms:int entries...
-- Uses: clock tell wake fence flow
-- Returns: for each entry 1 (taken out), 0 (it is not in the queue), -1 (it runs, or has ended and
--          is committing), or an error text
--
-- An entry is two values: id, result. The result is kept for `keep_ms`; with 0 only those who wait
-- hear of it.

local function cancel(id, result)
  if not redis.call('ZSCORE', queue, id) or flow_stands_as(id) then
    return 0
  end
  local claim = redis.call('HGET', held, id)
  if redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 or (claim and held_parts(claim) ~= '-') then
    return -1
  end
  redis.call('ZREM', queue, id)
  redis.call('HDEL', held, id)
  redis.call('DEL', 'arq:job:' .. id, 'arq:retry:' .. id, 'runner:errors:' .. id,
    'runner:commits:' .. id)
  redis.pcall('ZREM', 'arq:abort', id)
  if keep_ms > 0 then
    redis.pcall('SET', 'arq:result:' .. id, result, 'PX', keep_ms)
  end
  tell_waiters(id, result)
  flow_note(id, 'f', result)
  return 1
end

local statuses = {}
for at = entries_at, #ARGV, 2 do
  local ran, status = pcall(cancel, ARGV[at], ARGV[at + 1])
  statuses[#statuses + 1] = ran and status
    or (type(status) == 'table' and status.err or tostring(status))
end
flow_settle()
flow_wake('')
return statuses
