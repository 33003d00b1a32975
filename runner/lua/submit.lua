-- Add units to the writer's stream, each an entry of its own, in order, as far as there is room.
-- KEYS: units writer sent
-- ARGV: number:int percent:int entries...
-- Uses: backlog
-- Returns: {first entry or '', how many were added, why the next was not or '', known...}
--
-- `entries` are four values each: unit id, operations, a digest of them, or '' for an id that this
-- client made, and what ties it to a trace, or ''. What was added has consecutive ids. `known` are
-- pairs: the place of a unit whose id was used before, counted from 0, and its entry, or '' when the
-- contents differ. Where a unit is not added, none behind it is.
-- `percent` is the part of the room that this client may fill.
-- `number` counts this client's calls: one that is repeated, because its reply was lost, adds
-- nothing, and gets the reply again.

local FIELDS = 4
local SENT_MS = 60000
local KNOWN_MS = 600000

local before = redis.call('GET', sent)
if before then
  local said = cmsgpack.unpack(before)
  if said[1] == number then
    return said[2]
  end
end

local first, ms, sequence = '', nil, nil
local added, why, known = 0, '', {}

local function known_entry(id, digest)
  local value = digest ~= '' and redis.call('GET', 'runner:unit:' .. id)
  if not value then
    return nil
  end
  local entry, noted = string.match(value, '^(%S+) (%S+)$')
  return noted == digest and entry or ''
end

local function add(id, operations, digest, trace)
  local wanted = ms and (ms .. '-' .. string.format('%.0f', sequence + 1)) or '*'
  local fields = {'u', id, 'o', operations}
  if trace ~= '' then
    fields[5], fields[6] = 't', trace
  end
  local entry = redis.pcall('XADD', units, wanted, unpack(fields))
  if type(entry) == 'table' then
    return entry.err
  end
  if not ms then
    local whole, part = string.match(entry, '^(%d+)-(%d+)$')
    first, ms, sequence = entry, whole, tonumber(part)
  else
    sequence = sequence + 1
  end
  if digest ~= '' then
    redis.call('SET', 'runner:unit:' .. id, entry .. ' ' .. digest, 'PX', KNOWN_MS)
  end
  note_added(#operations)
  added = added + 1
  return ''
end

for at = entries_at, #ARGV, FIELDS do
  local id, operations, digest, trace = unpack(ARGV, at, at + 3)
  local entry = known_entry(id, digest)
  if entry then
    known[#known + 1] = (at - entries_at) / FIELDS
    known[#known + 1] = entry
  else
    why = has_room(#operations, percent / 100) and add(id, operations, digest, trace) or 'full'
    if why ~= '' then
      break
    end
  end
end

keep_account()
local reply = {first, added, why, unpack(known)}
if added > 0 then
  redis.call('SET', sent, cmsgpack.pack({number, reply}), 'PX', SENT_MS)
end
return reply
