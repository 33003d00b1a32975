-- Wake idle workers: tokens are hints, and only as many as there are workers who wait.

local WAKE_TTL_MS = 5000

local function push_tokens(idle_key, wake_key, jobs)
  local waiting = redis.call('ZCOUNT', idle_key, now, '+inf')
  if waiting == 0 then
    return
  end
  local wanted = math.min(jobs, waiting) - redis.call('LLEN', wake_key)
  for _ = 1, wanted do
    redis.call('RPUSH', wake_key, '1')
  end
  redis.call('PEXPIRE', wake_key, WAKE_TTL_MS)
end

-- A hint: what is wrong with its keys must not cost the caller what it has done already.
local function wake_idle(idle_key, wake_key, jobs)
  if jobs > 0 then
    pcall(push_tokens, idle_key, wake_key, jobs)
  end
end
