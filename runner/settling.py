"""Settle attempts that have ended, and tell subscribers what Redis said to it."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from typing import TYPE_CHECKING

from runner.execution import Ending, report
from runner.types import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.broker import Settlement
    from runner.cycle import Settling
    from runner.execution import Attempt, Host
    from runner.leases import Leases
    from runner.queues import Queues

logger = logging.getLogger("arq.worker")

SETTLE_AGAIN_S = 1.0

PATIENCE_S = 10.0
"""How long a worker that closes tries to settle what Redis refuses."""


class Settler:
    """Hands the ends of one worker's attempts to its cycles.

    Args:
        host: the worker; its `job_counter` goes down with each attempt that is released.
        leases: a lease is held until its attempt is settled.
        over: called with each settlement that is through.

    Attributes:
        cycles: where settlements go; set before the first.
    """

    cycles: Queues

    def __init__(self, host: Host, leases: Leases, *, over: Callable[[], None]) -> None:
        self._host = host
        self._leases = leases
        self._over = over
        self._again: set[asyncio.Task[None]] = set()
        self._until = math.inf  # in the loop's time

    def open(self) -> None:
        """Try without end to settle what Redis refuses."""
        self._until = math.inf

    def hurry(self) -> None:
        """Leave what Redis goes on to refuse to its lease, for the worker closes."""
        self._until = asyncio.get_running_loop().time() + PATIENCE_S
        self.cycles.give_up_at(self._until)

    def release(self, attempt: Attempt) -> None:
        """Free the job's slot, once."""
        if not attempt.released:
            attempt.released = True
            self._host.job_counter -= 1

    async def settle(self, settlement: Settlement, attempt: Attempt, ending: Ending) -> int:
        """Settle an attempt; its slot is free from now on, its lease goes on until then.

        Returns:
            1, or 0 when somebody else has the job by now.
        """
        self.release(attempt)
        events = self._host.events
        if events.watched:
            if events.on_end is not None:
                events.on_end(attempt, ending)
            if events.wanted:
                settlement.end = (attempt, ending)
        status = await self._hand_in(settlement)
        while isinstance(status, str):
            _log_refused(settlement, status)
            if self._is_too_late():
                _log_left(settlement)
                return 0
            await self._wait_to_settle(settlement, attempt, status)
            status = await self._hand_in(settlement)
        if status == 0:
            self._lost(settlement)
        return status

    def pass_in(self, settlement: Settlement, attempt: Attempt, ending: Ending) -> None:
        """Do the same where nothing follows, so that nobody waits for it."""
        self.release(attempt)
        attempt.passed_in = True
        events = self._host.events
        if events.watched:
            if events.on_end is not None:
                events.on_end(attempt, ending)
            if events.wanted:
                settlement.end = (attempt, ending)
        self.cycles.pass_in(settlement)

    def settled(self, settlement: Settlement, status: int | str | None) -> None:
        """Hear what became of a settlement that was passed in; None: it was given up."""
        claimed = settlement.claimed
        if isinstance(status, str):
            _log_refused(settlement, status)
        if isinstance(status, str) and self._is_too_late():
            _log_left(settlement)
            status = None
        if isinstance(status, str):
            again = asyncio.get_running_loop().create_task(
                self._settle_again(settlement),
                name=f"runner settles {claimed.job_id} again",
            )
            self._again.add(again)
            again.add_done_callback(self._again.discard)
            return
        self._leases.remove(claimed.token, claimed.job_id)
        if status == 0:
            self._lost(settlement)
        if settlement.end is not None and status is not None:
            self._tell(settlement, status)
        self._over()

    def report(self, attempt: Attempt, ending: Ending, settled: Settlement | None) -> None:
        """Tell subscribers how an attempt ended. The only place that does."""
        if self._host.events.on_end is not None:
            self._host.events.on_end(attempt, ending)
        self._emit(attempt, ending, settled)

    def _emit(self, attempt: Attempt, ending: Ending, settled: Settlement | None) -> None:
        events = self._host.events
        if events.wanted:
            events.emit(report.ended(self._host, attempt, ending, settled))

    async def drain(self) -> bool:
        """Wait until all is settled that was handed in; tell whether something came meanwhile."""
        await asyncio.gather(*self._again)
        await self.cycles.drain()
        return bool(self._again)

    def _hand_in(self, settlement: Settlement) -> Settling:
        settling = self.cycles.hand_in(settlement)
        if settlement.end is not None:
            # By the future, and not behind an await: whoever awaits it may be cancelled.
            settling.add_done_callback(functools.partial(self._tell_status, settlement))
        return settling

    def _lost(self, settlement: Settlement) -> None:
        claimed = settlement.claimed
        logger.warning(
            "job %s: the lease was lost before the end was settled; it runs elsewhere",
            claimed.job_id,
        )
        for watcher in self._host.events.watchers:
            watcher.lost(claimed.queue, claimed.job_id)

    def _tell_status(self, settlement: Settlement, settling: asyncio.Future[int | str]) -> None:
        """Tell whoever listens how Redis took a settlement, once it did."""
        if settling.cancelled() or isinstance(status := settling.result(), str):
            return  # given up: the job's next claim tells; or refused: it is handed in again
        self._tell(settlement, status)

    def _tell(self, settlement: Settlement, status: int) -> None:
        attempt, ending = settlement.end
        if status:
            self._emit(attempt, ending, settlement)
        else:
            self._emit(attempt, Ending(Outcome.LOST_LEASE, ending.result), None)

    async def _wait_to_settle(self, settlement: Settlement, attempt: Attempt, status: str) -> None:
        try:
            await asyncio.sleep(SETTLE_AGAIN_S)
        except asyncio.CancelledError:
            attempt.passed_in = True  # the end is to be settled though nobody waits for it any more
            self.settled(settlement, status)
            raise

    def _is_too_late(self) -> bool:
        return asyncio.get_running_loop().time() >= self._until

    async def _settle_again(self, settlement: Settlement) -> None:
        await asyncio.sleep(SETTLE_AGAIN_S)
        self.cycles.pass_in(settlement)


def _log_refused(settlement: Settlement, status: str) -> None:
    logger.error("Redis refused the end of job %s: %s", settlement.claimed.job_id, status)


def _log_left(settlement: Settlement) -> None:
    logger.error(
        "the worker closes: job %s is left to its lease, and runs again",
        settlement.claimed.job_id,
    )
