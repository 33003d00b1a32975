-- Count a crash of running jobs that their process is about to give up, for one of them harms it.
-- KEYS: queue held
-- ARGV: entries...
-- Uses: fence
-- Returns: how many were counted
--
-- An entry is three values: id, token, attempt. The jobs stay held: they are handed back next, and
-- their crashes with them.

local FIELDS = 3
local counted = 0

for at = entries_at, #ARGV, FIELDS do
  local id, token, attempt = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  if is_mine(id, token, attempt, redis.call('GET', 'arq:in-progress:' .. id)) then
    local holder, crashes, score = held_parts(redis.call('HGET', held, id) or '')
    if holder == token then
      redis.call('HSET', held, id, token .. ' ' .. (tonumber(crashes) + 1) .. ' ' .. score)
      counted = counted + 1
    end
  end
end

return counted
