-- Add nodes to a running flow, for a node of it that runs: what comes after that waits for them too.
-- With id '' to a batch: while its first node, which stands for its being open, has not ended.
-- KEYS: flow queue held
-- ARGV: id token attempt flow_id adder entries...
-- Uses: clock tell wake fence flow
-- Returns: 1 (added), 0 (they were there already), -1 (the flow stops), -2 (the lease is lost)
--
-- An entry is five values: number, packed plan, packed name and task, payload ('' for a gate), packed
-- parents. Parents that have ended count as that; others get the node among their children.

local FIELDS = 5

if id ~= '' and not is_mine(id, token, attempt, redis.call('GET', 'arq:in-progress:' .. id)) then
  return -2
end
local facts = redis.call('HMGET', flow, 'state', 'stop', 'life')
local is_closed = id == '' and redis.call('HEXISTS', flow .. ':states', adder) == 1
if facts[1] ~= 'running' or facts[2] or is_closed then
  return -1
end
if redis.call('HEXISTS', flow .. ':plan', ARGV[entries_at]) == 1 then
  return 0
end

local function plan_of(number)
  return cmsgpack.unpack(redis.call('HGET', flow .. ':plan', number))
end

local function put_plan(number, plan)
  redis.call('HSET', flow .. ':plan', number, cmsgpack.pack(plan))
end

-- What comes after the adder, or after the node it stands in for.
local own = plan_of(adder)
if own[5] >= 0 then
  own = plan_of(string.format('%d', own[5]))
end
local following = {}
for index = 1, #own[6], 2 do
  for number = own[6][index], own[6][index + 1] do
    following[#following + 1] = string.format('%d', number)
  end
end

local ready, added = {}, 0
for at = entries_at, #ARGV, FIELDS do
  local number, plan = ARGV[at], cmsgpack.unpack(ARGV[at + 1])
  local waits, doomed = 0, false
  for _, parent in ipairs(cmsgpack.unpack(ARGV[at + 4])) do
    local name = string.format('%d', parent)
    local parents_plan = plan_of(name)
    if parents_plan[5] >= 0 then
      -- What waits for a fallback waits for the node it stands in for.
      name = string.format('%d', parents_plan[5])
      parents_plan = plan_of(name)
    end
    local state = redis.call('HGET', flow .. ':states', name)
    local stands_in = state == 'f' and parents_plan[4] >= 0
    if stands_in then
      state = redis.call('HGET', flow .. ':states', string.format('%d', parents_plan[4]))
    end
    if not state then
      waits = waits + 1
      local children = parents_plan[6]
      children[#children + 1] = tonumber(number)
      children[#children + 1] = tonumber(number)
      put_plan(name, parents_plan)
    elseif state == 'k' or (state == 'f' and not flow_has(parents_plan[1], 'c')) then
      doomed = true
    end
  end
  if plan[5] < 0 then
    -- Not for a fallback: what waits for a node waits for its fallback.
    local children = plan[6]
    for index = 1, #own[6] do
      children[#children + 1] = own[6][index]
    end
    added = added + 1
  end
  redis.call('HSET', flow .. ':plan', number, cmsgpack.pack(plan))
  redis.call('HSET', flow .. ':names', number, ARGV[at + 2])
  if ARGV[at + 3] ~= '' then
    redis.call('HSET', flow .. ':jobs', number, ARGV[at + 3])
  end
  if doomed then
    redis.call('HSET', flow .. ':waits', 'x' .. number, 1)
    redis.call('HSET', flow, 'bad', 1)
  end
  if waits > 1 then
    redis.call('HSET', flow .. ':waits', number, waits)
  elseif waits == 0 and plan[5] < 0 then
    ready[#ready + 1] = number
  end
end
local waits = {}
for index, left in ipairs(flow_read(flow .. ':waits', following)) do
  waits[2 * index - 1] = following[index]
  waits[2 * index] = (tonumber(left) or 1) + added
end
flow_write(flow .. ':waits', waits)
redis.call('HINCRBY', flow, 'total', (#ARGV - entries_at + 1) / FIELDS)
redis.call('HINCRBY', flow, 'ordinary', added)
flow_expire(flow, tonumber(facts[3]))
local change = flow_no_change()
change.left = added
flow_follow(flow_id, flow, {}, ready, change)
flow_wake('')
return 1
