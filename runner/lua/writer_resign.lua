-- Give the office up, so that another candidate takes it at once.
-- KEYS: leader
-- ARGV: name
-- Returns: 1 (given up) or 0 (it was another's)

if redis.call('GET', leader) == name then
  return redis.call('DEL', leader)
end
return 0
