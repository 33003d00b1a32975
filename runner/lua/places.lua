-- Places of unique jobs: of all jobs with one digest, one has the place.
--
-- `places` is a HASH: digest → 'since over id'. The job `id` has the place since that time, in ms;
-- with the rules of state for as long as it is there, and with `time` up to `over`, whatever became
-- of it. No end of a job gives its place back: who asks next looks whether the job is there, and
-- sees to a few other places at once, so that few are kept for nothing. Rules:
--   start     the place is free when the job starts
--   end       when the job is over: it has run, and what it wrote is committed
--   debounce  as `start`; who replaces the job starts it anew
--   time      after so many ms

local SAMPLE, LEAST, ROUNDS = 2, 3, 4
local SPARE_MS = 3600000
local REPLACED_MS = 60000

-- Nothing for what is no place: it is free then.
local function place_parts(value)
  local since, over, id = string.match(value, '^(%d+) (%d+) (.*)$')
  return tonumber(since), tonumber(over), id
end

-- 'gone', 'waits', or 'runs': from its claim to its end, and to the end of a lease that was lost.
local function state_of(id)
  if redis.call('EXISTS', 'arq:job:' .. id) == 0 then
    return 'gone'
  elseif redis.call('EXISTS', 'arq:in-progress:' .. id) == 1 then
    return 'runs'
  end
  local claim = redis.call('HGET', held, id)
  return claim and string.sub(claim, 1, 2) ~= '- ' and 'runs' or 'waits'
end

-- Return the job that has the place, how it is, and since when; or nil when the place is free.
local function holder_of(digest, rule)
  local value = redis.call('HGET', places, digest)
  if not value then
    return nil
  end
  local since, over, id = place_parts(value)
  if not id or (rule == 'time' and now >= over) then
    return nil
  end
  local state = state_of(id)
  if rule ~= 'time' and (state == 'gone' or (state == 'runs' and rule ~= 'end')) then
    return nil
  end
  return id, state, since
end

-- Take a job out that waits; who waits for its result hears of it.
local function take_out(id, successor)
  local removed = redis.call('ZREM', queue, id)
  redis.call('HDEL', held, id)
  redis.call('DEL', 'arq:job:' .. id, 'arq:retry:' .. id, 'runner:commits:' .. id)
  redis.pcall('ZREM', 'arq:abort', id)
  redis.call('SET', 'runner:replaced:' .. id, successor, 'PX', REPLACED_MS)
  tell_waiters(id, '')
  return removed
end

local function is_free(value)
  local _, over, id = place_parts(value)
  if not id then
    return true
  elseif over > 0 then
    return now >= over
  end
  return redis.call('EXISTS', 'arq:job:' .. id) == 0
end

local given = 0

-- `lasts` is for how long the place may be needed, in ms.
local function give_place(digest, since, over, id, lasts)
  redis.call('HSET', places, digest, string.format('%d %d ', since, over) .. id)
  if redis.call('PTTL', places) < lasts then
    redis.call('PEXPIRE', places, string.format('%d', lasts + SPARE_MS))
  end
  given = given + 1
end

-- Take back places that are kept for nothing: a few are looked at for each that was given, so that
-- no more of them stay than are needed; and more where all of these were.
local function tidy_places()
  local wanted = math.max(SAMPLE * given, LEAST)
  for _ = 1, given > 0 and ROUNDS or 0 do
    local sample = redis.call('HRANDFIELD', places, wanted, 'WITHVALUES')
    local free = {}
    for at = 1, #sample, 2 do
      if is_free(sample[at + 1]) then
        free[#free + 1] = sample[at]
      end
    end
    if #free > 0 then
      redis.call('HDEL', places, unpack(free))
    end
    if #free < wanted then
      return
    end
  end
end
