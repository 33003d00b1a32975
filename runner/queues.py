"""The queues that one worker reads: in order or by weight, none of them starved.

**In order.** While a queue has jobs that are due, the queues after it wait; but for every ten
jobs that are claimed before it, each of them may claim one. So a queue that has work gets at
least one of eleven slots for each queue before it, however busy those are.

**By weight.** The slots that become free are dealt out so that each queue's claims, divided by
its weight, stay level. So of any N jobs in a row a queue that has work all the while gets at
least N times its part of the weights, less one filling of the worker's slots. What a queue does
not use goes to the others, and is not saved up for it.

A busy worker looks at a queue that was empty twenty times a second, beside its other work.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from runner.cycle import Cycles, Settling
from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runner.broker import Broker, Claimed, CycleReply, Settlement
    from runner.scripts import Executes

TURN = 10
"""After how many claims of the queues before it a queue has a turn."""

MOST_WEIGHT = 1_000_000

LOOK_S = 0.05
"""How often a busy worker looks at a queue that was empty: nobody wakes it."""


def named(
    queue_name: str, queues: Sequence[str] | Mapping[str, int], *, default: str
) -> tuple[list[str], list[int] | None]:
    """Return the names of a worker's queues, the most urgent first, and their weights if any.

    Args:
        queue_name: the worker's own queue, the first unless `queues` says where it stands.
        queues: names in order, or weights by name.
        default: the name that a worker's queue has when nobody gave it one.

    Raises:
        SettingsError: a weight makes no sense, or there is none for `queue_name`.
    """
    if not isinstance(queues, Mapping):
        if queue_name in queues:
            return list(dict.fromkeys(queues)), None
        return list(dict.fromkeys((queue_name, *queues))), None
    for name, weight in queues.items():
        if type(weight) is not int or not 1 <= weight <= MOST_WEIGHT:
            raise SettingsError(
                f"queue {name!r} has the weight {weight!r}, but it must be a whole number "
                f"from 1 to {MOST_WEIGHT:,}",
            )
    if queues and queue_name not in queues:
        hint = ", which is arq's default" if queue_name == default else ""
        raise SettingsError(
            f"queues gives weights, but none to queue_name {queue_name!r}{hint}: give it one, or "
            f"set queue_name to one of {', '.join(map(repr, queues))}",
        )
    return (list(queues) or [queue_name]), list(queues.values()) or None


class Policy(Protocol):
    """Decides which queue may claim how many jobs."""

    def opened(self, lines: Sequence[Cycles]) -> None:
        """Hear that the lines are about to claim."""
        ...

    def room(self, rank: int, room: int, lines: Sequence[Cycles]) -> int:
        """Return how many of the slots that are free one queue may fill now."""
        ...

    def started(self, rank: int) -> None:
        """Hear that a job of a queue was claimed."""
        ...


class InOrder:
    """The queues before first; each of the others has its turns."""

    def __init__(self, count: int) -> None:
        self._owed = [0] * count  # claims of the queues before, since the last turn

    def opened(self, lines: Sequence[Cycles]) -> None:
        """Hear that the lines are about to claim."""

    def room(self, rank: int, room: int, lines: Sequence[Cycles]) -> int:
        """Return how many of the slots that are free one queue may fill now."""
        if any(line.backlog for line in lines[:rank]):
            room = min(room, self._owed[rank] // TURN - lines[rank].reserved)
        turns_of_others = sum(
            self._owed[later] // TURN
            for later in range(rank + 1, len(lines))
            if lines[later].backlog
        )
        return room - turns_of_others

    def started(self, rank: int) -> None:
        """Hear that a job of a queue was claimed."""
        self._owed[rank] = max(self._owed[rank] - TURN, 0)
        for later in range(rank + 1, len(self._owed)):
            self._owed[later] = min(self._owed[later] + 1, TURN * TURN)


class ByWeight:
    """Slots in proportion to weights, among the queues that have work.

    Each queue has a level: its claims, divided by its weight. Who is lowest is next. A queue
    that had no work takes part again at the level of the lowest of those that had (Goyal, Vin
    and Cheng, "Start-time Fair Queueing", SIGCOMM 1996).
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = list(weights)
        # Levels are whole numbers, so that whoever asks first, the others find the same deal.
        self._unit = math.lcm(*weights)
        self._steps = [self._unit // weight for weight in weights]
        self._levels = [0] * len(weights)
        self._had_work: set[int] = set()
        self._served = 0  # the highest level at which a job was claimed

    def opened(self, lines: Sequence[Cycles]) -> None:
        """Take every queue for one that has work, until it was asked."""
        for line in lines:
            line.backlog = True

    def room(self, rank: int, room: int, lines: Sequence[Cycles]) -> int:
        """Return how many of the slots that are free one queue may fill now."""
        if room < 1:
            return room
        has_work = {other for other, line in enumerate(lines) if line.backlog}
        self._let_in(has_work, rank)
        levels = {
            other: self._levels[other] + lines[other].reserved * self._steps[other]
            for other in has_work | {rank}
        }
        return room if len(levels) == 1 else self._deal(room, levels)[rank]

    def started(self, rank: int) -> None:
        """Hear that a job of a queue was claimed."""
        self._served = max(self._served, self._levels[rank])
        self._levels[rank] += self._steps[rank]

    def _let_in(self, has_work: set[int], asking: int) -> None:
        """Put those who had no work on the level of the others: nothing was saved up."""
        stayed = has_work & self._had_work
        lowest = min((self._levels[rank] for rank in stayed), default=self._served)
        for rank in (has_work | {asking}) - stayed:
            self._levels[rank] = max(self._levels[rank], lowest)
        self._had_work = has_work

    def _deal(self, room: int, levels: Mapping[int, int]) -> dict[int, int]:
        """Deal slots out one by one, each to the lowest level; the deals of all add up."""
        weights = self._weights
        dealt = dict.fromkeys(levels, 0)
        below = sorted(levels, key=levels.__getitem__)
        while True:  # as water fills a ground that is not even: who stands out gets none
            total = sum(weights[rank] for rank in below)
            filled = room * self._unit + sum(weights[rank] * levels[rank] for rank in below)
            if levels[below[-1]] * total <= filled:
                break
            below.pop()
        for rank in below:
            depth = filled - levels[rank] * total
            dealt[rank] = depth * weights[rank] // (total * self._unit)
        for _ in range(room - sum(dealt.values())):
            rank = min(
                levels,
                key=lambda rank: (levels[rank] + (dealt[rank] + 1) * self._steps[rank], rank),
            )
            dealt[rank] += 1
        return dealt


class Queues:
    """All cycles of a worker.

    Args:
        brokers: the queues, the most urgent first.
        redis: see `Cycles`.
        weights: a number for each, where they are read by weight; None: in order.
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
        weights: Sequence[int] | None = None,
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
        self._look_at = [0.0] * len(self._lines)  # by the loop's time
        self._rank = {broker.queue: rank for rank, broker in enumerate(brokers)}
        self._freed_due = False
        self._policy: Policy = InOrder(len(brokers)) if weights is None else ByWeight(weights)

    @property
    def names(self) -> list[str]:
        """The names of the queues, the most urgent first."""
        return list(self._rank)

    async def once(self) -> None:
        """Claim once from each queue, in order; raise what that raises.

        Not where a claim is under way, whose reply tells the same: it would take the slots
        that the next cycle is to fill.
        """
        for line in self._lines:
            if not line.reserved:
                await line.once()

    def wake(self) -> bool:
        """Claim now, if that needs no order among several queues; tell whether it is so."""
        (line, *others) = self._lines
        if others or not line.claims:
            return False
        line.wake()
        return True

    def resize(self, capacity: int) -> None:
        """Hear that so many jobs may run at once from now on."""
        for line in self._lines:
            line.resize(capacity)

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
        if len(self._lines) > 1:
            self._policy.opened(self._lines)

    def rest(self) -> None:
        """Claim no more; settlements go on."""
        for line in self._lines:
            line.claims, line.idle_ms = False, 0

    async def drain(self) -> None:
        """Wait until nothing is left to settle."""
        for line in self._lines:
            await line.drain()

    def give_up_at(self, until: float) -> None:
        """Leave what Redis still refuses then to its lease; by the loop's time."""
        for line in self._lines:
            line.give_up_at(until)

    def cancel(self) -> None:
        """Give up what is still to be settled: the leases run out, and others take over."""
        for line in self._lines:
            line.cancel()

    def freed(self, claim: Callable[[], object]) -> None:
        """Claim when the loop turns: slots became free without a settlement, which would."""
        if not self._freed_due:
            self._freed_due = True
            asyncio.get_running_loop().call_soon(self._after_freed, claim)

    def _after_freed(self, claim: Callable[[], object]) -> None:
        self._freed_due = False
        claim()

    def _room_for(self, rank: int) -> Callable[[], int]:
        return lambda: self._room(rank)

    def _room(self, rank: int) -> int:
        """Return how many jobs this queue may claim now."""
        room = self._free() - self.reserved
        if len(self._lines) == 1:
            return room
        return self._policy.room(rank, room, self._lines)

    def _started(self, claimed: Claimed) -> None:
        self._policy.started(self._rank[claimed.queue])
        self._start(claimed)

    def _replied(self, reply: CycleReply) -> None:
        self._replied_to(reply)
        if len(self._lines) > 1:
            now = asyncio.get_running_loop().time()
            self._look_at[self._rank[reply.queue]] = now + LOOK_S
            for line in reversed(self._lines):
                if line.backlog:
                    line.kick()

    def _kick_others(self, line: Cycles) -> None:
        """Let the other queues look at the slots that are free, those with a turn first."""
        if len(self._lines) == 1:
            return
        now = asyncio.get_running_loop().time()
        for rank in range(len(self._lines) - 1, -1, -1):
            other = self._lines[rank]
            if other is line:
                continue
            if other.backlog:
                other.kick()
            elif now >= self._look_at[rank]:
                self._look_at[rank] = now + LOOK_S
                other.look()
