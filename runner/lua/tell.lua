-- Tell those who wait for a result; the value travels along while it is small.

local TOLD_BYTES = 16384

local function tell_waiters(id, blob)
  local key = 'runner:waiters:' .. id
  local channels = redis.pcall('SMEMBERS', key)
  if channels.err or #channels == 0 then
    return
  end
  local message = id .. '\0'
  if #blob <= TOLD_BYTES then
    message = message .. blob
  end
  for _, channel in ipairs(channels) do
    redis.call('PUBLISH', channel, message)
  end
  redis.call('DEL', key)
end
