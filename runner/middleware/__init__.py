"""What stands around the enqueueing and the running of jobs: see `Middleware`."""

from runner.middleware.base import (
    CARRIED,
    Enqueue,
    EnqueueCall,
    Execute,
    JobCall,
    Middleware,
    around_enqueue,
    around_execute,
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
    "JobCall",
    "JobTiming",
    "Middleware",
    "Propagation",
    "Sentry",
    "Timing",
    "around_enqueue",
    "around_execute",
    "check",
]
