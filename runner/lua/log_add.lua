-- Keep lines that jobs have logged, the last ones of each job.
-- KEYS: logs...
-- ARGV: keep_ms:int most:int counts_and_lines...
-- Returns: 1
--
-- For each key: how many lines, and the lines.

local at = counts_and_lines_at
for _, key in ipairs(KEYS) do
  local count = tonumber(ARGV[at])
  redis.call('RPUSH', key, unpack(ARGV, at + 1, at + count))
  redis.call('LTRIM', key, -most, -1)
  redis.call('PEXPIRE', key, keep_ms)
  at = at + count + 1
end
return 1
