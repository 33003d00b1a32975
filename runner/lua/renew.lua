-- Renew leases: the holder's own, or one that ran out while nobody else could claim.
-- KEYS: queue held clock_key
-- ARGV: lease_ms:int entries...
-- Uses: clock grace fence
-- Returns: for each entry 1 (renewed) or 0 (lost, or the job has ended)
--
-- An entry is three values: id, token, attempt. ZADD XX: a finished id is never put back.

local FIELDS = 3
local statuses = {}

for at = entries_at, #ARGV, FIELDS do
  local id, token, attempt = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local key = 'arq:in-progress:' .. id
  local holder = redis.call('GET', key)
  local renewed = 0
  if holder == token then
    -- PEXPIRE works at maxmemory too, SET does not.
    redis.call('PEXPIRE', key, lease_ms)
    renewed = 1
  elseif is_mine(id, token, attempt, holder) then
    redis.call('SET', key, token, 'PX', lease_ms)
    renewed = 1
  end
  if renewed == 1 then
    redis.pcall('ZADD', queue, 'XX', now + lease_ms, id)
  end
  statuses[#statuses + 1] = renewed
end

pcall(note_time)
return statuses
