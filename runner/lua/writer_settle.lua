-- Settle what the writer has committed, so that callers see results.
-- KEYS: queue dead counters writer stream idle wake held finished refused_ends
-- ARGV: channel previous last look leader units:int operations:int batches:int rejected:int done:int released:int released_bytes:int dead_ms:int dead_max:int history_jobs:int corrections:int entries...
-- Uses: clock tell bury errors wake order flow flow_stops history
-- Returns: for each entry 1 (settled), 0 (not this entry's job any more) or an error text; then for
--   each correction 1 (made), 0 (not needed) or an error text
--
-- `entries` are seven values each: entry id, job id, mode, keep_ms, result, letter, afterlife_ms.
-- Modes:
--   ok       the unit is committed, and so is its job over; with a letter, earlier attempts failed
--   refused  it is not, and the letter says why: the job's dead letter, or for a unit without a job
--            ('') the facts for whoever submitted it
--   again    it is not, and the job runs again: `keep_ms` is the delay, `afterlife_ms` the attempt,
--            the letter the record of its error
--   told     a unit without a job is committed; the result says what it did
--   commit-told, commit-refused  the same for the commit of a running job; `keep_ms` is its number
-- An entry acts only where the job's marker names it, so the call can be repeated. `last` is ''
-- unless this call is the last for its batch: then the counts grow, once, and the commit is
-- announced. `look` names the entries of which there is more to read, or is '*'. A Redis that has
-- lost that entry answers LOST, and `answered` stays where it is: what is below it may be new, and
-- not applied.
-- `released` are the units, and their bytes, that wait no more. Letters live for `dead_ms`, and
-- there are `dead_max` of them at most.
--
-- Behind the entries stand as many `corrections` of the history, which took jobs that were refused
-- for successes: the place of the entry, the outcome, the task, the job's end as readers know it,
-- and the job for the list of those that ended. They are made where the entry acts, and so once.

local FIELDS, CORRECTED = 7, 5
local COUNTERS_MS = 2592000000
local FAILED_MS = 3600000
local KEEP_MS = 2592000000
local RETRY_TTL_MS = 88400000

if last ~= '' and #redis.call('XRANGE', stream, last, last) == 0 then
  return redis.error_reply('LOST ' .. last .. ' is not in the stream any more')
end

-- A full Redis refuses what needs memory as a script's first write, and lets it pass later: what
-- is settled is the way out of it.
redis.call('PERSIST', writer)

local statuses, settled, again, commits = {}, {}, {}, {}
local corrected_at = #ARGV + 1 - corrections * CORRECTED
local total = (corrected_at - entries_at) / FIELDS

-- The markers of all jobs in one command.
local markers = {}
do
  local names, places = {}, {}
  for index = 1, total do
    local id = ARGV[entries_at + (index - 1) * FIELDS + 1]
    if id ~= '' then
      names[#names + 1] = 'arq:in-progress:' .. id
      places[#places + 1] = index
    end
  end
  if #names > 0 then
    for at, marker in ipairs(redis.call('MGET', unpack(names))) do
      markers[places[at]] = marker
    end
  end
end

-- What frees memory goes first: it is never refused, so a full Redis settles what it can.
do
  local ids, names = {}, {}
  for index = 1, total do
    local at = entries_at + (index - 1) * FIELDS
    local id, mode = ARGV[at + 1], ARGV[at + 2]
    statuses[index] = 0
    if id == '' then
      statuses[index] = 1
    elseif string.sub(mode, 1, 7) == 'commit-' then
      commits[#commits + 1] = index
    elseif markers[index] == 'committing:' .. ARGV[at] then
      statuses[index] = 1
      if mode == 'again' then
        again[#again + 1] = index
        names[#names + 1] = 'arq:in-progress:' .. id
      else
        settled[#settled + 1] = index
        ids[#ids + 1] = id
        names[#names + 1] = 'arq:in-progress:' .. id
        names[#names + 1] = 'arq:job:' .. id
        names[#names + 1] = 'arq:retry:' .. id
        names[#names + 1] = 'runner:commits:' .. id
        if mode == 'ok' and ARGV[at + 5] ~= '' then
          names[#names + 1] = 'runner:errors:' .. id
        end
      end
    end
  end
  if #ids > 0 then
    redis.call('ZREM', queue, unpack(ids))
    redis.call('HDEL', held, unpack(ids))
  end
  if #names > 0 then
    redis.call('DEL', unpack(names))
  end
end

-- Back into the queue with the tries that it has had; its payload expires again.
local function run_again(at)
  local id = ARGV[at + 1]
  local delay_ms = tonumber(ARGV[at + 3])
  redis.call('ZADD', queue, 'XX', now + delay_ms, id)
  redis.call('PEXPIRE', 'arq:job:' .. id, string.format('%d', KEEP_MS + delay_ms))
  redis.call('SET', 'arq:retry:' .. id, ARGV[at + 6], 'PX',
    string.format('%d', RETRY_TTL_MS + delay_ms))
  if ARGV[at + 5] ~= '' then
    note_error(id, ARGV[at + 5])
  end
  flow_back(queue, id, tonumber(ARGV[at + 3]))
end

-- What a commit of a running job did, kept beside its entry until the job is over: an attempt that
-- runs again gets the same answer.
local function tell_commit(index)
  local at = entries_at + (index - 1) * FIELDS
  local key, number = 'runner:commits:' .. ARGV[at + 1], ARGV[at + 3]
  local noted = redis.call('HGET', key, number)
  if not noted or redis.call('HEXISTS', key, 'answer ' .. number) == 1 then
    return
  end
  -- An entry that was moved, because Redis had lost data, answers for the one that it was.
  local entry = string.match(noted, '^%S+')
  if entry ~= ARGV[at] and redis.call('GET', 'runner:moved:' .. entry) ~= ARGV[at] then
    return
  end
  local answer = '+' .. ARGV[at + 4]
  if ARGV[at + 2] == 'commit-refused' then
    answer = '-' .. ARGV[at + 5]
  end
  redis.call('HSET', key, 'answer ' .. number, answer)
  redis.call('PEXPIRE', key, KEEP_MS)
  statuses[index] = 1
end

local function problem_of(problem)
  return type(problem) == 'table' and problem.err or tostring(problem)
end

local retried = 0
for _, index in ipairs(again) do
  local ok, problem = pcall(run_again, entries_at + (index - 1) * FIELDS)
  if ok then
    retried = retried + 1
  else
    statuses[index] = problem_of(problem)
  end
end
if #again > 0 then
  pcall(wake_idle, idle, wake, 1)
end
for _, index in ipairs(commits) do
  local ok, problem = pcall(tell_commit, index)
  if not ok then
    statuses[index] = problem_of(problem)
  end
end

local function keep_result(id, keep_ms, result)
  if keep_ms == '-1' then
    redis.call('SET', 'arq:result:' .. id, result)
  elseif keep_ms ~= '0' then
    redis.call('SET', 'arq:result:' .. id, result, 'PX', keep_ms)
  end
end

-- The in-progress key of a cron job stays for a while, as after a job without writes: a worker with
-- a late clock does not make it again.
for _, index in ipairs(settled) do
  local at = entries_at + (index - 1) * FIELDS
  local afterlife = ARGV[at + 6]
  if afterlife ~= '0' then
    redis.pcall('SET', 'arq:in-progress:' .. ARGV[at + 1], '1', 'PX', afterlife)
  end
end

local succeeded, failed = 0, 0

local function answer(at)
  local id, letter = ARGV[at + 1], ARGV[at + 5]
  keep_result(id, ARGV[at + 3], ARGV[at + 4])
  if ARGV[at + 2] == 'ok' then
    succeeded = succeeded + 1
  else
    failed = failed + 1
    bury(dead, id, letter, dead_ms)
  end
end

for _, index in ipairs(settled) do
  local at = entries_at + (index - 1) * FIELDS
  local ok, problem = pcall(answer, at)
  if not ok then
    statuses[index] = problem_of(problem)
  end
  pcall(tell_waiters, ARGV[at + 1], ARGV[at + 4])
  flow_note(ARGV[at + 1], ARGV[at + 2] == 'ok' and 's' or 'f', ARGV[at + 4])
end
flow_settle()
flow_wake('')

for index = 1, total do
  local at = entries_at + (index - 1) * FIELDS
  if ARGV[at + 1] == '' and ARGV[at + 2] == 'refused' then
    redis.pcall('SET', 'runner:failed:' .. ARGV[at], ARGV[at + 5], 'PX', FAILED_MS)
  elseif ARGV[at + 1] == '' and ARGV[at + 2] == 'told' then
    redis.pcall('SET', 'runner:answer:' .. ARGV[at], ARGV[at + 4], 'PX', FAILED_MS)
  end
end

if succeeded > 0 then
  redis.pcall('HINCRBY', counters, 'succeeded', succeeded)
end
if failed > 0 then
  trim_dead(dead, dead_ms, dead_max)
  redis.pcall('HINCRBY', counters, 'failed', failed)
end
if retried > 0 then
  redis.pcall('HINCRBY', counters, 'retried', retried)
end
if succeeded + failed + retried > 0 then
  redis.call('PEXPIRE', counters, COUNTERS_MS)
end

-- Forward only: what a former leader sent may arrive after its successor's.
if last ~= '' and is_after(last, redis.call('HGET', writer, 'answered') or '0-0') then
  redis.call('HSET', writer, 'answered', last, 'position', last, 'leader', leader)
  for field, count in pairs({units = units, operations = operations, batches = batches,
      rejected = rejected, done = done, backlog = -released, backlog_bytes = -released_bytes}) do
    if count ~= 0 then
      redis.call('HINCRBY', writer, field, count)
    end
  end
  local news = previous .. ' ' .. last
  if look ~= '' then
    news = news .. ' ' .. look
  end
  redis.call('PUBLISH', channel, news)
end

local function correct(at)
  local place, outcome, name, job_end, piece = unpack(ARGV, at, at + CORRECTED - 1)
  if statuses[tonumber(place)] ~= 1 then
    return 0
  end
  note_refused(refused_ends, job_end)
  list_ended(finished, piece, 1, history_jobs)
  count_otherwise(queue, ARGV[entries_at + (place - 1) * FIELDS], outcome, name)
  return 1
end

for number = 1, corrections do
  local ok, made = pcall(correct, corrected_at + (number - 1) * CORRECTED)
  statuses[total + number] = ok and made or problem_of(made)
end
return statuses
