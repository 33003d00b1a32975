"""arq's Worker, told to stop by a signal: before its loop runs, while it runs, and once more."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

import arq.worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from signal import Signals


class Signalled(arq.worker.Worker):
    """What arq's Worker does on SIGTERM and SIGINT, and more.

    A signal that comes before the loop runs is not forgotten; a second one does not wait for what
    the first began.

    Attributes:
        stopping: running jobs are handed back.
        draining: nothing is claimed any more, what runs goes on to its end, and the loop ends then.
        is_quiet: nothing is claimed until it is told to go on.
    """

    stopping: bool
    draining: bool
    is_quiet: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._early_handlers: dict[Signals, Callable[[Signals], None]] = {}
        self._told_to_stop = False
        self.stopping = self.draining = self.is_quiet = False
        super().__init__(*args, **kwargs)

    def give_up(self) -> None:
        """Leave what cannot be settled now to its lease."""
        raise NotImplementedError

    def jobs_cancelled(self) -> None:
        """See to it that all jobs end, now that they were cancelled."""
        raise NotImplementedError

    def _add_signal_handler(self, signum: Signals, handler: Callable[[Signals], None]) -> None:
        """Take a signal also before the loop runs: uvloop forgets what comes until then."""
        if self.loop.is_running():
            super()._add_signal_handler(signum, handler)
        else:
            self._early_handlers[signum] = handler
            signal.signal(signum, self._stop_before_the_start)

    def _stop_before_the_start(self, *_: object) -> None:
        self._told_to_stop = True

    def nudge(self) -> None:
        """Let the loop look at what has changed."""
        raise NotImplementedError

    def drain(self) -> None:
        """Claim no more, let running jobs finish however long they take, and end the loop."""
        self.draining = True
        self.allow_pick_jobs = False
        self.nudge()

    def quiet(self) -> None:
        """Claim no more, until `resume`; what runs goes on, what has not begun is handed back."""
        if self.allow_pick_jobs:
            self.is_quiet = True
            self.allow_pick_jobs = False
            self.nudge()

    def resume(self) -> None:
        """Claim again after `quiet`; a worker that ends does not."""
        if self.is_quiet and not (self.stopping or self.draining):
            self.allow_pick_jobs = True
            self.nudge()
        self.is_quiet = False

    def take_over_signals(self) -> None:
        """Let the loop handle signals from now on."""
        handlers, self._early_handlers = self._early_handlers, {}
        for signum, handler in handlers.items():
            super()._add_signal_handler(signum, handler)

    def handle_sig(self, signum: Signals) -> None:
        """Stop now: running jobs are handed back at once."""
        if self.stopping and signum is not signal.SIGUSR1:
            # The second signal: what cannot be settled now is left to its lease.
            self.give_up()
        if signum is not signal.SIGUSR1 and self.main_task is None:
            self._told_to_stop = True  # before the start, on a loop that runs already
        self.stopping = True
        super().handle_sig(signum)
        self.jobs_cancelled()

    def handle_sig_wait_for_completion(self, signum: Signals) -> None:
        """Let running jobs finish for `job_completion_wait`; stop now when told again."""
        if self.allow_pick_jobs or self.draining or self.is_quiet:
            self.draining = self.is_quiet = False
            super().handle_sig_wait_for_completion(signum)
        else:
            self.handle_sig(signum)

    async def _wait_for_tasks_to_complete(self, signum: Signals) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._job_completion_wait):
                while self.tasks:
                    await asyncio.wait(list(self.tasks.values()))
        self.stopping = True
        self._job_completion_wait, wait = 0, self._job_completion_wait
        try:
            await super()._wait_for_tasks_to_complete(signum)
            self.jobs_cancelled()
        finally:
            self._job_completion_wait = wait
