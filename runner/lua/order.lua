-- The order of a stream's entries: their ids are two numbers, and no text that could be compared.

local function entry_parts(entry)
  local ms, sequence = string.match(entry, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(sequence)
end

local function is_after(left, right)
  local left_ms, left_sequence = entry_parts(left)
  local right_ms, right_sequence = entry_parts(right)
  return left_ms > right_ms or (left_ms == right_ms and left_sequence > right_sequence)
end
