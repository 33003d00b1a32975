-- The fence: whether a claim still holds its job. A settlement counts when it does.

-- What `held` says of a job: the token of its claim, its crashes, the score it had before.
local function held_parts(value)
  return string.match(value, '^(%S+) (%d+) (%S+)$')
end

-- My token in the in-progress key; or that key is gone, but nobody has claimed since: held is still
-- my token, the count of tries is my attempt, and the id is in the set. `holder` is the value of the
-- in-progress key, or false.
local function is_mine(id, claim, attempt, holder)
  if holder then
    return holder == claim
  end
  local value = redis.call('HGET', held, id)
  return value and held_parts(value) == claim
    and redis.call('GET', 'arq:retry:' .. id) == attempt
    and redis.call('ZSCORE', queue, id) ~= false
end
