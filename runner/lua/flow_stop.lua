-- Stop a flow: nothing of it starts any more, and what runs is asked to end.
-- KEYS: flow
-- ARGV: id state
-- Uses: clock tell wake flow
-- Returns: 1 (it stops), 0 (it had ended, or stops already), -1 (there is none)

local status = flow_stop_now(id, state)
flow_wake('')
return status
