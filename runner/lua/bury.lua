-- Keep dead letters, each with the errors of its earlier attempts, and the list of them.

local TRIMMED_AT_ONCE = 1000

local function bury(dead_key, id, letter, keep_ms)
  local errors, beside = 'runner:errors:' .. id, 'runner:dead-errors:' .. id
  redis.call('SET', 'runner:dead-letter:' .. id, letter, 'PX', keep_ms)
  redis.call('ZADD', dead_key, now, id)
  if redis.call('EXISTS', errors) == 1 then
    redis.call('RENAME', errors, beside)
    redis.call('PEXPIRE', beside, keep_ms)
  else
    redis.call('DEL', beside)
  end
end

-- Drop what is older than letters live, and the oldest of too many: a bounded number a call, and
-- more than one call can bury.
local function trim_dead(dead_key, keep_ms, most)
  local ids = redis.call('ZRANGEBYSCORE', dead_key, '-inf', now - keep_ms,
    'LIMIT', 0, TRIMMED_AT_ONCE)
  local over = redis.call('ZCARD', dead_key) - #ids - most
  if over > 0 and #ids < TRIMMED_AT_ONCE then
    local last = math.min(#ids + over, TRIMMED_AT_ONCE) - 1
    for _, id in ipairs(redis.call('ZRANGE', dead_key, #ids, last)) do
      ids[#ids + 1] = id
    end
  end
  if #ids > 0 then
    local names = {}
    for _, id in ipairs(ids) do
      names[#names + 1] = 'runner:dead-letter:' .. id
      names[#names + 1] = 'runner:dead-errors:' .. id
    end
    redis.call('ZREM', dead_key, unpack(ids))
    redis.call('UNLINK', unpack(names))
  end
  redis.call('PEXPIRE', dead_key, keep_ms)
end
