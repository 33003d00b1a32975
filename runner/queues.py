"""The queues that one worker reads, in the order of their priority, none of them starved.

While a queue has jobs that are due, the queues after it wait; but for every ten jobs that
are claimed before it, each of them may claim one. So a queue that has work gets at least one
of eleven slots for each queue before it, however busy those are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runner.cycle import Cycles, Settling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runner.broker import Broker, Claimed, CycleReply, Settlement
    from runner.scripts import Executes

TURN = 10
"""After how many claims of the queues before it a queue has a turn."""


class Queues:
    """All cycles of a worker.

    Args:
        brokers: the queues, the most urgent first.
        redis: see `Cycles`.
        start: called with each claimed job.
        settled: called with what was passed in, and its status (see `Cycles`).
        replied: called with each reply, after its jobs have started.
        free: returns how many slots are free.
        capacity: how many jobs may run at once.
        lanes: how many cycles of one queue may overlap.
        worker: the name under which the worker registers as idle.
    """

    def __init__(
        self,
        brokers: Sequence[Broker],
        redis: Callable[[], Executes],
        *,
        start: Callable[[Claimed], None],
        settled: Callable[[Settlement, int | str | None], None],
        replied: Callable[[CycleReply], None],
        free: Callable[[], int],
        capacity: int,
        lanes: int,
        worker: str,
    ) -> None:
        self.worker = worker
        self._free = free
        self._start = start
        self._replied_to = replied
        self._lines = [
            Cycles(
                broker,
                redis,
                start=self._started if len(brokers) > 1 else start,
                settled=settled,
                replied=self._replied,
                room=self._room_for(rank),
                capacity=capacity,
                lanes=lanes,
                worker=worker,
            )
            for rank, broker in enumerate(brokers)
        ]
        self._rank = {broker.queue: rank for rank, broker in enumerate(brokers)}
        self._owed = [0] * len(self._lines)  # claims of the queues before, since the last turn

    @property
    def names(self) -> list[str]:
        """The names of the queues, the most urgent first."""
        return list(self._rank)

    async def once(self) -> None:
        """Claim once from each queue, in order; raise what that raises."""
        for line in self._lines:
            await line.once()

    def wake(self) -> bool:
        """Claim now, if that needs no order among several queues; tell whether it is so."""
        (line, *others) = self._lines
        if others or not line.claims:
            return False
        line.wake()
        return True

    def hand_in(self, settlement: Settlement) -> Settling:
        """Let the next cycle of the job's queue settle an attempt whose slot is free again."""
        line = self._lines[self._rank[settlement.claimed.queue]]
        future = line.hand_in(settlement)
        self._kick_others(line)
        return future

    def pass_in(self, settlement: Settlement) -> None:
        """Do the same where nobody waits for the status."""
        line = self._lines[self._rank[settlement.claimed.queue]]
        line.pass_in(settlement)
        self._kick_others(line)

    @property
    def lanes(self) -> list[str]:
        """Where Redis remembers what was settled last."""
        return [lane for line in self._lines for lane in line.lanes]

    @property
    def reserved(self) -> int:
        """How many slots are promised to claims that are under way."""
        return sum(line.reserved for line in self._lines)

    def open(self, *, claims: bool, idle_ms: int) -> None:
        """Take settlements (again).

        Args:
            claims: let cycles that settle also claim.
            idle_ms: how long an idle registration lasts; 0: the worker cannot be woken.
        """
        for line in self._lines:
            line.reopen()
            line.claims, line.idle_ms = claims, idle_ms

    def rest(self) -> None:
        """Claim no more; settlements go on."""
        for line in self._lines:
            line.claims, line.idle_ms = False, 0

    async def drain(self) -> None:
        """Wait until nothing is left to settle."""
        for line in self._lines:
            await line.drain()

    def cancel(self) -> None:
        """Give up what is still to be settled: the leases run out, and others take over."""
        for line in self._lines:
            line.cancel()

    def _room_for(self, rank: int) -> Callable[[], int]:
        return lambda: self._room(rank)

    def _room(self, rank: int) -> int:
        """Return how many jobs this queue may claim now."""
        room = self._free() - self.reserved
        if len(self._lines) == 1:
            return room
        if any(line.backlog for line in self._lines[:rank]):
            room = min(room, self._owed[rank] // TURN - self._lines[rank].reserved)
        turns_of_others = sum(
            self._owed[later] // TURN
            for later in range(rank + 1, len(self._lines))
            if self._lines[later].backlog
        )
        return room - turns_of_others

    def _started(self, claimed: Claimed) -> None:
        rank = self._rank[claimed.queue]
        self._owed[rank] = max(self._owed[rank] - TURN, 0)
        for later in range(rank + 1, len(self._lines)):
            self._owed[later] = min(self._owed[later] + 1, TURN * TURN)
        self._start(claimed)

    def _replied(self, reply: CycleReply) -> None:
        self._replied_to(reply)
        self._kick_others(None)

    def _kick_others(self, line: Cycles | None) -> None:
        """Let the other queues look at the slots that are free, those with a turn first."""
        if len(self._lines) == 1:
            return
        for other in reversed(self._lines):
            if other is not line and other.backlog:
                other.kick()
