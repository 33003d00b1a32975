-- Count dead letters, without those whose time is over: they are the oldest, and leave the list.
-- KEYS: dead
-- ARGV:
-- Returns: how many there are; while thousands have run out at once, the next call drops more

local AT_ONCE, CALLS = 200, 10

for _ = 1, CALLS do
  local gone = {}
  for _, id in ipairs(redis.call('ZRANGE', dead, 0, AT_ONCE - 1)) do
    if redis.call('EXISTS', 'runner:dead-letter:' .. id) == 1 then
      break
    end
    gone[#gone + 1] = id
  end
  if #gone > 0 then
    redis.call('ZREM', dead, unpack(gone))
  end
  if #gone < AT_ONCE then
    break
  end
end
return redis.call('ZCARD', dead)
