"""Workflows: calls that wait for each other, and take each other's results.

`flow` writes a flow down, `graph` checks it and is the reference for what becomes of it, `drawing`
shows it; `plan` numbers and encodes it, `store` is the door to Redis, `run` the handle on a flow
that was started, `inside` what a job sees. What follows when a node ends is in ``lua/flow.lua``, a
part of the scripts that settle.
"""

from runner.workflow.flow import Added, Flow, flow_of
from runner.workflow.graph import FlowState, NodeState
from runner.workflow.inside import JobFlow, WaitForFlow, filled_arguments
from runner.workflow.plan import JOB_PREFIX, REFERENCES, RETRIES, TIMEOUT, WITHIN, plain_encoder
from runner.workflow.run import Progress, Run, converter
from runner.workflow.store import FlowStatus, FlowStore, NodeInfo

__all__ = [
    "JOB_PREFIX",
    "REFERENCES",
    "RETRIES",
    "TIMEOUT",
    "WITHIN",
    "Added",
    "Flow",
    "FlowState",
    "FlowStatus",
    "FlowStore",
    "JobFlow",
    "NodeInfo",
    "NodeState",
    "Progress",
    "Run",
    "WaitForFlow",
    "converter",
    "filled_arguments",
    "flow_of",
    "plain_encoder",
]
