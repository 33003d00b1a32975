-- Keep lines that jobs have logged, the last ones of each job.
-- KEYS: logs...
-- ARGV: keep_ms:int most:int counts_and_lines...
-- Returns: 1
--
-- For each key: how many lines, and the lines.

-- More values than some eight thousand Lua does not unpack.
local AT_ONCE = 5000

local at = counts_and_lines_at
for _, key in ipairs(KEYS) do
  local count = tonumber(ARGV[at])
  for first = at + 1, at + count, AT_ONCE do
    redis.call('RPUSH', key, unpack(ARGV, first, math.min(first + AT_ONCE - 1, at + count)))
  end
  redis.call('LTRIM', key, -most, -1)
  redis.call('PEXPIRE', key, keep_ms)
  at = at + count + 1
end
return 1
