-- Flows that were stopped, or whose deadline has come: what stands in queues is taken out of them.
--
-- Whoever uses this has `flow` in front of it.

-- How many ids in front of a queue are looked at for a flow that was stopped.
local FLOW_STOPPED = 10

-- Stop the flow that this node waits for without a slot: nobody takes its result any more.
local function flow_stop_awaited(key, node)
  local flow = redis.call('HGET', key, 'sub:' .. node)
  if flow then
    flow_stop_now(flow, 'cancelled')
  end
end

-- Take a node that nobody holds out of its queue; nothing happens when it does not stand there.
local function flow_take_out(name, id)
  if redis.call('ZREM', name, id) == 1 then
    redis.call('DEL', 'arq:job:' .. id, 'arq:retry:' .. id)
    redis.call('HDEL', 'runner:held:' .. name, id)
    redis.pcall('ZREM', 'arq:abort', id)
    flow_note(id, 'c', '')
  end
end

-- Take a page of a stopped flow's nodes out of their queues; ask for the end of those that run.
-- Callbacks run, however a flow ends.
local function flow_sweep(flow, key, from, total)
  local nodes = {}
  for number = from, math.min(from + FLOW_PAGE, total) - 1 do
    nodes[#nodes + 1] = string.format('%d', number)
  end
  local states, plans = flow_read(key .. ':states', nodes), flow_plans(key, nodes)
  local awaits = redis.call('HEXISTS', key, 'awaits') == 1
  for index, node in ipairs(nodes) do
    local id, plan = 'flow:' .. flow .. ':' .. node, plans[index]
    if plan and not states[index] and not flow_has(plan[1], 'g') and not flow_has(plan[1], 'b') then
      local holder = redis.call('GET', 'arq:in-progress:' .. id)
      if not holder then
        flow_take_out(plan[2], id)
      elseif string.sub(holder, 1, 2) == 'r:' then
        redis.pcall('ZADD', 'arq:abort', now, id)
      end
      if awaits then
        flow_stop_awaited(key, node)
      end
    end
  end
end

-- The key of the flow of this node, and the node, when the flow was stopped and the node need not run.
local function flow_gave_up(id)
  if string.sub(id, 1, 5) ~= 'flow:' then
    return nil
  end
  local flow, node = string.match(id, '^flow:(.+):(%d+)$')
  local key = 'runner:flow:' .. (flow or '')
  -- A key of another kind must not stop those who claim.
  local facts = flow and redis.pcall('HMGET', key, 'state', 'stop', 'life')
  if not facts or not facts[1] then
    return nil
  end
  if facts[1] == 'running' and facts[2] then
    local plan = redis.pcall('HGET', key .. ':plan', node)
    if type(plan) ~= 'string' or not flow_has(cmsgpack.unpack(plan)[1], 'b') then
      return key, node, true
    end
  end
  return key, node, false, tonumber(facts[3])
end

-- A node is back in its queue. Its flow is kept until it runs; one that was stopped takes it out.
local function flow_back(name, id, delay_ms)
  local key, node, is_over, life_ms = flow_gave_up(id)
  if is_over then
    flow_take_out(name, id)
    flow_stop_awaited(key, node)
  elseif key then
    flow_last(key, life_ms + delay_ms)
    local job = 'arq:job:' .. id
    if redis.call('PTTL', job) < life_ms / 2 + delay_ms then
      redis.call('PEXPIRE', job, life_ms + delay_ms)
    end
  end
end

-- Whether this job was a node of a flow that was stopped, and has lost its worker: it is taken out.
local function flow_dropped(name, id)
  local key, node, is_over = flow_gave_up(id)
  if is_over then
    flow_take_out(name, id)
    flow_stop_awaited(key, node)
  end
  return is_over
end

-- See to the flow that stands in a queue under this id because it is due: when its deadline has come, it
-- is stopped. Returns whether there is such a flow, or was.
local function flow_due(name, id)
  if string.sub(id, 1, 5) ~= 'flow:' then
    return false
  end
  local flow = string.sub(id, 6)
  local key = 'runner:flow:' .. flow
  local facts = redis.call('HMGET', key, 'state', 'stop', 'deadline', 'open', 'life')
  local deadline = tonumber(facts[3])
  if not facts[1] and string.find(flow, ':', 1, true) then
    return false  -- a node
  elseif facts[1] ~= 'running' then
    redis.call('ZREM', name, id)
  elseif facts[2] then
    return true
  elseif not deadline or deadline > now + 1 then
    redis.call('ZADD', name, 'XX', deadline or flow_horizon(key), id)
  else
    flow_stop(flow, key, 'expired')
    if facts[4] == '0' then
      flow_end(flow, key, 'expired', tonumber(facts[5]))
    end
  end
  return true
end

-- Take the next page of a stopped flow out of its queues, before anything is claimed: stopped flows
-- stand in front. Returns whether there was one.
local function flow_clear(name)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', name, '-inf', 0, 'LIMIT', 0, FLOW_STOPPED)) do
    local flow = string.match(id, '^flow:(.+)$')
    local key = 'runner:flow:' .. (flow or '')
    local facts = redis.call('HMGET', key, 'state', 'stop', 'swept', 'next')
    if flow and facts[1] == 'running' and facts[2] then
      local from, total = tonumber(facts[3]), tonumber(facts[4])
      flow_sweep(flow, key, from, total)
      redis.call('HSET', key, 'swept', from + FLOW_PAGE)
      if from + FLOW_PAGE >= total then
        redis.call('ZADD', name, 'XX', flow_horizon(key), id)
      end
      flow_settle()
      return true
    end
  end
  return false
end
