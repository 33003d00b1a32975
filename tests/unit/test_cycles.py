"""When cycles claim: a wake that comes while a claim is under way is not forgotten."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from runner.broker import Broker, Claimed, CycleReply, Settlement
from runner.cycle import Cycles
from runner.queues import Queues

if TYPE_CHECKING:
    from collections.abc import Sequence


class Scripted:
    """A broker whose calls end when the test says so."""

    def __init__(self) -> None:
        self.queue = "q"
        self.limits: list[int] = []
        self.settled: list[int] = []  # how many settlements went with each call
        self._replies: list[asyncio.Future[CycleReply]] = []
        self._settling: list[int] = []

    async def cycle(
        self, _redis: Any, *, limit: int, settlements: Sequence[Any], **_: Any
    ) -> CycleReply:
        self.limits.append(limit)
        self.settled.append(len(settlements))
        reply: asyncio.Future[CycleReply] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        self._settling.append(len(settlements))
        return await reply

    def answer(self, *job_ids: str, more: bool = False) -> None:
        """Answer the oldest call."""
        claimed = [Claimed(job_id, "q", "t", 0.0, b"", 1, 0) for job_id in job_ids]
        statuses: list[int | str] = [1] * self._settling.pop(0)
        self._replies.pop(0).set_result(CycleReply("q", 0, None, more, statuses, claimed))


class Rig:
    def __init__(self, *, lanes: int = 1, room: int = 4) -> None:
        self.broker = Scripted()
        self.room = room
        self.started: list[str] = []
        self.cycles = Cycles(
            cast(Broker, self.broker),
            lambda: cast(Any, None),
            start=lambda claimed: self.started.append(claimed.job_id),
            settled=lambda *_: None,
            replied=lambda _: None,
            room=lambda: self.room - self.cycles.reserved - len(self.started),
            capacity=room,
            lanes=lanes,
            worker="w",
        )
        self.cycles.claims = True

    def end_all(self) -> None:
        """Let all jobs that were started end, at the same moment."""
        for _ in self.started:
            self.cycles.pass_in(cast(Settlement, SimpleNamespace(size=1)))
        self.started.clear()

    async def calls(self, count: int) -> None:
        """Wait until so many calls were sent, and see that no more follow."""
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(self.broker.limits) == count


async def test_wake_claims_at_once() -> None:
    rig = Rig()
    rig.cycles.wake()
    await rig.calls(1)
    rig.broker.answer("a")
    await rig.calls(1)
    assert rig.started == ["a"]


async def test_wake_while_the_only_lane_claims_is_followed_by_another_claim() -> None:
    rig = Rig()
    rig.cycles.wake()
    await rig.calls(1)
    rig.cycles.wake()  # for a job that the claim under way may have come too early for
    await rig.calls(1)
    rig.broker.answer()
    await rig.calls(2)
    rig.broker.answer("late")
    await rig.calls(2)
    assert rig.started == ["late"]


async def test_wake_without_a_free_slot_claims_when_one_is_free() -> None:
    rig = Rig(room=1)
    rig.cycles.wake()
    await rig.calls(1)
    rig.broker.answer("a")
    await rig.calls(1)
    rig.cycles.wake()
    await rig.calls(1)
    rig.started.clear()  # the job has ended
    rig.cycles.kick()
    await rig.calls(2)
    rig.broker.answer()


@pytest.mark.parametrize("wakes", [1, 5])
async def test_wakes_of_one_moment_are_one_claim_a_lane(wakes: int) -> None:
    rig = Rig(lanes=2)
    for _ in range(wakes):
        rig.cycles.wake()
    await rig.calls(min(wakes, 2))
    for _ in range(min(wakes, 2)):
        rig.broker.answer()
    await rig.calls(min(wakes, 2) + (wakes > 2))
    if wakes > 2:
        rig.broker.answer()


async def test_wake_of_a_worker_that_does_not_claim_sends_nothing() -> None:
    rig = Rig()
    rig.cycles.claims = False
    rig.cycles.wake()
    await rig.calls(0)


async def test_lanes_share_what_ends_at_one_moment_while_more_is_due() -> None:
    rig = Rig(lanes=2, room=8)
    rig.cycles.wake()
    await rig.calls(1)
    rig.broker.answer("a", "b", "c", "d", more=True)
    await rig.calls(2)
    rig.broker.answer("e", "f", "g", "h", more=True)
    await rig.calls(2)
    rig.end_all()
    await rig.calls(4)
    # One that took all eight would leave the other nothing to bring: Redis would have nothing to
    # do while their jobs run, and the worker nothing until both are back.
    assert rig.broker.settled[2:] == [4, 4]
    assert rig.broker.limits[2:] == [4, 4]
    rig.broker.answer()
    rig.broker.answer()
    await rig.calls(4)


async def test_what_ends_at_one_moment_travels_together_when_nothing_is_due() -> None:
    rig = Rig(lanes=2, room=8)
    rig.cycles.wake()
    await rig.calls(1)
    rig.broker.answer("a", "b", "c", "d")
    await rig.calls(1)
    rig.started += ("e", "f")
    rig.end_all()
    await rig.calls(2)
    assert rig.broker.settled[1:] == [6]
    rig.broker.answer()
    await rig.calls(2)


async def test_poll_leaves_the_slots_to_the_claim_that_is_under_way() -> None:
    broker = Scripted()
    queues = Queues(
        [cast(Broker, broker)],
        lambda: cast(Any, None),
        start=lambda _: None,
        settled=lambda *_: None,
        replied=lambda _: None,
        free=lambda: 4,
        capacity=4,
        lanes=2,
        worker="w",
    )
    queues.open(claims=True, idle_ms=0)
    queues.wake()
    await asyncio.sleep(0)
    assert broker.limits == [2]
    await queues.once()
    assert broker.limits == [2], "its reply tells what a poll would"
    broker.answer()
    await queues.drain()
    poll = asyncio.create_task(queues.once())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(broker.limits) == 2
    broker.answer()
    await poll
