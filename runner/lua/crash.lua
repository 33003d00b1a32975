-- Count a crash of running jobs that their process is about to give up, for one of them harms it.
-- KEYS: queue held counters
-- ARGV: entries...
-- Uses: fence errors
-- Returns: how many were counted
--
-- An entry is four values: id, token, attempt, and the record of the crash, '' where no history is
-- kept. The jobs stay held: they are handed back next, and their crashes with them.

local FIELDS = 4
local COUNTERS_MS = 2592000000
local counted, noted = 0, 0

for at = entries_at, #ARGV, FIELDS do
  local id, token, attempt, record = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if is_mine(id, token, attempt, redis.call('GET', 'arq:in-progress:' .. id)) then
    local holder, crashes, score = held_parts(redis.call('HGET', held, id) or '')
    if holder == token then
      redis.call('HSET', held, id, token .. ' ' .. (tonumber(crashes) + 1) .. ' ' .. score)
      counted = counted + 1
      if record ~= '' then
        pcall(note_error, id, record)
        noted = noted + 1
      end
    end
  end
end

if noted > 0 then
  -- What a count cannot be written to must not cost the jobs their hand-back.
  redis.pcall('HINCRBY', counters, 'crashed', noted)
  redis.pcall('PEXPIRE', counters, COUNTERS_MS)
end
return counted
