-- Look through dead letters, the newest first, a bounded number of them a call.
-- KEYS: dead
-- ARGV: from until_ms after look:int most_bytes:int most:int wants needles...
-- Returns: {where to go on: score and id, or '' and '', {id, died, letter} for each}
--
-- `from` and `until_ms` are times in ms, the newest and the oldest that count, `(` in front excludes.
-- `after` is the id behind which to go on among those that died at `from`, or ''. `needles` are
-- bytes that a letter must hold: what lacks one is not sent. `wants` is 'letters', or 'ids' for the
-- ids alone. A call ends when it has looked at `look` letters, at `most_bytes` of them, or found
-- `most`. An id whose letter is gone is dropped from the list.

local PAGE = 200
local found, looked, bytes, offset = {}, 0, 0, 0

-- Many may have died at one time: those before `after` have been seen.
local function places_seen()
  if after == '' then
    return 0
  end
  local score = redis.call('ZSCORE', dead, after)
  if score and tonumber(score) == tonumber(from) then
    return redis.call('ZREVRANK', dead, after) + 1 - redis.call('ZCOUNT', dead, '(' .. from, '+inf')
  end
  -- It was removed meanwhile: ids stand in order of their bytes.
  local seen = 0
  while true do
    local ids = redis.call('ZREVRANGEBYSCORE', dead, from, from, 'LIMIT', seen, PAGE)
    for _, id in ipairs(ids) do
      if id <= after then
        return seen
      end
      seen = seen + 1
    end
    if #ids < PAGE then
      return seen
    end
  end
end

local function holds_all(letter)
  for at = needles_at, #ARGV do
    if not string.find(letter, ARGV[at], 1, true) then
      return false
    end
  end
  return true
end

local gone = {}

local function look_at(id, score)
  looked = looked + 1
  if wants == 'ids' then
    found[#found + 1] = {id, score, ''}
    return
  end
  local letter = redis.pcall('GET', 'runner:dead-letter:' .. id)
  if type(letter) == 'table' then
    letter = ''  -- a key of another type: no letter that anybody could read
  elseif not letter then
    gone[#gone + 1] = id
    return
  end
  bytes = bytes + #letter
  if holds_all(letter) then
    found[#found + 1] = {id, score, letter}
  end
end

local function drop_gone()
  if #gone > 0 then
    redis.pcall('ZREM', dead, unpack(gone))
  end
end

offset = places_seen()
while true do
  local page = redis.call('ZREVRANGEBYSCORE', dead, from, until_ms, 'WITHSCORES',
    'LIMIT', offset, PAGE)
  for index = 1, #page, 2 do
    look_at(page[index], page[index + 1])
    if looked >= look or bytes >= most_bytes or #found >= most then
      drop_gone()
      return {page[index + 1], page[index], found}
    end
  end
  if #page < 2 * PAGE then
    drop_gone()
    return {'', '', found}
  end
  offset = offset + PAGE
end
