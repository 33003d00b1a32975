"""Limits: how often and how many of a task's jobs run at once, in the whole fleet.

`window` and `bucket` are the two rules of a rate, `running` counts jobs at once; `options` is what
tasks declare, `gate` a worker's part in it, `store` what was set at run time, `pauses` queues and
tasks that rest. Who may run is decided by `admit.lua`, by Redis's clock.
"""

from runner.limits.bucket import Bucket
from runner.limits.gate import Gate, Limited, Verdict
from runner.limits.options import Limit, RateLimit, declared
from runner.limits.pauses import Paused, Pauses
from runner.limits.running import Running, RunningLimit
from runner.limits.store import BucketInfo, LimitInfo, Limits
from runner.limits.window import Window

__all__ = [
    "Bucket",
    "BucketInfo",
    "Gate",
    "Limit",
    "LimitInfo",
    "Limited",
    "Limits",
    "Paused",
    "Pauses",
    "RateLimit",
    "Running",
    "RunningLimit",
    "Verdict",
    "Window",
    "declared",
]
