-- Settle attempts that have ended, then claim due jobs: one round trip of the engine.
-- KEYS: queue held clock_key idle wake counters dead units
-- ARGV: token lease_ms:int limit:int worker idle_ms:int keeps:int settling:int entries...
-- Uses: clock grace wake tell bury
-- Returns: {now, next due or '', zcard, more, statuses, claimed jobs}
--
-- Settled first: `settling` entries of ten values each:
--   id, token of its claim, attempt, mode, counter, result, keep_ms, extra, letter, unit id
-- followed, for mode `submit`, by two more: operations, job header.
-- Modes:
--   done    the job is over; extra is '' or the ms for which the in-progress key stays (cron)
--   again   run it again; extra is the delay in ms, or '' for its old place
--   back    the same, and the try is given back (refused, snoozed, handed back)
--   submit  the job is over when its unit of writes is committed; the writer settles it
-- A status is 1 (settled), 0 (the lease is lost: nothing was done) or an error text.
--
-- Then claimed: up to `limit` jobs with a score up to now; each {id, run-at score, payload or
-- false, attempt, crashes}. The id's score becomes the end of the lease, so that running jobs
-- leave the head of the set. `worker` registers as idle when slots stay free ('' never does).
-- `keeps` 1 writes counters and dead letters; arq's bare Worker leaves no key of its own.

local FIELDS = 10
local FAR_OFF_MS = 4102444800000
local RETRY_TTL_S = 88400
local COUNTERS_MS = 2592000000
local LOOK_AHEAD = 5000
-- In place of a token: nobody holds the job, which waits for another try; its crashes are kept.
local WAITS = '-'

local function held_parts(value)
  return string.match(value, '^(%S+) (%d+) (%S+)$')
end

-- The fence. My token in the in-progress key; or that key is gone, but nobody has claimed since:
-- held is still my token, the count of tries is my attempt, and the id is in the set.
local function is_mine(id, claim, attempt, holder)
  if holder then
    return holder == claim
  end
  local value = redis.call('HGET', held, id)
  return value and held_parts(value) == claim
    and redis.call('GET', 'arq:retry:' .. id) == attempt
    and redis.call('ZSCORE', queue, id) ~= false
end

local function run_again(id, extra, gives_back)
  local score, crashes = now_exact, '0'
  local value = redis.call('HGET', held, id)
  if value then
    local _, counted, kept = held_parts(value)
    score, crashes = tonumber(kept), counted
  end
  if extra ~= '' then
    score = now_exact + tonumber(extra)
  end
  -- What frees memory goes first: the server refuses only a script's first write.
  redis.call('DEL', 'arq:in-progress:' .. id)
  if crashes == '0' then
    redis.call('HDEL', held, id)
  else
    redis.call('HSET', held, id, WAITS .. ' ' .. crashes .. ' ' .. score_text(score))
  end
  redis.call('ZADD', queue, 'XX', score_text(score), id)
  if gives_back and redis.call('DECR', 'arq:retry:' .. id) < 1 then
    redis.call('DEL', 'arq:retry:' .. id)
  end
  return 1
end

-- The unit and the completion of its job in one step: the stream entry goes first, because it is
-- the one write that can be refused, and nothing else has happened then.
local function submit(id, result, unit, operations, header)
  local entry = redis.pcall('XADD', units, '*', 'u', unit, 'o', operations, 'j', header, 'r', result)
  if type(entry) == 'table' and entry.err then
    return entry.err
  end
  redis.call('SET', 'arq:in-progress:' .. id, 'committing:' .. entry)
  redis.call('PERSIST', 'arq:job:' .. id)
  redis.call('ZADD', queue, 'XX', FAR_OFF_MS, id)
  redis.call('HDEL', held, id)
  return 1
end

local function finish(id, result, keep_ms, extra)
  redis.call('ZREM', queue, id)
  redis.call('HDEL', held, id)
  if extra == '' then
    redis.call('DEL', 'arq:job:' .. id, 'arq:retry:' .. id, 'arq:in-progress:' .. id)
  else
    redis.call('DEL', 'arq:job:' .. id, 'arq:retry:' .. id)
    redis.call('PEXPIRE', 'arq:in-progress:' .. id, extra)
  end
  -- An abort that came too late is not meant for the next job of this id.
  redis.pcall('ZREM', 'arq:abort', id)
  if keep_ms ~= '0' then
    local stored
    if keep_ms == '-1' then
      stored = redis.pcall('SET', 'arq:result:' .. id, result)
    else
      stored = redis.pcall('SET', 'arq:result:' .. id, result, 'PX', keep_ms)
    end
    if stored.err then
      return stored.err
    end
  end
  tell_waiters(id, result)
  return 1
end

local counts = {}

local function settle(at, holder)
  local id, claim, attempt, mode = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local counter, result, keep_ms = ARGV[at + 4], ARGV[at + 5], ARGV[at + 6]
  local extra, letter, unit = ARGV[at + 7], ARGV[at + 8], ARGV[at + 9]
  if not is_mine(id, claim, attempt, holder) then
    return 0
  end
  local status
  if mode == 'done' then
    status = finish(id, result, keep_ms, extra)
  elseif mode == 'submit' then
    return submit(id, result, unit, ARGV[at + FIELDS], ARGV[at + FIELDS + 1])
  else
    status = run_again(id, extra, mode == 'back')
  end
  if keeps == 1 then
    if letter ~= '' then
      bury(dead, id, letter)
    end
    if counter ~= '' then
      counts[counter] = (counts[counter] or 0) + 1
    end
  end
  return status
