-- When no worker has claimed or renewed for half a lease, none of them could: leases are renewed
-- at a third. They ran out through no fault of their holders, who get as long to say so.

local CLOCK_MS = 3600000
local clock_note = redis.pcall('GET', clock_key)
local noted, grace_until = string.match(
  type(clock_note) == 'string' and clock_note or '', '^(%d+) (%d+)$')
noted, grace_until = tonumber(noted) or 0, tonumber(grace_until) or 0
if noted > 0 and now - noted > lease_ms / 2 then
  grace_until = math.floor(now + lease_ms / 2)
end

local function note_time()
  redis.call('SET', clock_key, now .. ' ' .. grace_until, 'PX', CLOCK_MS)
end
