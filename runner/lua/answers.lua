-- Tell what became of units, to those who did not hear it when it was announced.
-- KEYS: units writer
-- ARGV: verify:int entries...
-- Uses: order
-- Returns: {the last entry answered, or ''; for each entry its status}
--
-- A status is 0 (not answered yet), 1 (committed), -1 (the stream does not have the entry and
-- never dropped it: Redis lost it), the id of an entry that took its place, or
-- {facts of the refusal or false, its answer or false}.
-- `verify` 1 looks every entry up, which is needed only after Redis was away.

local known = redis.call('HMGET', writer, 'answered', 'trimmed')
local answered, trimmed = known[1] or '0-0', known[2] or '0-0'
local reply = {known[1] or ''}

local function status(entry, failed, answer, moved)
  if failed or answer then
    return {failed, answer}
  elseif moved then
    return moved
  end
  -- What was dropped behind the answers was there to be applied.
  if verify == 1 and not is_after(trimmed, entry)
      and #redis.call('XRANGE', units, entry, entry) == 0 then
    return -1
  end
  return is_after(entry, answered) and 0 or 1
end

local names = {}
for at = entries_at, #ARGV do
  names[#names + 1] = 'runner:failed:' .. ARGV[at]
  names[#names + 1] = 'runner:answer:' .. ARGV[at]
  names[#names + 1] = 'runner:moved:' .. ARGV[at]
end
if #names > 0 then
  local values = redis.call('MGET', unpack(names))
  for index = 1, #names / 3 do
    reply[index + 1] = status(ARGV[entries_at + index - 1], unpack(values, 3 * index - 2, 3 * index))
  end
end
return reply
