-- Add what one worker has counted in a queue since its last call, and the jobs that ended last.
-- KEYS: queue finished counted refused_ends
-- ARGV: number:int most:int totals:int by_task:int jobs:int piece entries...
-- Uses: clock history
-- Returns: 1, or 0 where it had been added before
--
-- The entries: `totals` fields with their counts, `by_task` fields with theirs. The piece has as many
-- jobs as `jobs` says, of which `most` are kept.
--
-- `number` counts what this worker adds to this queue: what is sent again, because its answer was
-- lost, adds nothing.

local KEEP_COUNTED_MS = 3600000

if tonumber(redis.call('GET', counted) or 0) >= number then
  return 0
end
redis.call('SET', counted, number, 'PX', KEEP_COUNTED_MS)

local function add(key, at, count, keep_ms)
  for index = at, at + 2 * count - 2, 2 do
    redis.call('HINCRBY', key, ARGV[index], ARGV[index + 1])
  end
  if count > 0 then
    redis.call('PEXPIRE', key, keep_ms)
  end
  return at + 2 * count
end

local all_key, by_task_key = minute_keys(queue, now)
local at = add(all_key, entries_at, totals, COUNTED_MS)
add(by_task_key, at, by_task, COUNTED_BY_TASK_MS)
if jobs > 0 then
  jobs, piece = without_refused(refused_ends, jobs, piece)
end
if jobs > 0 then
  list_ended(finished, piece, jobs, most)
end
return 1
