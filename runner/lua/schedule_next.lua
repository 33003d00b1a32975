-- Let the job of a schedule decide when the schedule is due next.
-- KEYS: schedules queue held
-- ARGV: book name job delay at token attempt call
-- Uses: clock fence
-- Returns: the due time in ms, '' for never, or -1 when the job is not the schedule's latest, or runs elsewhere
--
-- `delay` is ms from now, or else `at` is a Unix time in ms; both '' end the schedule until
-- somebody resumes it. A job that runs again after a crash decides again, unless the schedule
-- has gone on without it. With `token` and `attempt` of its claim, a job that has lost its lease
-- decides nothing. `call` are the arguments of the runs to come, '' to leave them as they are.

local FAR_OFF_MS = 4102444800000
local key = book .. name
if redis.call('HGET', key, 'job') ~= job then
  return -1
end
if token ~= '' and not is_mine(job, token, attempt, redis.call('GET', 'arq:in-progress:' .. job)) then
  return -1
end
local due = at
if delay ~= '' then
  due = string.format('%d', now + tonumber(delay))
end
-- Due times only move forward: the same one again would be the same job.
local last = tonumber(redis.call('HGET', key, 'last')) or 0
if due ~= '' and tonumber(due) <= last then
  due = string.format('%d', last + 1)
end
redis.call('HSET', key, 'due', due)
if call ~= '' then
  redis.call('HSET', key, 'call', call)
end
local paused = redis.call('HGET', key, 'paused') == '1'
redis.call('ZADD', schedules, (due == '' or paused) and FAR_OFF_MS or due, name)
return due
