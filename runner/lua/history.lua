-- History of a queue: how attempts ended by the minute and the task, and the jobs that ended last.

local COUNTED_MS, COUNTED_BY_TASK_MS, ENDED_MS = 86400000, 10800000, 604800000
local REFUSED_MS, REFUSED_AT_MOST = 900000, 10000

-- Return the two keys of the counts of a minute: all of them, and by task.
local function minute_keys(queue_name, ms)
  local at = queue_name .. ':' .. string.format('%d', math.floor(ms / 60000))
  return 'runner:minute:' .. at, 'runner:minute-tasks:' .. at
end

-- Put a piece of so many jobs in front of the list. Before each piece stands the number of its last
-- job, counted from the first that was ever listed: a piece goes when all of its jobs are too old.
local function list_ended(list, piece, jobs, most)
  local function number_of(index)
    local found = redis.call('LINDEX', list, index)
    return found and tonumber(string.match(found, '^%d+')) or 0
  end
  local last = number_of(0) + jobs
  redis.call('LPUSH', list, string.format('%d', last) .. ':' .. piece)
  while last - number_of(-1) >= most do
    redis.call('RPOP', list)
  end
  redis.call('PEXPIRE', list, ENDED_MS)
end

-- Count an attempt otherwise that was counted as a success, or will be in a moment. It belongs to
-- the minute in which it ended, as its entry in the stream does; where the success was counted in
-- another one, this count is below zero, and readers even it out.
local function count_otherwise(queue_name, entry, outcome, name)
  local all, by_task = minute_keys(queue_name, tonumber(string.match(entry, '^%d+')))
  redis.call('HINCRBY', all, 'succeeded', -1)
  redis.call('HINCRBY', all, outcome, 1)
  redis.call('PEXPIRE', all, COUNTED_MS)
  redis.call('HINCRBY', by_task, 'succeeded ' .. name, -1)
  redis.call('HINCRBY', by_task, outcome .. ' ' .. name, 1)
  redis.call('PEXPIRE', by_task, COUNTED_BY_TASK_MS)
end

-- Note the end of a job that was refused: its worker may tell of a success half a second later, and
-- much later after Redis was away.
local function note_refused(ends, job_end)
  redis.call('ZREMRANGEBYSCORE', ends, '-inf', now - REFUSED_MS)
  redis.call('ZADD', ends, now, job_end)
  redis.call('ZREMRANGEBYRANK', ends, 0, -REFUSED_AT_MOST - 1)
  redis.call('PEXPIRE', ends, REFUSED_MS)
end

-- Take those out of a piece that were refused before it came; return how many are left, and them.
-- What is refused later is listed in front of it, where readers meet it first.
local function without_refused(ends, jobs, piece)
  if redis.call('EXISTS', ends) == 0 then
    return jobs, piece
  end
  local content, left = cmsgpack.unpack(piece), {}
  for _, row in ipairs(content[2]) do
    local job_end = string.format('%d', row[8]) .. ' ' .. row[3]
    if row[2] ~= 'succeeded' or redis.call('ZREM', ends, job_end) == 0 then
      left[#left + 1] = row
    end
  end
  return #left, cmsgpack.pack({content[1], left})
end
