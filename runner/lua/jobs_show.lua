-- Look at jobs of a queue by their ids.
-- KEYS: queue held
-- ARGV: ids...
-- Uses: clock fence jobstate
-- Returns: {now, a job for each id that is in the queue}

local found = {}
for at = ids_at, #ARGV do
  local id = ARGV[at]
  local score = redis.call('ZSCORE', queue, id)
  if score then
    found[#found + 1] = job_of(id, score, value_of('arq:job:' .. id) or '')
  end
end
return {now, found}
