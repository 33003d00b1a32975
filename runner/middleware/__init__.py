"""What stands around the enqueueing and the running of jobs: see `Middleware`."""

from runner.middleware.base import (
    CARRIED,
    Enqueue,
    EnqueueCall,
    Execute,
    FlowCall,
    JobCall,
    Middleware,
    StartFlow,
    all_of,
    around_enqueue,
    around_execute,
    around_start,
    carriers,
    check,
)
from runner.middleware.errors import Sentry
from runner.middleware.propagation import Propagation
from runner.middleware.timing import JobTiming, Timing

__all__ = [
    "CARRIED",
    "Enqueue",
    "EnqueueCall",
    "Execute",
    "FlowCall",
    "JobCall",
    "JobTiming",
    "Middleware",
    "Propagation",
    "Sentry",
    "StartFlow",
    "Timing",
    "all_of",
    "around_enqueue",
    "around_execute",
    "around_start",
    "carriers",
    "check",
]
