-- Submit writes of a job that goes on: each numbered commit of a job once, whatever runs it again.
-- KEYS: queue held commits units writer
-- ARGV: id token attempt enqueued number digest unit_id operations header asks
-- Uses: fence backlog
-- Returns: {'sent' or 'known', entry, answer or nothing}; {'changed', entry}; {'lost'}
--
-- `commits` keeps for each number its entry, the digest of its operations and the claim that sent
-- it, and `answer <number>` when it is there: '+' and what the unit did, or '-' and why it was
-- refused. A job enqueued anew under the id begins anew. What was refused changed nothing, so a later
-- attempt sends it again, unless something came after it.

local KEEP_MS = 2592000000

if not is_mine(id, token, attempt, redis.call('GET', 'arq:in-progress:' .. id)) then
  return {'lost'}
end
if redis.call('HGET', commits, 'job') ~= enqueued then
  redis.call('DEL', commits)
end
local noted = redis.call('HGET', commits, number)
if noted then
  local entry, was, claim = string.match(noted, '^(%S+) (%S+) (%S+)$')
  local answer = redis.call('HGET', commits, 'answer ' .. number)
  local may_come_again = answer and string.sub(answer, 1, 1) == '-' and claim ~= token
    and redis.call('HEXISTS', commits, string.format('%d', number + 1)) == 0
  if not may_come_again then
    if was ~= digest then
      return {'changed', entry}
    end
    return {'known', entry, answer}
  end
  redis.call('HDEL', commits, 'answer ' .. number)
end
-- First the one write that can be refused: nothing else has happened then.
local entry = redis.pcall('XADD', units, '*',
  'u', unit_id, 'o', operations, 'c', header, 'a', asks)
if type(entry) == 'table' and entry.err then
  return entry
end
redis.call('HSET', commits, 'job', enqueued, number, entry .. ' ' .. digest .. ' ' .. token)
redis.call('PEXPIRE', commits, KEEP_MS)
note_added(#operations)
keep_account()
return {'sent', entry, false}
