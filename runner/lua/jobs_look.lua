-- Look through the jobs of a queue, those that are due first, a bounded number of them a call.
-- KEYS: queue held
-- ARGV: from after look:int most_bytes:int most:int wants needles...
-- Uses: clock fence jobstate
-- Returns: {now, where to go on: score and id, or '' and '', jobs}
--
-- `from` is the score to begin at, `after` the id behind which to go on among those at that score,
-- or ''. `needles` are bytes that a payload must hold: a job whose payload lacks one is not sent.
-- `wants` is 'jobs', or 'ids' for jobs without their payloads. A call ends when it has looked at
-- `look` jobs, at `most_bytes` of payloads, or found `most`.

local PAGE = 200
local found, looked, bytes = {}, 0, 0

local function places_seen()
  if after == '' then
    return 0
  end
  local score = redis.call('ZSCORE', queue, after)
  if score and tonumber(score) == tonumber(from) then
    return redis.call('ZRANK', queue, after) + 1 - redis.call('ZCOUNT', queue, '-inf', '(' .. from)
  end
  -- It went elsewhere meanwhile: ids stand in order of their bytes.
  local seen = 0
  while true do
    local ids = redis.call('ZRANGEBYSCORE', queue, from, from, 'LIMIT', seen, PAGE)
    for _, id in ipairs(ids) do
      if id > after then
        return seen
      end
      seen = seen + 1
    end
    if #ids < PAGE then
      return seen
    end
  end
end

local function holds_all(payload)
  for at = needles_at, #ARGV do
    if not string.find(payload, ARGV[at], 1, true) then
      return false
    end
  end
  return true
end

local function look_at(id, score)
  looked = looked + 1
  local payload = ''
  if wants ~= 'ids' then
    payload = value_of('arq:job:' .. id) or ''
    bytes = bytes + #payload
    if not holds_all(payload) then
      return
    end
  end
  found[#found + 1] = job_of(id, score, payload)
end

local offset = places_seen()
while true do
  local page = redis.call('ZRANGEBYSCORE', queue, from, '+inf', 'WITHSCORES', 'LIMIT', offset, PAGE)
  for index = 1, #page, 2 do
    look_at(page[index], page[index + 1])
    if looked >= look or bytes >= most_bytes or #found >= most then
      return {now, page[index + 1], page[index], found}
    end
  end
  if #page < 2 * PAGE then
    return {now, '', '', found}
  end
  offset = offset + PAGE
end
