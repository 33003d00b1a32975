-- Keep the errors of a job's earlier attempts: the first, and the last twenty.

local ERRORS_KEPT = 21
local ERRORS_MS = 2592000000

local function note_error(id, record)
  local key = 'runner:errors:' .. id
  local length = redis.call('RPUSH', key, record)
  for _ = ERRORS_KEPT + 1, length do
    redis.call('LSET', key, 1, '')
    redis.call('LREM', key, 1, '')
  end
  redis.call('PEXPIRE', key, ERRORS_MS)
end
