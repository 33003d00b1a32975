-- Flows: what follows when nodes end, in the very script that settles them.
--
-- A node is the job `flow:<flow>:<number>`. A flow is seven hashes, all named by its id:
--   runner:flow:<flow>           what it is and how far: state, stop, counts, callbacks
--   runner:flow:<flow>:plan      number -> packed {flags, queue, delay_ms, fallback, owner, children}
--   runner:flow:<flow>:names     number -> packed {name, task}
--   runner:flow:<flow>:jobs      number -> payload of its job
--   runner:flow:<flow>:waits     number -> parents that have not ended, where there is more than one;
--                                'x' and the number: a parent failed, so it will be skipped
--   runner:flow:<flow>:states    number -> s succeeded, f failed, k skipped, c cancelled, w: its writes
--                                wait for their commit and its children do not
--   runner:flow:<flow>:results   number -> encoded result, where somebody needs it
-- Flags are letters: g gate (no job), k keeps its result, c a failure does not matter, e children start
-- before the commit, b callback. `fallback` and `owner` are numbers or -1; children are first, last, ...
-- The flow itself stands in its home queue as `flow:<flow>`, at its deadline, or when its keys expire.
-- `sub:<number>` names the flow whose end a node waits for.
--
-- Whoever uses this has the clock, `tell` and `wake` in front of it.

local FLOW_PAGE = 500
-- A flow is kept for its life after its last progress, or for so much less.
local FLOW_FRESH_MS = 3600000
local FLOW_SOON_MS = 5000
-- A delay so long is a time.
local FLOW_A_TIME_MS = 1000000000000
local FLOW_KEYS = {'', ':plan', ':names', ':jobs', ':waits', ':states', ':results'}

local flow_notes, flow_order = {}, {}
local flow_woken = {}

