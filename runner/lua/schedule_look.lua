-- Look which schedules are due, and hand them to one worker at a time.
-- KEYS: schedules turn
-- ARGV: book worker limit:int turn_ms:int
-- Uses: clock
-- Returns: {now, when to look again or '', {name, definition, due, last job, call} for each}
--
-- The turn saves the others the same work; that each due time is run once rests on
-- schedule_offer.lua alone. `book` is the prefix of the schedules' own keys. A schedule whose
-- own key is gone is dropped; one whose key is none of ours is put off, and comes without a
-- definition: the others are not to wait for it.

local BROKEN_MS = 60000

local due = redis.call('ZRANGEBYSCORE', schedules, '-inf', now, 'LIMIT', 0, limit)
local following = redis.call('ZRANGEBYSCORE', schedules, '(' .. now, '+inf', 'WITHSCORES',
  'LIMIT', 0, 1)
local again = following[2] or ''
if #due == 0 then
  return {now, again, {}}
end
local holder = redis.call('GET', turn)
if holder and holder ~= worker then
  local free = now + math.max(redis.call('PTTL', turn), 1)
  if again == '' or free < tonumber(again) then
    again = tostring(free)
  end
  return {now, again, {}}
end
redis.call('SET', turn, worker, 'PX', turn_ms)
local found = {}
for _, name in ipairs(due) do
  local parts = redis.pcall('HMGET', book .. name, 'definition', 'due', 'job', 'call')
  if parts.err or (parts[2] and not string.match(parts[2], '^%d+$')) then
    redis.call('ZADD', schedules, 'XX', now + BROKEN_MS, name)
    found[#found + 1] = {name, '', '0', '', ''}
  elseif parts[1] and parts[2] then
    found[#found + 1] = {name, parts[1], parts[2], parts[3] or '', parts[4] or ''}
  else
    redis.call('ZREM', schedules, name)
  end
end
return {now, again, found}
