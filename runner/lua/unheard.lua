-- Give back what was claimed by calls whose answers were lost: nobody runs it.
-- KEYS: queue held unheard idle wake
-- ARGV: note_ms:int tokens...
-- Uses: clock wake fence again
-- Returns: how many jobs were given back
--
-- The tokens are noted too: a call that arrives later still, or whose jobs are not found here, has
-- caused no crash when its leases are over.

local LOOK_AT_MOST = 20000

local lost = {}
for at = tokens_at, #ARGV do
  lost[ARGV[at]] = true
end

local function give_back(id, value)
  local token = held_parts(value)
  if not lost[token or ''] then
    return 0
  end
  local holder = redis.call('GET', 'arq:in-progress:' .. id)
  if holder and holder ~= token then
    return 0
  end
  put_back(id, nil)
  return 1
end

local given = 0
local count = redis.pcall('HLEN', held)
if type(count) == 'number' and count <= LOOK_AT_MOST then
  local marks = redis.call('HGETALL', held)
  for at = 1, #marks, 2 do
    local ran, back = pcall(give_back, marks[at], marks[at + 1])
    given = given + (ran and back or 0)
  end
end
for at = tokens_at, #ARGV do
  redis.pcall('ZADD', unheard, now + note_ms, ARGV[at])
end
redis.pcall('ZREMRANGEBYSCORE', unheard, '-inf', now)
redis.call('PEXPIRE', unheard, note_ms)
wake_idle(idle, wake, given)
return given
