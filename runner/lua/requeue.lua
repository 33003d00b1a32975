-- Put dead jobs back into their queue; each succeeds or fails alone, and its letter goes with it.
-- KEYS: queue dead held idle wake places
-- ARGV: run_at lifetime:int entries...
-- Uses: clock wake tell errors places
-- Returns: for each entry 1 (queued), 0 (its letter is gone), -1 (a job of its id is there),
--          {id} of the job that has its place, or an error text
--
-- An entry is six values: id, time of death, payload, the record of its last error; and of a job
-- that may have no second one beside it the digest and rule of its place (see places.lua), or ''.
-- `run_at` is a time in ms, or '' for now. The letter is removed in the step that enqueues: whoever
-- comes second finds none. Its errors become those of the job's earlier attempts.

local FIELDS = 6
local due = 0

local function requeue(index, at)
  local id, died, payload, record = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local digest, rule = ARGV[at + 4], ARGV[at + 5]
  local score = redis.call('ZSCORE', dead, id)
  local letter, beside = 'runner:dead-letter:' .. id, 'runner:dead-errors:' .. id
  if not score or tonumber(score) ~= tonumber(died) or redis.call('EXISTS', letter) == 0 then
    return 0
  end
  if redis.call('EXISTS', 'arq:job:' .. id) == 1 or redis.call('ZSCORE', queue, id) then
    return -1
  end
  local other = digest ~= '' and holder_of(digest, rule)
  if other then
    return {other}
  end
  -- First what can be refused: nothing else has happened then.
  redis.call('SET', 'arq:job:' .. id, payload, 'PX', lifetime)
  local run_ms = tonumber(run_at) or (now_exact - 2 + index / 1000)
  local added = redis.pcall('ZADD', queue, score_text(run_ms), id)
  if type(added) == 'table' then
    redis.call('DEL', 'arq:job:' .. id)
    error(added.err)
  end
  redis.call('ZREM', dead, id)
  redis.call('DEL', letter, 'runner:errors:' .. id, 'arq:result:' .. id, 'arq:retry:' .. id,
    'arq:in-progress:' .. id, 'runner:commits:' .. id)
  redis.call('HDEL', held, id)
  redis.pcall('ZREM', 'arq:abort', id)
  if redis.call('EXISTS', beside) == 1 then
    redis.call('RENAME', beside, 'runner:errors:' .. id)
  end
  note_error(id, record)
  if digest ~= '' then
    give_place(digest, now, 0, id, lifetime)
  end
  if run_ms <= now_exact + 1 then
    due = due + 1
  end
  return 1
end

local statuses = {}
for at = entries_at, #ARGV, FIELDS do
  local index = #statuses
  local ran, status = pcall(requeue, index % 1000, at)
  statuses[index + 1] = ran and status
    or (type(status) == 'table' and status.err or tostring(status))
end
pcall(tidy_places)
wake_idle(idle, wake, math.max(due, run_at ~= '' and 1 or 0))
return statuses
