-- Enqueue the runs of schedules, each due time once: of those who offer, the first wins.
-- KEYS: schedules turn queue idle wake held places
-- ARGV: book worker offers...
-- Uses: clock wake tell places
-- Returns: for each offer the runs queued, -1 (others were first), -2 (not due yet) or an error text
--
-- An offer is a head of seven values: name, kind, due, next due ('' for none), when to look
-- again, overlap, number of runs; and for each run ten: due, id, payload, run-at in ms ('' for
-- now), lifetime of the payload in ms, and five of its place, as in enqueue_unique.lua. Kinds:
--   due      counts when the schedule's due time still is `due`; moves it on to `next due`
--   postpone the same without a run: only the time to look again is moved
--   startup  a run because a worker starts, unless there was one within a minute
--   now      a run because somebody asked for it
-- Overlap `skip` makes no run while the run before has not ended; `wait` makes it when it has.
-- A run whose place another job has is left out, or with `wait` made when the place is free.
-- The due time in the schedule's key is the marker: it only moves forward, in the step that
-- enqueues, and Redis's clock says whether it has come.

local HEAD, FIELDS = 7, 10
local STARTUP_MS = 60000
local WAIT_MS = 100
local due_now, soon = 0, false

local function put(index, due, id, payload, run_at, lifetime)
  local known = redis.call('EXISTS', 'arq:job:' .. id, 'arq:result:' .. id)
  if string.sub(id, -#due - 1) == ':' .. due then
    -- The same due time, enqueued and run by a stock worker: arq leaves this key for a while.
    known = known + redis.call('EXISTS', 'arq:in-progress:' .. id)
  end
  if known > 0 then
    return 0
  end
  local score = tonumber(run_at) or (now_exact - 2 + index / 1000)
  redis.call('SET', 'arq:job:' .. id, payload, 'PX', lifetime)
  local added = redis.pcall('ZADD', queue, score_text(score), id)
  if type(added) == 'table' then
    redis.call('DEL', 'arq:job:' .. id)
    error(added.err)
  end
  if score <= now_exact + 1 then
    due_now = due_now + 1
  else
    soon = true
  end
  return 1
end

-- Return the job that has the place of a run, and whether the run takes it over; nil when it is free.
local function in_place(run)
  local digest = ARGV[run + 5]
  if digest == '' then
    return nil
  end
  local other, state = holder_of(digest, ARGV[run + 6])
  return other, ARGV[run + 7] == '1' and state == 'waits'
end

local function put_in_place(index, run, other)
  local id, digest, lifetime = ARGV[run + 1], ARGV[run + 5], ARGV[run + 4]
  local made = put(index, ARGV[run], id, ARGV[run + 2], ARGV[run + 3], lifetime)
  if made == 1 and digest ~= '' then
    if other then
      take_out(other, id)
    end
    local ms = tonumber(ARGV[run + 8])
    local over = ARGV[run + 6] == 'time' and now + ms or 0
    give_place(digest, now, over, id, math.max(tonumber(lifetime), ms))
  end
  return made
end

local function offer(at)
  local name, kind, due, next_due = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local look_at, overlap, count = ARGV[at + 4], ARGV[at + 5], tonumber(ARGV[at + 6])
  local key = book .. name
  local state = redis.call('HMGET', key, 'due', 'paused', 'job', 'started', 'definition')
  local moves = kind == 'due' or kind == 'postpone'
  if not state[5] or (moves and (state[1] ~= due or state[2] == '1')) then
    return -1
  end
  if kind == 'startup' and now < (tonumber(state[4]) or 0) + STARTUP_MS then
    return -1
  end
  if kind == 'postpone' then
    redis.call('ZADD', schedules, 'XX', look_at, name)
    return 0
  end
  if kind == 'due' and count > 0 and tonumber(ARGV[at + HEAD + (count - 1) * FIELDS]) > now then
    return -2
  end
  local queued, skipped, last, job = 0, 0, '', state[3]
  if overlap == 'wait' and kind == 'due' and count > 0 then
    local other, gives_way = in_place(at + HEAD)
    if (job and redis.call('ZSCORE', queue, job)) or (other and not gives_way) then
      redis.call('ZADD', schedules, 'XX', now + WAIT_MS, name)
      return 0
    end
  end
  for index = 1, count do
    local run = at + HEAD + (index - 1) * FIELDS
    local other, gives_way = in_place(run)
    if (other and not gives_way)
      or (overlap == 'skip' and job and redis.call('ZSCORE', queue, job)) then
      skipped = skipped + 1
    else
      queued = queued + put_in_place(index, run, other)
      job = ARGV[run + 1]
    end
    last = ARGV[run]
  end
  if last ~= '' then
    redis.call('HSET', key, 'last', last)
  end
  if job then
    redis.call('HSET', key, 'job', job)
  end
  redis.call('HINCRBY', key, 'runs', queued)
  redis.call('HINCRBY', key, 'skipped', skipped)
  if kind == 'startup' then
    redis.call('HSET', key, 'started', now)
  elseif kind == 'due' then
    redis.call('HSET', key, 'due', next_due)
    redis.call('ZADD', schedules, 'XX', look_at, name)
  end
  return queued
end

local statuses = {}
local at = offers_at
while at <= #ARGV do
  -- What goes wrong with one schedule stays with it: the others are enqueued.
  local ran, status = pcall(offer, at)
  statuses[#statuses + 1] = ran and status
    or (type(status) == 'table' and status.err or tostring(status))
  at = at + HEAD + tonumber(ARGV[at + 6]) * FIELDS
end
pcall(tidy_places)
if redis.call('GET', turn) == worker then
  redis.call('DEL', turn)
end
if due_now == 0 and soon then
  due_now = 1  -- one worker wakes to set its timer
end
wake_idle(idle, wake, due_now)
return statuses
