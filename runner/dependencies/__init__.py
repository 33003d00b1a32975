"""Give a task's function what it needs, for the job's life or the worker's.

A parameter that is provided is no argument: nobody passes it when a job is enqueued. It is made
when the function is called, by its provider: a plain or async function, or one that yields the
value once and cleans up behind it. What the providers of a job have opened is closed in reverse
order when its function ends, also by a cancellation. What lives as long as the worker is made when
the first job wants it, and held by a task of its own, which enters and leaves it.

Around a function that runs in a thread its plain providers run in that thread, and what is async
runs in the event loop, where a task of its own holds it. So nothing is closed under a function that
goes on though its job has ended.
"""

from __future__ import annotations

from runner.dependencies.declared import Dependency, Depends, dependencies_of
from runner.dependencies.threads import Loop, call_in_thread
from runner.dependencies.values import STORE, WorkersValues, call, overriding

__all__ = [
    "STORE",
    "Dependency",
    "Depends",
    "Loop",
    "WorkersValues",
    "call",
    "call_in_thread",
    "dependencies_of",
    "overriding",
]
