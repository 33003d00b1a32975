"""Run the functions of tasks outside of the event loop: in threads, or in processes.

`threads` is the pool of threads and what can be done about one that does not end. `processes` is
the worker's side of its pool: `forker` is the process that makes the others, `child` what they do,
`wire` what is said, `failures` how an exception travels, and `tied` lets them end with the worker.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from runner.executors.processes import Processes
from runner.executors.threads import Threads
from runner.tasks import Task
from runner.time_limits import check_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.execution import Attempt, Host
    from runner.executors.processes import MemoryLimits
    from runner.leases import Leases

MAX_THREADS = 32


class Executors:
    """Where the functions of one worker run that are not for its event loop.

    Args:
        host: the worker; its functions are known.
        leases: see `Threads`.
        max_threads: how many threads there may be.
        max_processes: how many processes there may be; None: as many as this machine has cores.
        calls_per_process: how many jobs a process gets before it is replaced; None: any number.
        memory: how much one of them may hold; see `Processes`.

    Raises:
        SettingsError: a task's soft limit is not below its hard one, or a process could not find
            the task.
    """

    def __init__(
        self,
        host: Host,
        leases: Leases,
        *,
        max_threads: int,
        max_processes: int | None,
        calls_per_process: int | None,
        memory: MemoryLimits,
    ) -> None:
        tasks = [task for f in host.functions.values() if isinstance(task := f.coroutine, Task)]
        for task in tasks:
            options = task.task_options
            timeout_s = host.job_timeout_s if options.timeout is None else options.timeout
            check_limits(task.name, timeout_s=timeout_s, soft_timeout_s=options.soft_timeout)
        self.threads = Threads(host, most=max_threads, leases=leases)
        self.processes = Processes(
            host,
            tasks=[task for task in tasks if task.executor == "process"],
            most=max_processes or os.cpu_count() or 1,
            calls_per_process=calls_per_process,
            memory=memory,
        )

    async def start(self) -> None:
        """Get ready; raise `TaskError` when a module cannot be imported in another process."""
        await self.processes.start()

    async def run(
        self,
        attempt: Attempt,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        starts: Callable[[], float | None],
    ) -> Any:
        """Return what the attempt's function returns, and leave its writes in the attempt."""
        assert attempt.task is not None
        pool = self.processes if attempt.task.executor == "process" else self.threads
        return await pool.run(attempt, args, kwargs, starts)

    async def stop(self) -> None:
        """Let threads and processes end that have nothing to do. Idempotent."""
        self.threads.stop()
        await self.processes.stop()


__all__ = ["MAX_THREADS", "Executors"]
