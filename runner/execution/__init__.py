"""Run attempts: one line of steps from a claim to its settlement.

`attempt` is the line, `calls` calls its function, `records` are the values between its steps,
`context` is what a task sees, `lines` what is logged, `limits` its clocks, `settlement` what
happens in Redis, `report` what subscribers hear; `steps` drives coroutines.
"""

from runner.execution import report
from runner.execution.attempt import abandon, begin, run
from runner.execution.context import Context
from runner.execution.records import Attempt, Ending, Host, now_ms
from runner.execution.steps import go_on

__all__ = [
    "Attempt",
    "Context",
    "Ending",
    "Host",
    "abandon",
    "begin",
    "go_on",
    "now_ms",
    "report",
    "run",
]
