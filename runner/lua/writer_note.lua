-- Keep facts about the writer, also in a Redis that has no memory left.
-- KEYS: writer
-- ARGV: facts...
-- Returns: how many of them are new
--
-- `facts` are fields and their values. The writer is what frees the memory, so it must be able to
-- take office without any: a full server refuses what needs memory only as a script's first write.

redis.call('PERSIST', writer)
return redis.call('HSET', writer, unpack(ARGV, facts_at))
