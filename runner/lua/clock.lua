-- Redis's own clock, so that the machines' clocks may differ.

local clock_parts = redis.call('TIME')
-- Unix time in milliseconds, whole and with its fraction.
local now_exact = clock_parts[1] * 1000 + clock_parts[2] / 1000
local now = math.floor(now_exact)

-- A score as text: Lua's tostring keeps 14 digits, a score in ms with its fraction needs 16.
local function score_text(score)
  return string.format('%.3f', score)
end
