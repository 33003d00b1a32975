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

-- Many may wait for one: each plan is read and written once, and each state read once.
local known_plans, known_states, changed = {}, {}, {}

local function plan_of(number)
  local plan = known_plans[number]
  if not plan then
    plan = cmsgpack.unpack(redis.call('HGET', flow .. ':plan', number))
    known_plans[number] = plan
  end
  return plan
end

-- What has come of a node, '' while it has not ended.
local function state_of(number)
  local state = known_states[number]
  if not state then
    state = redis.call('HGET', flow .. ':states', number) or ''
    known_states[number] = state
  end
  return state
end

-- Children are first, last, first, last, ...
local function add_child(name, plan, number)
  local children = plan[6]
  if #children > 0 and children[#children] == number - 1 then
    children[#children] = number
  else
    children[#children + 1] = number
    children[#children + 1] = number
  end
  changed[name] = plan
end

-- What comes after the adder, or after the node it stands in for.
local own = plan_of(adder)
if own[5] >= 0 then
  own = plan_of(string.format('%d', own[5]))
end
local ranges, following = {}, {}
for index = 1, #own[6], 2 do
  ranges[index], ranges[index + 1] = own[6][index], own[6][index + 1]
  for number = own[6][index], own[6][index + 1] do
    following[#following + 1] = string.format('%d', number)
  end
end

-- How many of these parents have not ended, and whether one has failed, for the node of this number.
local function wait_for(parents, number)
  local waits, doomed = 0, false
  for _, parent in ipairs(parents) do
    local name = string.format('%d', parent)
    local plan = plan_of(name)
    if plan[5] >= 0 then
      -- What waits for a fallback waits for the node it stands in for.
      name = string.format('%d', plan[5])
      plan = plan_of(name)
    end
    local state = state_of(name)
    if state == 'f' and plan[4] >= 0 then
      state = state_of(string.format('%d', plan[4]))
    end
    if state == '' then
      waits = waits + 1
      add_child(name, plan, number)
    elseif state == 'k' or (state == 'f' and not flow_has(plan[1], 'c')) then
      doomed = true
    end
  end
  return waits, doomed
end

local ready, added = {}, 0
local names, jobs, waiting = {}, {}, {}
for at = entries_at, #ARGV, FIELDS do
  local number, plan = ARGV[at], cmsgpack.unpack(ARGV[at + 1])
  local waits, doomed = wait_for(cmsgpack.unpack(ARGV[at + 4]), tonumber(number))
  if plan[5] < 0 then
    -- Not for a fallback: what waits for a node waits for its fallback.
    for index = 1, #ranges do
      plan[6][index] = ranges[index]
    end
    added = added + 1
    if waits == 0 then
      ready[#ready + 1] = number
    end
  end
  known_plans[number], changed[number] = plan, plan
  names[#names + 1], names[#names + 2] = number, ARGV[at + 2]
  if ARGV[at + 3] ~= '' then
    jobs[#jobs + 1], jobs[#jobs + 2] = number, ARGV[at + 3]
  end
  if doomed then
    waiting[#waiting + 1], waiting[#waiting + 2] = 'x' .. number, 1
    redis.call('HSET', flow, 'bad', 1)
  end
  if waits > 1 then
    waiting[#waiting + 1], waiting[#waiting + 2] = number, waits
  end
end
for index, left in ipairs(flow_read(flow .. ':waits', following)) do
  waiting[#waiting + 1] = following[index]
  waiting[#waiting + 1] = (tonumber(left) or 1) + added
end
local plans = {}
for number, plan in pairs(changed) do
  plans[#plans + 1], plans[#plans + 2] = number, cmsgpack.pack(plan)
end
flow_write(flow .. ':plan', plans)
flow_write(flow .. ':names', names)
flow_write(flow .. ':jobs', jobs)
flow_write(flow .. ':waits', waiting)
redis.call('HINCRBY', flow, 'total', (#ARGV - entries_at + 1) / FIELDS)
redis.call('HINCRBY', flow, 'ordinary', added)
flow_expire(flow, math.max(tonumber(facts[3]), redis.call('PTTL', flow)))
local change = flow_no_change()
change.left = added
flow_follow(flow_id, flow, {}, ready, change)
flow_wake('')
return 1
