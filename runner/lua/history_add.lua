-- Add what one worker has counted in a queue since its last call, and the jobs that ended last.
-- KEYS: queue finished
-- ARGV: minute_ms:int tasks_ms:int finished_ms:int most:int totals:int by_task:int entries...
-- Uses: clock
-- Returns: the minute that it was added to
--
-- The entries: `totals` fields with their counts, `by_task` fields with theirs, then the jobs, the
-- oldest first.

local minute = string.format('%d', math.floor(now / 60000))

local function add(key, at, count, keep_ms)
  for index = at, at + 2 * count - 2, 2 do
    redis.call('HINCRBY', key, ARGV[index], ARGV[index + 1])
  end
  if count > 0 then
    redis.call('PEXPIRE', key, keep_ms)
  end
  return at + 2 * count
end

local at = add('runner:minute:' .. queue .. ':' .. minute, entries_at, totals, minute_ms)
at = add('runner:minute-tasks:' .. queue .. ':' .. minute, at, by_task, tasks_ms)
if at <= #ARGV then
  redis.call('LPUSH', finished, unpack(ARGV, at))
  redis.call('LTRIM', finished, 0, most - 1)
  redis.call('PEXPIRE', finished, finished_ms)
end
return minute
