"""A worker whose process is replaced by a new one, by its supervisor or by whoever starts it."""

from __future__ import annotations

import logging
import math
import signal
from typing import TYPE_CHECKING

from runner import broker
from runner.connections import TROUBLE
from runner.events import WorkerRecycled
from runner.execution import now_ms
from runner.letters import encode_error
from runner.signals import Signalled
from runner.types import AttemptError
from runner.watch import vitals

if TYPE_CHECKING:
    import asyncio

    from runner.bus import Bus
    from runner.execution import Attempt
    from runner.turns import Turns
    from runner.watch import Supervises, Watch
    from runner.watch.vitals import Vitals

logger = logging.getLogger("arq.worker")

HARD_GRACE_S = 2.0
"""How long jobs have to end, at most, when the hard limit of memory is reached."""


class Renewed(Signalled):
    """What a worker does when a limit of its process is reached.

    Attributes:
        place: the number of this worker in its fleet, 0 for none.
        recycled: which limit was reached, in words; "" for none.
    """

    name: str
    events: Bus
    watch: Watch
    history: bool
    place: int = 0
    recycled: str = ""
    _cancel_grace_s: float
    _gives_back: bool = False
    _turns: Turns
    _giving_back: asyncio.Task[None]

    def join(self, supervisor: Supervises, place: int) -> None:
        """Tell a supervisor how this worker is, and let it decide when to be replaced.

        Args:
            supervisor: the way to it.
            place: the number of this worker in its fleet, from 1; one that takes its place has
                the same, while both are there.
        """
        self.place = place
        self.watch.supervisor = supervisor

    @property
    def cancel_grace_s(self) -> float:
        """How many seconds a job has to end once it is cancelled; fewer beyond the hard limit."""
        most = HARD_GRACE_S if self._gives_back else math.inf
        return min(self._cancel_grace_s, most)

    @property
    def patience_s(self) -> float:
        """How long jobs may take to end after SIGTERM, those included that do not heed it."""
        return float(self._job_completion_wait) + self.cancel_grace_s

    def running(self) -> list[Attempt]:
        """Return the attempts that wait for something; safe to call from any thread."""
        return self._turns.attempts()

    def vitals(self) -> Vitals:
        """Look at what this process holds."""
        return vitals.read()

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
        self._gives_back = True
        self._giving_back = self.loop.create_task(self._give_back(why), name="runner gives back")

    async def _give_back(self, why: str) -> None:
        # One of them is to blame, and nobody knows which: who is there each time ends as a dead
        # letter, as if the kernel had killed the process.
        try:
            running = [(one.claimed, self._crash_of(one, why)) for one in self.running()]
            await broker.count_crashes(self.pool, running)
        except TROUBLE as exc:
            logger.warning("could not count a crash of what runs: %s", exc)
        self.handle_sig(signal.SIGUSR1)

    def _crash_of(self, attempt: Attempt, why: str) -> bytes:
        """Return what the history of a job says of its end here."""
        if not self.history:
            return b""
        return encode_error(
            AttemptError(
                attempt=attempt.number,
                outcome="crashed",
                error=f"its process gave it up: {why}",
                started_ms=attempt.started_ms,
                ended_ms=now_ms(),
                worker=self.name,
                enqueued_ms=attempt.record.enqueued_ms,
            )
        )

    def _tell_recycled(self, why: str, *, at_once: bool) -> None:
        self.recycled = why
        if self.events.wanted:
            self.events.emit(
                WorkerRecycled(worker=self.name, at_ms=now_ms(), why=why, at_once=at_once)
            )
