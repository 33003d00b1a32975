-- Remove dead letters for good.
-- KEYS: dead
-- ARGV: entries...
-- Returns: how many were removed
--
-- An entry is two values: id, time of death. A letter that has changed since it was looked at stays.

local removed = 0
for at = entries_at, #ARGV, 2 do
  local id = ARGV[at]
  local score = redis.call('ZSCORE', dead, id)
  if score and tonumber(score) == tonumber(ARGV[at + 1]) then
    redis.call('ZREM', dead, id)
    redis.call('UNLINK', 'runner:dead-letter:' .. id, 'runner:dead-errors:' .. id)
    removed = removed + 1
  end
end
return removed
