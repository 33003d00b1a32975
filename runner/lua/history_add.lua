-- Add what one worker has counted in a queue since its last call, and the jobs that ended last.
-- KEYS: queue finished counted
-- ARGV: number:int minute_ms:int tasks_ms:int finished_ms:int most:int totals:int by_task:int jobs:int piece entries...
-- Uses: clock
-- Returns: the minute that it was added to, 0 where it had been added before
--
-- The entries: `totals` fields with their counts, `by_task` fields with theirs. The piece has as many
-- jobs as `jobs` says. In front of each piece of the list stands the number of its last job, counted
-- from the first that was ever listed: a piece goes when all of its jobs are too old.
--
-- `number` counts what this worker adds to this queue: what is sent again, because its answer was
-- lost, adds nothing.

local KEEP_COUNTED_MS = 3600000

if tonumber(redis.call('GET', counted) or 0) >= number then
  return 0
end
redis.call('SET', counted, number, 'PX', KEEP_COUNTED_MS)

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

local function number_of(index)
  local at = redis.call('LINDEX', finished, index)
  return at and tonumber(string.match(at, '^%d+')) or 0
end

local at = add('runner:minute:' .. queue .. ':' .. minute, entries_at, totals, minute_ms)
add('runner:minute-tasks:' .. queue .. ':' .. minute, at, by_task, tasks_ms)
if jobs > 0 then
  local last = number_of(0) + jobs
  redis.call('LPUSH', finished, string.format('%d', last) .. ':' .. piece)
  while last - number_of(-1) >= most do
    redis.call('RPOP', finished)
  end
  redis.call('PEXPIRE', finished, finished_ms)
end
return minute
