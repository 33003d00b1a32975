-- A job goes back into its queue, and nobody holds it.

-- In place of a token: nobody holds the job, which waits for another try; its crashes are kept.
local WAITS = '-'

-- Put it back at a score, or at its old one (nil); return the score that it had before the claim.
local function put_back(id, at)
  local kept, crashes = now_exact, '0'
  local value = redis.call('HGET', held, id)
  if value then
    local _, counted, score = held_parts(value)
    kept, crashes = tonumber(score), counted
  end
  at = at or kept
  -- What frees memory goes first: the server refuses only a script's first write.
  redis.call('DEL', 'arq:in-progress:' .. id)
  if crashes == '0' then
    redis.call('HDEL', held, id)
  else
    redis.call('HSET', held, id, WAITS .. ' ' .. crashes .. ' ' .. score_text(at))
  end
  redis.call('ZADD', queue, 'XX', score_text(at), id)
  return kept
end
