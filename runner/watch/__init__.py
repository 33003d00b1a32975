"""Look at a worker from beside its loop: what it holds, and what holds it up.

One thread (`watch`) looks a few times a second, whatever the loop does. `recycling` says when a
process is to be replaced, `blocked` which job keeps the loop from turning, `overdue` which runs far
beyond its usual time, `vitals` what the process holds. `leftovers` and `unclosed` need no thread:
they find the asyncio tasks, sockets and connections that a job has left behind. What is not asked
for is not there.
"""

from runner.watch.recycling import RECYCLED
from runner.watch.settings import LEFT_RESOURCES, LEFT_TASKS, watch_settings
from runner.watch.watch import Supervises, Watch

__all__ = ["LEFT_RESOURCES", "LEFT_TASKS", "RECYCLED", "Supervises", "Watch", "watch_settings"]