end

local statuses = {}
if settling > 0 then
  local ats, in_progress, at = {}, {}, entries_at
  for index = 1, settling do
    ats[index] = at
    in_progress[index] = 'arq:in-progress:' .. ARGV[at]
    at = at + FIELDS + (ARGV[at + 3] == 'submit' and 2 or 0)
  end
  local holders = redis.call('MGET', unpack(in_progress))
  for index = 1, settling do
    -- What goes wrong with one entry stays with it: the others are settled.
    local ran, status = pcall(settle, ats[index], holders[index])
    statuses[index] = ran and status or (type(status) == 'table' and status.err or tostring(status))
  end
end

-- Due ids that somebody holds. A token of ours with a due score was put there by a stock abort, or
-- its lease is in its last millisecond: the score becomes the lease's end again, which lies beyond
-- this claim. An id held by a stock worker is left as it is.
local function pass_by(id, holder)
  if string.sub(holder, 1, 2) == 'r:' then
    local left = math.max(redis.call('PTTL', 'arq:in-progress:' .. id), 2)
    redis.call('ZADD', queue, 'XX', now + left, id)
    return 0
  elseif string.sub(holder, 1, 11) == 'committing:' then
    redis.call('ZADD', queue, 'XX', FAR_OFF_MS, id)
    return 0
  end
  return 1
end

-- An id without payload is a ghost of a stock abort when its result is there, or when it stands
-- at score 1 with an entry among the aborted. It is removed without a word.
local function is_ghost(id, score)
  return redis.call('EXISTS', 'arq:result:' .. id) == 1
    or (tonumber(score) == 1 and redis.call('ZSCORE', 'arq:abort', id) ~= false)
end

local claimed = {}

local function take(id, score, payload, tries, leftover)
  local crashes = 0
  local attempt = tonumber(tries) or 0
  local crashed = false
  if leftover then
    local holder, counted, kept = held_parts(leftover)
    crashed = holder ~= WAITS
    crashes = tonumber(counted)
    if crashed then
      crashes = crashes + 1
      score = kept
      counts.crashed = (counts.crashed or 0) + 1
    end
  end
  if not crashed or attempt == 0 then
    attempt = attempt + 1
  end
  redis.call('SET', 'arq:in-progress:' .. id, token, 'PX', lease_ms)
  redis.call('SET', 'arq:retry:' .. id, attempt, 'EX', RETRY_TTL_S)
  redis.call('HSET', held, id, token .. ' ' .. crashes .. ' ' .. score)
  redis.call('ZADD', queue, 'XX', now + lease_ms, id)
  claimed[#claimed + 1] = {id, score, payload, attempt, crashes}
end

local offset = 0

-- Take one page of due ids; return how many it held.
local function claim_page(count)
  local page = redis.call('ZRANGEBYSCORE', queue, '-inf', now + 1, 'WITHSCORES',
    'LIMIT', offset, count)
  local ids, scores, in_progress, payloads, tries = {}, {}, {}, {}, {}
  for at = 1, #page, 2 do
    local index = #ids + 1
    ids[index], scores[index] = page[at], page[at + 1]
    in_progress[index] = 'arq:in-progress:' .. page[at]
    payloads[index] = 'arq:job:' .. page[at]
    tries[index] = 'arq:retry:' .. page[at]
  end
  if #ids == 0 then
    return 0
  end
  local holders = redis.call('MGET', unpack(in_progress))
  payloads = redis.call('MGET', unpack(payloads))
  tries = redis.call('MGET', unpack(tries))
  local leftovers = redis.call('HMGET', held, unpack(ids))
  for index, id in ipairs(ids) do
    if holders[index] then
      offset = offset + pass_by(id, holders[index])
    elseif now < grace_until and leftovers[index] and held_parts(leftovers[index]) ~= WAITS then
      offset = offset + 1
    elseif not payloads[index] and is_ghost(id, scores[index]) then
      redis.call('ZREM', queue, id)
      redis.call('HDEL', held, id)
      redis.pcall('ZREM', 'arq:abort', id)
    else
      take(id, scores[index], payloads[index], tries[index], leftovers[index])
    end
  end
  return #ids
end

local more = 0
if limit > 0 then
  while #claimed < limit and offset < LOOK_AHEAD do
    local wanted = math.min(limit - #claimed, 500)
    if claim_page(wanted) == 0 then
      break
    end
  end
end
if #claimed >= limit then
  more = #redis.call('ZRANGEBYSCORE', queue, '-inf', now + 1, 'LIMIT', offset, 1)
end

if redis.call('EXISTS', held) == 1 then
  note_time()
elseif noted > 0 then
  redis.call('DEL', clock_key)
end

if worker ~= '' then
  if limit > 0 and #claimed < limit then
    redis.call('ZADD', idle, now + idle_ms, worker)
    redis.call('ZREMRANGEBYSCORE', idle, '-inf', now)
    redis.call('PEXPIRE', idle, idle_ms)
  else
    redis.call('ZREM', idle, worker)
  end
  if more == 1 then
    wake_idle(idle, wake, 1)
  end
end

if keeps == 1 and next(counts) then
  for counter, count in pairs(counts) do
    redis.call('HINCRBY', counters, counter, count)
  end
  redis.call('PEXPIRE', counters, COUNTERS_MS)
end

local upcoming = redis.call('ZRANGEBYSCORE', queue, '(' .. (now + 1), '+inf', 'WITHSCORES',
  'LIMIT', 0, 1)
return {now, upcoming[2] or '', redis.call('ZCARD', queue), more, statuses, claimed}
