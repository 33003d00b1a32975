-- What every worker has to know of each job it claims: the tasks that are paused, and the limits
-- that were set at run time on a task. It stands in one text, which claims bring along.

local function write_gates(gated)
  local paused_tasks = redis.call('SMEMBERS', 'runner:paused-tasks')
  local set = {}
  local stored = redis.call('HGETALL', 'runner:limits')
  for at = 2, #stored, 2 do
    if cjson.decode(stored[at]).task then
      set[#set + 1] = stored[at]
    end
  end
  if #paused_tasks == 0 and #set == 0 then
    redis.call('DEL', gated)
    return
  end
  table.sort(paused_tasks)
  table.sort(set)
  local names = #paused_tasks > 0 and cjson.encode(paused_tasks) or '[]'
  redis.call('SET', gated, '{"paused":' .. names .. ',"limits":[' .. table.concat(set, ',') .. ']}')
end
