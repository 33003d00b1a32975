-- Settle attempts that have ended, then claim due jobs: one round trip of the engine.
-- KEYS: queue held clock_key idle wake counters dead units writer note paused gated
-- ARGV: token lease_ms:int limit:int worker idle_ms:int keeps:int heeds:int dead_ms:int dead_max:int batch settling:int entries...
-- Uses: clock grace wake tell bury errors fence backlog again limits flow flow_stops
-- Returns: {now, next due or '', more, statuses, claimed}, and if there are any: what is gated, what Redis says against the claims
--
-- Settled first: `settling` entries. An entry begins with id, token of its claim, attempt, mode.
--   ok      it succeeded, and that is all: two more, result and keep_ms
--   done    the job is over; extra is '' or the ms for which the in-progress key stays (cron)
--   again   run it again; extra is the delay in ms, or '' for its old place; 'delay flow' is the
--           same, but at most until that flow has ended
--   back    the same, and it costs no try (refused, snoozed, handed back)
--   submit  the job is over when its unit of writes is committed; the writer settles it
-- All but `ok` have counter, result, keep_ms, extra, letter, unit id; and `submit` has two more:
-- operations, job header. The letter of `again` is the record of the attempt's error. The last is
-- always the slots that the attempt gives up, or ''.
-- A status is 1 (settled), 2 (settled by an earlier sending of this batch), 0 (the lease is lost:
-- nothing was done) or an error text; behind ENDED it says what Redis refused beside the end, which
-- stands. `batch` names the entries: the token of the call that carried them first, or '' when they
-- are never sent again. `note` remembers the last batch of its lane, so that one whose answer was
-- lost is known when it is sent again.
--
-- Then claimed: up to `limit` jobs with a score up to now; each five values: id, run-at score, payload
-- or false, attempt, crashes. The id's score becomes the end of the lease, so that running jobs
-- leave the head of the set. `next due` is '' when due jobs are left (`more`). `worker` registers as
-- idle when slots stay free ('' never does). `keeps` 1 writes counters and dead letters; arq's bare
-- Worker leaves no key of its own. Letters live for `dead_ms`, and there are `dead_max` of them at
-- most. With `heeds` 1 nothing is claimed, and nothing said to be left, while too much waits for the
-- writer. Nothing is claimed from a queue that is `paused`.
--
-- `arq:retry` counts the tries that have ended: it is written when a job is to be tried again, and
-- an attempt that goes on is the one after them.

local HEAD = 4
local FIELDS = {ok = 6, done = 11, again = 11, back = 11, submit = 13}
local FAR_OFF_MS = 4102444800000
local COUNTERS_MS = 2592000000
local NOTE_MS = 3600000
local LOOK_AHEAD = 5000
local ENDED = 'ENDED '
local counts = {}
local buried = false

local function text_of(problem)
  return type(problem) == 'table' and problem.err or tostring(problem)
end