-- Remember that a node ended; `flow_settle` sees to it, for all of a flow together.
local function flow_note(id, state, blob)
  if string.sub(id, 1, 5) ~= 'flow:' then
    return
  end
  local flow, node = string.match(id, '^flow:(.+):(%d+)$')
  if not flow then
    return
  end
  local notes = flow_notes[flow]
  if not notes then
    notes = {}
    flow_notes[flow] = notes
    flow_order[#flow_order + 1] = flow
  end
  notes[#notes + 1] = {node, state, blob}
end

local function flow_has(flags, letter)
  return string.find(flags, letter, 1, true) ~= nil
end

local function flow_read(key, fields)
  local values, count = {}, 0
  for at = 1, #fields, FLOW_PAGE do
    local last = math.min(at + FLOW_PAGE - 1, #fields)
    for _, value in ipairs(redis.call('HMGET', key, unpack(fields, at, last))) do
      count = count + 1
      values[count] = value
    end
  end
  return values
end

-- `flat` is field, value, field, value, ...
local function flow_write(key, flat)
  for at = 1, #flat, 2 * FLOW_PAGE do
    redis.call('HSET', key, unpack(flat, at, math.min(at + 2 * FLOW_PAGE - 1, #flat)))
  end
end

local function flow_expire(key, life_ms)
  for _, part in ipairs(FLOW_KEYS) do
    redis.call('PEXPIRE', key .. part, life_ms)
  end
end

-- Keep a flow for so long, give or take an hour: it is asked for whenever a node ends.
local function flow_last(key, life_ms)
  if redis.call('PTTL', key) < life_ms - math.min(FLOW_FRESH_MS, life_ms / 2) then
    flow_expire(key, life_ms)
  end
end

-- When a flow is looked at again that has made no progress until then.
local function flow_horizon(key)
  return now + math.max(redis.call('PTTL', key), 0) + FLOW_SOON_MS
end

-- For how long a job goes back into its queue: ms, and behind it a flow whose end it waits for, as long
-- as which it is kept.
local function flow_delay(id, extra)
  local delay_ms, flow = string.match(extra, '^(%S+) ?(.*)$')
  if flow ~= '' then
    local key, job = 'runner:flow:' .. flow, 'arq:job:' .. id
    if redis.call('HGET', key, 'state') ~= 'running' then
      return 0  -- it has ended meanwhile
    end
    local left_ms, flow_ms = redis.call('PTTL', job), redis.call('PTTL', key)
    if left_ms >= 0 and left_ms < flow_ms then
      redis.call('PEXPIRE', job, flow_ms)
    end
  end
  return tonumber(delay_ms)
end

-- Put the jobs of these nodes into their queues, in this order.
local function flow_release(flow, nodes, plans, life_ms)
  local key = 'runner:flow:' .. flow
  local payloads = flow_read(key .. ':jobs', nodes)
  local queues, names = {}, {}
  local longest_ms = 0
  for index, node in ipairs(nodes) do
    local id, plan = 'flow:' .. flow .. ':' .. node, plans[index]
    local name, delay_ms = plan[2], plan[3]
    if delay_ms >= FLOW_A_TIME_MS then
      delay_ms = math.max(delay_ms - now, 0)
    end
    local scores = queues[name]
    if not scores then
      scores = {}
      queues[name] = scores
      names[#names + 1] = name
      flow_woken[name] = flow_woken[name] or 0
    end
    if payloads[index] then
      redis.call('SET', 'arq:job:' .. id, payloads[index], 'PX', life_ms + delay_ms)
    end
    -- In order, and due at once.
    local score = now_exact - 2 - (#nodes - index) / 1000
    if delay_ms > 0 then
      score = now_exact + delay_ms
      longest_ms = math.max(longest_ms, delay_ms)
    end
    if delay_ms == 0 then
      flow_woken[name] = flow_woken[name] + 1
    elseif delay_ms < FLOW_SOON_MS and flow_woken[name] == 0 then
      flow_woken[name] = 1  -- one worker wakes to set its timer
    end
    scores[#scores + 1] = score  -- a number travels with 17 digits, and costs less than a text
    scores[#scores + 1] = id
  end
  for _, name in ipairs(names) do
    local scores = queues[name]
    for at = 1, #scores, 2 * FLOW_PAGE do
      redis.call('ZADD', name, unpack(scores, at, math.min(at + 2 * FLOW_PAGE - 1, #scores)))
    end
  end
  if longest_ms > 0 then
    flow_last(key, life_ms + longest_ms)
  end
end

-- Wake those who wait for what was released; `own` is a queue of which the caller claims by itself.
local function flow_wake(own)
  for name, jobs in pairs(flow_woken) do
    if name ~= own then
      pcall(wake_idle, 'runner:idle:' .. name, 'runner:wake:' .. name, jobs)
    end
  end
  flow_woken = {}
end

-- The members of a chord have the same plan: each is unpacked once.
local flow_unpacked = {}

local function flow_plans(key, nodes)
  local plans = flow_read(key .. ':plan', nodes)
  for index, packed in ipairs(plans) do
    if packed then
      local plan = flow_unpacked[packed]
      if not plan then
        plan = cmsgpack.unpack(packed)
        flow_unpacked[packed] = plan
      end
      plans[index] = plan
    end
  end
  return plans
end

-- Let the job go on that waits for the end of this flow without holding a slot.
local function flow_resume(name, id)
  local score = redis.call('ZSCORE', name, id)
  if score and redis.call('EXISTS', 'arq:in-progress:' .. id) == 0 then
    redis.call('ZADD', name, 'XX', score_text(math.min(tonumber(score), now_exact)), id)
    flow_woken[name] = (flow_woken[name] or 0) + 1
  end
end

local function flow_end(flow, key, state, life_ms)
  redis.call('HSET', key, 'state', state, 'ended', now)
  local facts = redis.call('HMGET', key, 'home', 'keep', 'on_success', 'on_error', 'on_complete',
    'resumes_queue', 'resumes')
  redis.call('ZREM', facts[1], 'flow:' .. flow)
  local callbacks = {}
  if state == 'succeeded' and facts[3] then
    callbacks[#callbacks + 1] = facts[3]
  elseif (state == 'failed' or state == 'expired') and facts[4] then
    callbacks[#callbacks + 1] = facts[4]
  end
  if facts[5] then
    callbacks[#callbacks + 1] = facts[5]
  end
  if #callbacks > 0 then
    redis.call('HDEL', key .. ':states', unpack(callbacks))  -- they may have run at an earlier end
  end
  flow_release(flow, callbacks, flow_plans(key, callbacks), life_ms)
  if redis.call('HINCRBY', key, 'callbacks', #callbacks) == 0 then
    if state == 'succeeded' then
      redis.call('UNLINK', key .. ':jobs', key .. ':waits')  -- only another try needs them
    end
    flow_expire(key, tonumber(facts[2]))
  end
  if facts[7] then
    flow_resume(facts[6], facts[7])
  end
  tell_waiters('flow:' .. flow, state)
end

-- Take no more of a flow up, and have what is in the queues taken out of them.
local function flow_stop(flow, key, state)
  redis.call('HSET', key, 'stop', state, 'swept', 0)
  local home = redis.call('HGET', key, 'home')
  -- In front of all that is due: its own jobs may be a long queue.
  redis.call('ZADD', home, 'XX', 0, 'flow:' .. flow)
  flow_woken[home] = (flow_woken[home] or 0) + 1
end

-- Stop a flow, and end it where nothing of it is under way. Returns 1 (it stops), 0 (it had ended, or
-- stops already), -1 (there is none).
local function flow_stop_now(flow, state)
  local key = 'runner:flow:' .. flow
  local facts = redis.call('HMGET', key, 'state', 'stop', 'open', 'life')
  if not facts[1] then
    return -1
  end
  if facts[1] ~= 'running' or facts[2] then
    return 0
  end
  flow_stop(flow, key, state)
  if facts[3] == '0' then
    flow_end(flow, key, state, tonumber(facts[4]))
  end
  return 1
end

-- Follow what ended to what it releases or skips, until there is no more of it.
--
-- `work` are ends: {plan, ok, phase, is a skip}; phase `early` releases children before the commit, and
-- `late` counts the end behind it; `whole` does both. `ready` are nodes without parents.
local function flow_follow(flow, key, work, ready, change)
  local head = redis.call('HMGET', key, 'stop', 'fast', 'life', 'bad')
  local stop, fast, life_ms, bad = head[1], head[2] == '1', tonumber(head[3]), head[4] == '1'
  local stopped_before = stop
  local released, released_plans = {}, {}
  local states, waits = {}, {}
  local fatal, at = 0, 1

  local function follow_end(item, down, doomed, children)
    local plan, ok, phase, is_skip = item[1], item[2], item[3], item[4]
    if not ok and not is_skip and plan[4] >= 0 and phase == 'whole' and not stop then
      -- Its fallback stands in: what comes after it waits for that.
      local node = string.format('%d', plan[4])
      released[#released + 1] = node
      released_plans[#released_plans + 1] = flow_plans(key, {node})[1]
      return
    end
    if plan[5] >= 0 then
      plan = flow_plans(key, {string.format('%d', plan[5])})[1]
    end
    local is_bad = not ok and (is_skip or not flow_has(plan[1], 'c'))
    if phase ~= 'early' then
      change.left = change.left - 1
      if is_bad and not is_skip then
        fatal = fatal + 1
        if fast and not stop then
          stop = 'failed'
        end
      end
    end
    if phase ~= 'late' and not stop then
      local ranges = plan[6]
      for index = 1, #ranges, 2 do
        for number = ranges[index], ranges[index + 1] do
          local child = string.format('%d', number)
          if not down[child] then
            down[child] = 0
            children[#children + 1] = child
          end
          down[child] = down[child] + 1
          if is_bad then
            doomed[child] = true
          end
        end
      end
    end
  end

  local function see_to(nodes, doomed)
    local plans = flow_plans(key, nodes)
    local marks = {}
    if bad then
      local fields = {}
      for index, node in ipairs(nodes) do
        fields[index] = 'x' .. node
      end
      marks = flow_read(key .. ':waits', fields)
    end
    for index, node in ipairs(nodes) do
      local plan = plans[index]
      if doomed[node] or marks[index] then
        states[#states + 1] = node
        states[#states + 1] = 'k'
        if not flow_has(plan[1], 'g') then
          change.skipped = change.skipped + 1
        end
        bad = true
        work[#work + 1] = {plan, false, 'whole', true}
      elseif flow_has(plan[1], 'g') then
        states[#states + 1] = node
        states[#states + 1] = 's'
        work[#work + 1] = {plan, true, 'whole', false}
      else
        released[#released + 1] = node
        released_plans[#released_plans + 1] = plan
      end
    end
  end

  see_to(ready, {})
  while at <= #work do
    local down, doomed, children = {}, {}, {}
    while at <= #work do
      follow_end(work[at], down, doomed, children)
      at = at + 1
    end
    if next(doomed) then
      bad = true
    end
    local now_ready = {}
    for index, left in ipairs(flow_read(key .. ':waits', children)) do
      local child = children[index]
      local rest = (tonumber(left) or 1) - down[child]
      if rest > 0 then
        waits[#waits + 1] = child
        waits[#waits + 1] = rest
        if doomed[child] then
          waits[#waits + 1] = 'x' .. child
          waits[#waits + 1] = 1
        end
      else
        now_ready[#now_ready + 1] = child
      end
    end
    flow_write(key .. ':waits', waits)
    waits = {}
    see_to(now_ready, doomed)
  end

  flow_write(key .. ':states', states)
  if bad then
    redis.call('HSET', key, 'bad', 1)
  end
  if fatal > 0 and redis.call('HINCRBY', key, 'fatal', fatal) == fatal then
    local first = redis.call('HGET', key, 'on_failure')
    if first then
      redis.call('HINCRBY', key, 'callbacks', 1)
      flow_release(flow, {first}, flow_plans(key, {first}), life_ms)
    end
  end
  if not stop and #released > 0 then
    change.open = change.open + #released
    flow_release(flow, released, released_plans, life_ms)
  end
  local left, open
  for field, by in pairs(change) do
    if by ~= 0 or field == 'left' or field == 'open' then
      local value = redis.call('HINCRBY', key, field, by)
      if field == 'left' then
        left = value
      elseif field == 'open' then
        open = value
      end
    end
  end
  if left == 0 or (stop and open == 0) then
    local state = stop
    if not state then
      state = redis.call('HGET', key, 'fatal') and 'failed' or 'succeeded'
    end
    flow_end(flow, key, state, life_ms)
  else
    if stop and not stopped_before then
      flow_stop(flow, key, stop)
    end
    flow_last(key, life_ms)
  end
end

local function flow_no_change()
  return {left = 0, open = 0, succeeded = 0, failed = 0, skipped = 0, cancelled = 0}
end

local FLOW_COUNTS = {s = 'succeeded', f = 'failed', c = 'cancelled'}

-- See to the nodes of one flow that have ended: {number, state, encoded result} each.
local function flow_hear(flow, notes)
  local key = 'runner:flow:' .. flow
  local running = redis.call('HGET', key, 'state')
  if not running then
    return
  end
  running = running == 'running'
  local nodes = {}
  for index, note in ipairs(notes) do
    nodes[index] = note[1]
  end
  local before, plans = flow_read(key .. ':states', nodes), flow_plans(key, nodes)
  local states, results, work, change = {}, {}, {}, flow_no_change()
  local callbacks = 0
  for index, note in ipairs(notes) do
    local node, state, blob = note[1], note[2], note[3]
    local plan, was = plans[index], before[index]
    local counts = plan and (not was or (was == 'w' and state ~= 'w'))
    if counts and state == 'w' then
      counts = flow_has(plan[1], 'e')
    end
    local is_callback = counts and flow_has(plan[1], 'b')
    if counts and (running or is_callback) then
      states[#states + 1] = node
      states[#states + 1] = state
      if blob ~= '' and (state == 'f' or flow_has(plan[1], 'k')) then
        -- A fallback's result is that of the node it stands in for.
        results[#results + 1] = plan[5] >= 0 and string.format('%d', plan[5]) or node
        results[#results + 1] = blob
      end
      if is_callback then
        callbacks = callbacks + 1
      else
        if state ~= 'w' then
          change.open = change.open - 1
          change[FLOW_COUNTS[state]] = change[FLOW_COUNTS[state]] + 1
        end
        if state ~= 'c' then
          local phase = state == 'w' and 'early' or (was == 'w' and 'late' or 'whole')
          work[#work + 1] = {plan, state ~= 'f', phase, false}
        end
      end
    end
  end
  flow_write(key .. ':states', states)
  flow_write(key .. ':results', results)
  local waiting = callbacks > 0 and redis.call('HINCRBY', key, 'callbacks', -callbacks)
  if running and #states > 0 then
    flow_follow(flow, key, work, {}, change)
  elseif waiting and waiting <= 0 then
    flow_expire(key, tonumber(redis.call('HGET', key, 'keep')))
  end
end

-- See to all that was noted; what goes wrong with one flow stays with it.
local function flow_settle()
  local flows = flow_order
  flow_order = {}
  for _, flow in ipairs(flows) do
    local notes = flow_notes[flow]
    flow_notes[flow] = nil
    local ran, problem = pcall(flow_hear, flow, notes)
    if not ran then
      local text = type(problem) == 'table' and problem.err or tostring(problem)
      redis.pcall('HSET', 'runner:flow:' .. flow, 'problem', text)
    end
  end
end

-- Whether a flow that runs stands in a queue under this id, which is no job then.
local function flow_stands_as(id)
  return string.sub(id, 1, 5) == 'flow:'
    and redis.call('HGET', 'runner:flow:' .. string.sub(id, 6), 'state') == 'running'
end
