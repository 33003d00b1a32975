"""Places against a model: whatever happens to jobs, a call is let in when the model says so."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import runner
from runner import Client, Context, DuplicateJob, Unique, task
from runner.broker import Settlement
from tests.engine import Rig, done

if TYPE_CHECKING:
    from runner.broker import Claimed

pytestmark = [pytest.mark.timeout(120), pytest.mark.lasting_keys("runner:held:*")]


@task
async def job(_ctx: Context, number: int, call: int) -> None: ...


CALL = st.tuples(
    st.just("call"),
    st.integers(0, 1),
    st.sampled_from(["start", "end"]),
    st.sampled_from(["return", "refuse", "replace"]),
)
STEPS = st.lists(
    CALL
    | st.tuples(st.just("batch"), st.lists(CALL, min_size=1, max_size=4))
    | st.tuples(st.sampled_from(["claim", "finish", "retry", "give back", "lapse", "forget"])),
    min_size=12,
    max_size=40,
)


@dataclass
class Model:
    """What jobs there are, and which of them has which place."""

    state: dict[str, str] = field(default_factory=dict)
    place: dict[int, str] = field(default_factory=dict)

    def expected(self, number: int, until: str, second: str) -> tuple[str, str]:
        """Return what a call does: "new", "other", "refused" or "replaces"; and about which job."""
        other = self.place.get(number, "")
        state = self.state.get(other, "gone")
        if state == "gone" or (state == "runs" and until == "start"):
            return "new", ""
        if second == "return":
            return "other", other
        if second == "replace" and state == "waits":
            return "replaces", other
        return "refused", other

    def heard(self, number: int, expected: tuple[str, str], outcome: Any) -> None:
        what, other = expected
        if what == "refused":
            assert isinstance(outcome, DuplicateJob), (expected, outcome)
            assert outcome.job_id == other
            assert outcome.running == (self.state[other] == "runs")
            return
        assert isinstance(outcome, runner.Job), (expected, outcome)
        assert outcome.is_new == (what != "other")
        if what == "other":
            assert outcome.job_id == other
            return
        if what == "replaces":
            self.state[other] = "gone"
        self.state[outcome.job_id] = "waits"
        self.place[number] = outcome.job_id

    def there(self) -> set[str]:
        return {job_id for job_id, state in self.state.items() if state != "gone"}


@dataclass
class World:
    client: Client
    rig: Rig
    model: Model = field(default_factory=Model)
    claims: list[Claimed] = field(default_factory=list)

    async def calls(self, calls: list[Any]) -> None:
        """Make calls of one tick: they travel together, and are decided one after the other."""
        outcomes = await asyncio.gather(
            *(
                self.client.enqueue(
                    job.options(unique=Unique(by="number", until=until, second=second)),
                    number,
                    index,
                )
                for index, (_, number, until, second) in enumerate(calls)
            ),
            return_exceptions=True,
        )
        for (_, number, until, second), outcome in zip(calls, outcomes, strict=True):
            self.model.heard(number, self.model.expected(number, until, second), outcome)

    async def step(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("call", *_):
                await self.calls([step])
            case ("batch", calls):
                await self.calls(calls)
            case ("claim",):
                claimed = await self.rig.claim(1)
                self.claims += claimed
                for one in claimed:
                    self.model.state[one.job_id] = "runs"
            case (what,) if self.claims:
                await self.end(what, self.claims.pop(0))

    async def end(self, what: str, claimed: Claimed) -> None:
        if what == "lapse":  # the worker was killed; until somebody looks, its job runs
            await self.rig.lapse(claimed)
        elif what == "finish":
            assert await self.rig.settle(done(claimed, keep_ms=0)) == [1]
            self.model.state[claimed.job_id] = "gone"
        elif what == "forget":  # the payload expires while it runs
            await self.client.delete(runner.keys.job(claimed.job_id))
            assert await self.rig.settle(done(claimed, keep_ms=0)) == [1]
            self.model.state[claimed.job_id] = "gone"
        else:
            mode: Any = "again" if what == "retry" else "back"
            again = Settlement(claimed=claimed, mode=mode, extra="0")
            assert await self.rig.settle(again) == [1]
            self.model.state[claimed.job_id] = "waits"


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
async def test_calls_are_let_in_as_the_model_says(redis_url: str, steps: list[Any]) -> None:
    async with runner.connect(redis_url) as client:
        await client.flushdb()
        world = World(client, Rig(client))
        for step in steps:
            await world.step(step)
            assert await world.rig.ids() == world.model.there()
