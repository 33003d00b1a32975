-- What is to be said of a job in a queue: seven values, id, score, payload or '', state, tries that
-- have ended, crashes, worker. States: running, committing, queued, deferred, retrying, parked.

local PARKED_MS = 4102444800000

local function state_of(score, holder, token, tried)
  if holder then
    return string.sub(holder, 1, 11) == 'committing:' and 'committing' or 'running'
  elseif score >= PARKED_MS then
    return 'parked'
  elseif score <= now + 1 or (token and token ~= '-') then
    return 'queued'  -- or its lease is over, and nobody has claimed it since
  end
  return tried and 'retrying' or 'deferred'
end

-- A value of a key of another type is none that anybody could read.
local function value_of(key)
  local value = redis.pcall('GET', key)
  return type(value) ~= 'table' and value or false
end

local function job_of(id, score, payload)
  local tries = tonumber(value_of('arq:retry:' .. id) or 0) or 0
  local holder = value_of('arq:in-progress:' .. id)
  local token, crashes = held_parts(redis.call('HGET', held, id) or '')
  crashes = tonumber(crashes) or 0
  local state = state_of(tonumber(score), holder, token, tries > 0 or crashes > 0)
  local worker = holder and string.match(holder, '^r:(.+):%x+:%d+$') or ''
  return {id, score, payload, state, tries, crashes, worker}
end
