-- What is known of limits, the slots of max_running, and the jobs that are parked for one.
--
-- A bucket is one limit for one value of its key: `name`, or `name[value]`. Names have no `[`.
-- A slot belongs to a job from its admission to its settlement, and a slot that is promised to a
-- parked job is taken from the moment of its release: nobody overtakes it.
--
-- The functions are there after `open_limits()`: most calls of the engine's cycle need none of them.

local PAUSED_MS, PARKED_MS = 4102444800001, 4102444800002
local LIMIT_MS = 2592000000
local RELEASES, SWEPT, SWEEP_AGAIN_MS = 100, 20, 1000

local member_of, member_parts, set_limit, most_running, note_release, unpark, free_slot,
  free_slots, is_stale, drop_stale, wake_released
local now_us, set_limits  -- microseconds; name → what was set at run time, or false
local released, swept = {}, {}  -- queue → how many jobs of it became due; buckets looked at

local function open_limits()
  now_us = clock_parts[1] * 1000000 + clock_parts[2]

  function member_of(queue_name, id)
    return queue_name .. '\n' .. id
  end

  function member_parts(member)
    local at = string.find(member, '\n', 1, true)
    return string.sub(member, 1, at - 1), string.sub(member, at + 1)
  end

  -- What was set at run time for a limit, or nil.
  function set_limit(name)
    if not set_limits then
      set_limits = {any = redis.call('EXISTS', 'runner:limits') == 1}
    end
    if not set_limits.any then
      return nil
    end
    local key = 'n' .. name
    if set_limits[key] == nil then
      local text = redis.call('HGET', 'runner:limits', name)
      set_limits[key] = text and cjson.decode(text) or false
    end
    return set_limits[key] or nil
  end

  -- How many jobs may run: as set, or else as declared; 0 declares nothing.
  function most_running(bucket, declared)
    local set = set_limit(string.match(bucket, '^[^%[]*'))
    if set and set.kind == 'running' then
      return set.count
    end
    return declared > 0 and declared or math.huge
  end

  function note_release(queue_name)
    released[queue_name] = (released[queue_name] or 0) + 1
  end

  -- Release parked jobs in order while there are slots; return how many were looked at.
  function unpark(bucket, most)
    local parked, running = 'runner:parked:' .. bucket, 'runner:running:' .. bucket
    if redis.call('EXISTS', parked) == 0 then
      return 0
    end
    local free = most - redis.call('ZCARD', running)
    local looked = 0
    while free > 0 and looked < RELEASES do
      local head = redis.call('ZPOPMIN', parked)
      if #head == 0 then
        break
      end
      looked = looked + 1
      local queue_name, id = member_parts(head[1])
      -- Aborted or purged meanwhile, it is parked no more, and gets no slot.
      if tonumber(redis.call('ZSCORE', queue_name, id) or 0) == PARKED_MS then
        redis.call('ZADD', queue_name, 'XX', head[2], id)
        -- A payload that has expired ends without running.
        if most < math.huge and redis.call('EXISTS', 'arq:job:' .. id) == 1 then
          redis.call('ZADD', running, now, head[1])
          redis.call('PEXPIRE', running, LIMIT_MS)
          free = free - 1
        end
        note_release(queue_name)
      end
    end
    return looked
  end

  -- Give up one slot, and hand it to the next in order. Nothing happens when it is given up twice.
  function free_slot(bucket, member, declared)
    if redis.call('ZREM', 'runner:running:' .. bucket, member) == 1 then
      unpark(bucket, most_running(bucket, declared))
    end
  end

  -- `slots` are pairs of bucket and declared number, packed.
  function free_slots(member, slots)
    for _, slot in ipairs(cmsgpack.unpack(slots)) do
      free_slot(slot[1], member, slot[2])
    end
  end

  -- A slot is stale when its job is neither running nor about to be claimed: it was purged, its
  -- payload expired, or a stock worker ended it.
  function is_stale(member)
    local queue_name, id = member_parts(member)
    local score = redis.call('ZSCORE', queue_name, id)
    if not score then
      return true
    end
    local holder = redis.call('GET', 'arq:in-progress:' .. id)
    if holder then
      return string.sub(holder, 1, 11) == 'committing:'
    end
    return tonumber(score) > now + 1
  end

  -- Look at some slots, those first that nobody has looked at for longest, and drop the stale ones.
  function drop_stale(bucket)
    if swept[bucket] then
      return
    end
    swept[bucket] = true
    local running = 'runner:running:' .. bucket
    local members = redis.call('ZRANGEBYSCORE', running, '-inf', now - SWEEP_AGAIN_MS,
      'LIMIT', 0, SWEPT)
    for _, member in ipairs(members) do
      if is_stale(member) then
        redis.call('ZREM', running, member)
      else
        redis.call('ZADD', running, 'XX', now, member)
      end
    end
  end

  -- Wake those who can claim what was released.
  function wake_released()
    for queue_name, count in pairs(released) do
      wake_idle('runner:idle:' .. queue_name, 'runner:wake:' .. queue_name, count)
    end
  end
end
