"""When cycles claim: a wake that comes while a claim is under way is not forgotten."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from runner.broker import Broker, Claimed, CycleReply
from runner.cycle import Cycles


class Scripted:
    """A broker whose calls end when the test says so."""

    def __init__(self) -> None:
        self.limits: list[int] = []
        self._replies: list[asyncio.Future[CycleReply]] = []

    async def cycle(self, _redis: Any, *, limit: int, **_: Any) -> CycleReply:
        self.limits.append(limit)
        reply: asyncio.Future[CycleReply] = asyncio.get_running_loop().create_future()
        self._replies.append(reply)
        return await reply

    def answer(self, *job_ids: str, more: bool = False) -> None:
        """Answer the oldest call."""
        claimed = [Claimed(job_id, "q", "t", 0.0, b"", 1, 0) for job_id in job_ids]
        self._replies.pop(0).set_result(CycleReply("q", 0, None, more, [], claimed))


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
