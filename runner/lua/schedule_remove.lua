-- Forget schedules of one source. Their jobs stay in the queue.
-- KEYS: schedules
-- ARGV: book source names...
-- Returns: for each name 1 (removed), -1 (absent), or whose it is: a text

local statuses = {}
for at = names_at, #ARGV do
  local key = book .. ARGV[at]
  local owner = redis.pcall('HGET', key, 'source')
  if type(owner) == 'table' then
    owner = source  -- no schedule, whoever wrote it
  end
  if not owner then
    redis.call('ZREM', schedules, ARGV[at])
    statuses[#statuses + 1] = -1
  elseif owner ~= source then
    statuses[#statuses + 1] = owner
  else
    redis.call('DEL', key)
    redis.call('ZREM', schedules, ARGV[at])
    statuses[#statuses + 1] = 1
  end
end
return statuses
