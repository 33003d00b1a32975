-- Jobs that were parked because their task is paused.

-- Release up to `RELEASES` of them, in order; return how many were looked at.
local function unpause(task)
  local parked = 'runner:parked-task:' .. task
  local heads = redis.call('ZPOPMIN', parked, RELEASES)
  for at = 1, #heads, 2 do
    local queue_name, id = member_parts(heads[at])
    if tonumber(redis.call('ZSCORE', queue_name, id) or 0) == PAUSED_MS then
      redis.call('ZADD', queue_name, 'XX', heads[at + 1], id)
      note_release(queue_name)
    end
  end
  if redis.call('EXISTS', parked) == 0 then
    redis.call('SREM', 'runner:parked-tasks', task)
  end
  return #heads / 2
end
