-- A job goes back into its queue, and nobody holds it.

-- In place of a token: nobody holds the job, which waits for another try; its crashes are kept.
local WAITS = '-'
-- What it needs outlives its wait by a day, as arq keeps the count of tries; of those who are
-- parked nobody knows how long they wait: a month.
local DAY_MS = 86400000
local RETRY_TTL_MS = 88400000
local PARKED_FOR_MS = 2592000000
local FAR_OFF_MS = 4102444800000

-- Return whether it would have been gone less than a day behind the wait.
local function keep_key(key, wait_ms)
  local left = redis.call('PTTL', key)
  if left < 0 or left >= wait_ms + DAY_MS then
    return false
  end
  redis.call('PEXPIRE', key, string.format('%d', wait_ms + RETRY_TTL_MS))
  return true
end

-- A job that is tried again and again, or that snoozes for longer than its payload was to live, runs
-- all the same, and forgets neither its tries nor what it has committed.
local function keep_until(id, at)
  local wait_ms = at < FAR_OFF_MS and math.max(at - now, 0) or PARKED_FOR_MS
  if keep_key('arq:job:' .. id, wait_ms) or wait_ms > DAY_MS then
    keep_key('runner:commits:' .. id, wait_ms)
  end
  keep_key('arq:retry:' .. id, wait_ms)
end

-- Put it back at a score, or at its old one (nil); return the score that it had before the claim.
local function put_back(id, at)
  local kept, crashes = now_exact, '0'
  local value = redis.call('HGET', held, id)
  if value then
    local _, counted, score = held_parts(value)
    kept, crashes = tonumber(score), counted
  end
  at = at or kept
  -- What frees memory goes first: the server refuses only a script's first write.
  redis.call('DEL', 'arq:in-progress:' .. id)
  if crashes == '0' then
    redis.call('HDEL', held, id)
  else
    redis.call('HSET', held, id, WAITS .. ' ' .. crashes .. ' ' .. score_text(at))
  end
  redis.call('ZADD', queue, 'XX', score_text(at), id)
  keep_until(id, at)
  return kept
end
