"""Workflows: calls that wait for each other, and take each other's results.

`flow` writes a flow down, `graph` checks it and is the reference for what becomes of it, `drawing`
shows it; `plan` numbers and encodes it, `store` is the door to Redis, `stored` what follows from
what is there, `run` the handle on a flow that was started, `batch` a flow that stays open,
`starting` what a client does with them, `inside` what a job sees. What follows when a node ends is
in ``lua/flow.lua``, a part of the scripts that settle.
"""

from runner.workflow.batch import Batch
from runner.workflow.flow import Added, Flow
from runner.workflow.graph import FlowState, NodeState
from runner.workflow.inside import JobFlow, WaitForFlow, filled_arguments, has_waited
from runner.workflow.plan import JOB_PREFIX, REFERENCES, RETRIES, TIMEOUT, WITHIN, plain_encoder
from runner.workflow.run import Progress, Run
from runner.workflow.starting import StartsFlows
from runner.workflow.store import FlowStore
from runner.workflow.stored import FlowStatus, NodeInfo

__all__ = [
    "JOB_PREFIX",
    "REFERENCES",
    "RETRIES",
    "TIMEOUT",
    "WITHIN",
    "Added",
    "Batch",
    "Flow",
    "FlowState",
    "FlowStatus",
    "FlowStore",
    "JobFlow",
    "NodeInfo",
    "NodeState",
    "Progress",
    "Run",
    "StartsFlows",
    "WaitForFlow",
    "filled_arguments",
    "has_waited",
    "plain_encoder",
]