local function run_again(id, attempt, extra, costs_a_try)
  local delay_ms = extra ~= '' and flow_delay(id, extra) or nil
  put_back(id, delay_ms and now_exact + delay_ms)
  if costs_a_try then
    local kept_ms = RETRY_TTL_MS + math.max(delay_ms or 0, 0)
    redis.call('SET', 'arq:retry:' .. id, attempt, 'PX', string.format('%d', kept_ms))
  end
  flow_back(queue, id, delay_ms or 0)
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
  -- Its crashes are kept: a job whose unit is refused may run again.
  local value = redis.call('HGET', held, id)
  local _, crashes, score = held_parts(value or '- 0 0')
  if not crashes or crashes == '0' then
    redis.call('HDEL', held, id)
  else
    redis.call('HSET', held, id, WAITS .. ' ' .. crashes .. ' ' .. score)
  end
  note_added(#operations + #result)
  redis.pcall('ZREM', 'arq:abort', id)  -- it came too late
  return 1
end

-- The end stands whatever becomes of the result: returns 1, or what Redis says against it.
local function keep_result(id, result, keep_ms)
  if keep_ms == '0' then
    return 1
  end
  local stored
  if keep_ms == '-1' then
    stored = redis.pcall('SET', 'arq:result:' .. id, result)
  else
    stored = redis.pcall('SET', 'arq:result:' .. id, result, 'PX', keep_ms)
  end
  return stored.err and ENDED .. stored.err or 1
end

-- While the id is in the set somebody may wait for it: what else could be refused goes first.
local function finish(id, result, keep_ms, extra, letter)
  redis.call('HDEL', held, id)
  redis.call('ZREM', queue, id)
  local names = {'arq:job:' .. id, 'arq:retry:' .. id, 'runner:commits:' .. id}
  if extra == '' then
    names[#names + 1] = 'arq:in-progress:' .. id
  else
    redis.call('PEXPIRE', 'arq:in-progress:' .. id, extra)
  end
  if letter == '' then
    names[#names + 1] = 'runner:errors:' .. id
  end
  redis.call('DEL', unpack(names))
  -- An abort that came too late is not meant for the next job of this id.
  redis.pcall('ZREM', 'arq:abort', id)
  local status = keep_result(id, result, keep_ms)
  if status == 1 then
    tell_waiters(id, result)
  end
  return status
end

local function give_up(id, slots)
  if slots ~= '' then
    if not free_slots then
      open_limits()
    end
    -- The job has ended, whatever became of a limit's keys.
    pcall(free_slots, member_of(queue, id), slots)
  end
end

local function settle(at, holder)
  local id, claim, attempt, mode = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if not is_mine(id, claim, attempt, holder) then
    return 0
  end
  at = at + HEAD
  if mode == 'submit' then
    local status = submit(id, ARGV[at + 1], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7])
    if status == 1 then
      give_up(id, ARGV[at + 8])
      flow_note(id, 'w', ARGV[at + 1])
    end
    return status
  end
  local status
  local counter, letter = 'succeeded', ''
  if mode == 'ok' then
    status = finish(id, ARGV[at], ARGV[at + 1], '', '')
    flow_note(id, 's', ARGV[at])
  else
    counter, letter = ARGV[at], ARGV[at + 4]
    if mode == 'done' then
      status = finish(id, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], letter)
      flow_note(id, counter == 'succeeded' and 's' or 'f', ARGV[at + 1])
    else
      status = run_again(id, attempt, ARGV[at + 3], mode == 'again')
    end
    give_up(id, ARGV[at + 6])
  end
  if keeps == 1 then
    if letter ~= '' then
      local ran, problem
      if mode == 'again' then
        ran, problem = pcall(note_error, id, letter)
      else
        ran, problem = pcall(bury, dead, id, letter, dead_ms)
        buried = true
      end
      status = ran and status or ENDED .. text_of(problem)
    end
    if counter ~= '' then
      counts[counter] = (counts[counter] or 0) + 1
    end
  end
  return status
end

-- The jobs that simply succeeded, freed in one command of each kind.
local function free(ids, names)
  redis.call('HDEL', held, unpack(ids))
  redis.call('ZREM', queue, unpack(ids))
  redis.call('DEL', unpack(names))
end

-- Settle what `free` can; return the statuses so far. What it cannot is left to `settle`.
local function settle_plain(ats, holders)
  local statuses = {}
  local plain, ids, names, waiters = {}, {}, {}, {}
  local count = 0
  -- Only where there is a writer may a job have committed before its end.
  local may_have_committed = redis.call('EXISTS', units) == 1
  for index, at in ipairs(ats) do
    local id = ARGV[at]
    if ARGV[at + 3] == 'ok' and holders[index] == ARGV[at + 1] then
      count = count + 1
      plain[count], ids[count] = index, id
      names[#names + 1] = 'arq:in-progress:' .. id
      names[#names + 1] = 'arq:job:' .. id
      if ARGV[at + 2] ~= '1' then
        names[#names + 1] = 'arq:retry:' .. id
        names[#names + 1] = 'runner:errors:' .. id
      end
      if may_have_committed then
        names[#names + 1] = 'runner:commits:' .. id
      end
      waiters[count] = 'runner:waiters:' .. id
    end
  end
  if count == 0 or not pcall(free, ids, names) then
    return statuses
  end
  if redis.call('EXISTS', 'arq:abort') == 1 then
    redis.pcall('ZREM', 'arq:abort', unpack(ids))
  end
  local waited_for = redis.call('EXISTS', unpack(waiters)) > 0
  for _, index in ipairs(plain) do
    local at = ats[index]
    local status = keep_result(ARGV[at], ARGV[at + HEAD], ARGV[at + HEAD + 1])
    statuses[index] = status
    flow_note(ARGV[at], 's', ARGV[at + HEAD])
    if waited_for and status == 1 then
      pcall(tell_waiters, ARGV[at], ARGV[at + HEAD])
    end
  end
  if keeps == 1 then
    counts.succeeded = count
  end
  return statuses
end

-- What became of this batch when it was sent before: one character an entry, 1 for a settled one.
-- It is asked for the first sending too, which may arrive after the second.
local function settled_before()
  if batch == '' then
    return ''
  end
  local known = redis.pcall('GET', note)
  local name, marks = string.match(type(known) == 'string' and known or '', '^(%S+) (%d+)$')
  return name == batch and marks or ''
end

local function settle_all()
  local ats, names, at = {}, {}, entries_at
  for index = 1, settling do
    ats[index] = at
    names[index] = 'arq:in-progress:' .. ARGV[at]
    at = at + FIELDS[ARGV[at + 3]]
  end
  local before = settled_before()
  local holders = redis.call('MGET', unpack(names))
  local statuses = settle_plain(ats, holders)
  local marks = {}
  for index = 1, settling do
    if not statuses[index] then
      if string.sub(before, index, index) == '1' then
        statuses[index] = 2
      else
        -- What goes wrong with one entry stays with it: the others are settled.
        local ran, status = pcall(settle, ats[index], holders[index])
        statuses[index] = ran and status or text_of(status)
      end
    end
    local status = statuses[index]
    local ended = status == 1 or status == 2 or string.sub(status, 1, #ENDED) == ENDED
    marks[index] = ended and '1' or '0'
  end
  if batch ~= '' then
    redis.pcall('SET', note, batch .. ' ' .. table.concat(marks), 'PX', NOTE_MS)
  end
  return statuses
end

local statuses = settling > 0 and settle_all() or {}
if buried then
  pcall(trim_dead, dead, dead_ms, dead_max)
end
-- Before the claims, which find what comes next in a flow.
flow_settle()

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
local kept = 0  -- values of `claimed` whose jobs are held
local taken = 0
local flows_due = 0
local offset = 0
local no_crash = token .. ' 0 '

-- Write down that these ids are held by this claim.
local function hold(ids, marks)
  local scores, lease_end = {}, now + lease_ms
  for index, id in ipairs(ids) do
    scores[2 * index - 1], scores[2 * index] = lease_end, id
  end
  redis.call('HSET', held, unpack(marks))
  redis.call('ZADD', queue, 'XX', unpack(scores))
  for _, id in ipairs(ids) do
    redis.call('SET', 'arq:in-progress:' .. id, token, 'PX', lease_ms)
  end
end

-- An attempt that took its worker with it, or was taken from it, can say nothing itself.
local function note_crash(id, attempt, holder)
  if keeps == 1 then
    pcall(note_error, id, cmsgpack.pack({
      attempt = attempt, outcome = 'crashed', error = 'the job lost its worker', ended_ms = now,
      worker = string.match(holder, '^r:(.+):%x+:%d+$') or holder,
    }))
  end
end

-- Whether a claim's worker has had its answer: whose was lost has run nothing.
local function was_heard(holder)
  local lost = redis.pcall('ZSCORE', 'runner:unheard:' .. queue, holder)
  return not lost or type(lost) == 'table'
end

-- Take one page of due ids; return how many it held.
local function claim_page(count)
  local page = redis.call('ZRANGEBYSCORE', queue, '-inf', now + 1, 'WITHSCORES',
    'LIMIT', offset, count)
  local size = #page / 2
  if size == 0 then
    return 0
  end
  local ids, names = {}, {}
  for index = 1, size do
    local id = page[2 * index - 1]
    ids[index] = id
    names[index] = 'arq:in-progress:' .. id
    names[size + index] = 'arq:job:' .. id
    names[2 * size + index] = 'arq:retry:' .. id
  end
  local values = redis.call('MGET', unpack(names))
  local leftovers = redis.call('HMGET', held, unpack(ids))
  local mine, marks, found = {}, {}, #claimed
  for index = 1, size do
    local id, score, payload = ids[index], page[2 * index], values[size + index]
    local leftover = leftovers[index]
    if values[index] then
      offset = offset + pass_by(id, values[index])
    elseif now < grace_until and leftover and held_parts(leftover) ~= WAITS then
      offset = offset + 1
    elseif not payload and flow_due(queue, id) then
      offset, flows_due = offset + 1, 1
    elseif not payload and is_ghost(id, score) then
      redis.call('ZREM', queue, id)
      redis.call('HDEL', held, id)
      redis.pcall('ZREM', 'arq:abort', id)
    elseif leftover and flow_dropped(queue, id) then
      flows_due = 1
    else
      local mark, crashes = no_crash, 0
      local attempt = (tonumber(values[2 * size + index]) or 0) + 1
      local holder, counted, before = held_parts(leftover or '')
      if holder and tonumber(before) then  -- what else stands there is none of ours
        crashes = tonumber(counted)
        if holder ~= WAITS then
          score = before
        end
        if holder ~= WAITS and was_heard(holder) then
          crashes = crashes + 1
          counts.crashed = (counts.crashed or 0) + 1
          note_crash(id, attempt, holder)
        end
        mark = token .. ' ' .. crashes .. ' '
      end
      taken = taken + 1
      mine[#mine + 1] = id
      marks[#marks + 1] = id
      marks[#marks + 1] = mark .. score
      claimed[found + 1] = id
      claimed[found + 2] = score
      claimed[found + 3] = payload
      claimed[found + 4] = attempt
      claimed[found + 5] = crashes
      found = found + 5
    end
  end
  if #mine > 0 then
    hold(mine, marks)
    kept = #claimed
  end
  return size
end

local more, upcoming = 0, ''
local gates = redis.call('MGET', paused, gated)

-- Claim what is due, or register as idle; say what else there is.
local function claim()
  local wanted, room, clears = limit, limit, limit > 0
  if gates[1] then
    room = 0
  end
  local holds_back = heeds == 1 and room > 0 and is_behind()
  if holds_back then
    room, wanted = 0, 0
  end
  -- Of a queue that is paused too: nothing is claimed of it by that.
  if clears and flow_clear(queue) then
    flows_due = 1
  end
  if room > 0 then
    while taken < room and offset < LOOK_AHEAD do
      if claim_page(math.min(room - taken, 500)) == 0 then
        break
      end
    end
    flow_settle()
  end
  if taken >= room and not holds_back and not gates[1] then
    more = #redis.call('ZRANGEBYSCORE', queue, '-inf', now + 1, 'LIMIT', offset, 1)
  end
  if flows_due == 1 then
    more = 1
  end

  if redis.call('EXISTS', held) == 1 then
    note_time()
  elseif noted > 0 then
    redis.call('DEL', clock_key)
  end

  if worker ~= '' then
    if wanted > 0 and taken < wanted then
      redis.pcall('ZADD', idle, now + idle_ms, worker)
      redis.pcall('ZREMRANGEBYSCORE', idle, '-inf', now)
      redis.call('PEXPIRE', idle, idle_ms)
    else
      redis.pcall('ZREM', idle, worker)
    end
    if more == 1 then
      wake_idle(idle, wake, 1)
    end
  end
  if more == 0 and not gates[1] then
    upcoming = redis.call('ZRANGEBYSCORE', queue, '(' .. (now + 1), '+inf', 'WITHSCORES',
      'LIMIT', 0, 1)[2] or ''
  end
end

-- What goes wrong with the claims must not hide what was settled, nor what is held already.
local ran, problem = pcall(claim)
if not ran then
  problem = text_of(problem)
  more, upcoming = 0, ''
  for index = #claimed, kept + 1, -1 do
    claimed[index] = nil
  end
end

if next(released) then
  -- What this call has claimed itself needs nobody else.
  released[queue] = (released[queue] or 0) - taken
  wake_released()
end

flow_wake(worker ~= '' and queue or '')
keep_account()
if keeps == 1 and next(counts) then
  for counter, count in pairs(counts) do
    -- What a count cannot be written to must not cost the jobs that were claimed.
    redis.pcall('HINCRBY', counters, counter, count)
  end
  redis.call('PEXPIRE', counters, COUNTERS_MS)
end

if problem then
  return {now, upcoming, more, statuses, claimed, gates[2], problem}
elseif gates[2] then
  return {now, upcoming, more, statuses, claimed, gates[2]}
end
return {now, upcoming, more, statuses, claimed}
