"""A worker whose process is replaced by a new one, by its supervisor or by whoever starts it."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING

from runner import broker
from runner.connections import TROUBLE
from runner.events import WorkerRecycled
from runner.execution import now_ms
from runner.signals import Signalled

if TYPE_CHECKING:
    import asyncio

    from runner.events import Bus
    from runner.execution import Attempt
    from runner.turns import Turns
    from runner.watch import Supervises, Watch

logger = logging.getLogger("arq.worker")


class Renewed(Signalled):
    """What a worker does when a limit of its process is reached.

    Attributes:
        recycled: which limit was reached, in words; "" for none.
    """

    name: str
    events: Bus
    watch: Watch
    cancel_grace_s: float
    recycled: str = ""
    _turns: Turns
    _giving_back: asyncio.Task[None]

    def join(self, supervisor: Supervises) -> None:
        """Tell a supervisor how this worker is, and let it decide when to be replaced."""
        self.watch.supervisor = supervisor

    @property
    def patience_s(self) -> float:
        """How long jobs may take to end after SIGTERM, those included that do not heed it."""
        return float(self._job_completion_wait) + self.cancel_grace_s

    def running(self) -> list[Attempt]:
        """Return the attempts that wait for something; safe to call from any thread."""
        return self._turns.attempts()

    def recycle(self, why: str) -> None:
        """Ask the supervisor for a new process; without one, finish what runs and end."""
        self._tell_recycled(why, at_once=False)
        if self.watch.supervisor is None:
            logger.warning("the worker finishes what runs, and ends: %s", why)
            self.drain()
        else:
            self.watch.supervisor.say("recycle", why=why)

    def give_back(self, why: str) -> None:
        """Hand back what runs, each job with a crash more, and end now."""
        self._tell_recycled(why, at_once=True)
        logger.error("the worker hands back what runs, and ends: %s", why)
        if self.watch.supervisor is not None:
            self.watch.supervisor.say("leaving", why=why)
        self._giving_back = self.loop.create_task(self._give_back(), name="runner gives back")

    async def _give_back(self) -> None:
        # One of them is to blame, and nobody knows which: who is there each time ends as a dead
        # letter, as if the kernel had killed the process.
        try:
            await broker.count_crashes(self.pool, [one.claimed for one in self.running()])
        except TROUBLE as exc:
            logger.warning("could not count a crash of what runs: %s", exc)
        self.handle_sig(signal.SIGUSR1)

    def _tell_recycled(self, why: str, *, at_once: bool) -> None:
        self.recycled = why
        if self.events.wanted:
            self.events.emit(
                WorkerRecycled(worker=self.name, at_ms=now_ms(), why=why, at_once=at_once)
            )
