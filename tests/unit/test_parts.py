"""Parts start in the order of their needs and stop in reverse, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import task
from runner.errors import PartFailed, SettingsError
from runner.parts import JOBS, Made, Part, Parts, in_order, name_of
from runner.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKER: Any = None


class Noted(Part):
    """Notes what it is told."""

    def __init__(self, name: str, *needs: str, notes: list[str] | None = None) -> None:
        vars(self).update(name=name, needs=needs)
        self.notes = [] if notes is None else notes

    async def start(self, _worker: Any) -> None:
        self.notes.append(f"start {self.name}")

    async def stop(self) -> None:
        self.notes.append(f"stop {self.name}")


class Broken(Noted):
    async def start(self, _worker: Any) -> None:
        raise OSError("no port is free")


class Stuck(Noted):
    start_s = 0.01
    stop_s = 0.01

    async def start(self, _worker: Any) -> None:
        await asyncio.Event().wait()


class NeverStops(Noted):
    stop_s = 0.01

    async def stop(self) -> None:
        await asyncio.Event().wait()


class BreaksAtTheEnd(Noted):
    async def stop(self) -> None:
        raise OSError("gone")


class Stubborn(Noted):
    """Hangs once more while it is given up, as what closes a pool behind a `finally`."""

    start_s = 0.01
    stop_s = 0.01
    released: asyncio.Event

    async def hang(self) -> None:
        self.released = asyncio.Event()
        try:
            await asyncio.Event().wait()
        finally:
            await self.released.wait()


class NeverEndsToStart(Stubborn):
    async def start(self, _worker: Any) -> None:
        await self.hang()


class NeverEndsToStop(Stubborn):
    async def stop(self) -> None:
        await self.hang()


async def cancelled_by_itself() -> None:
    """Wait for a task that was told to end: what that raises is no cancellation of the waiter."""
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()
    await task


class AwaitsWhatItCancels(Noted):
    async def stop(self) -> None:
        await cancelled_by_itself()


class StartsWithWhatIsCancelled(Noted):
    async def start(self, _worker: Any) -> None:
        await cancelled_by_itself()


def order(*parts: Part) -> list[str]:
    return [name_of(part) for part in in_order(parts)]


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ([Noted("a"), Noted("b")], ["a", "b"]),
        ([Noted("a", "b"), Noted("b")], ["b", "a"]),
        ([Noted("a", "c"), Noted("b"), Noted("c", "b")], ["b", "c", "a"]),
        # jobs comes behind all that do not need it
        ([Noted(JOBS), Noted("wake", JOBS), Noted("mine")], ["mine", JOBS, "wake"]),
        ([Noted(JOBS), Noted("x", "wake"), Noted("wake", JOBS)], [JOBS, "wake", "x"]),
    ],
)
def test_order_is_that_of_the_needs(parts: Sequence[Part], names: list[str]) -> None:
    assert order(*parts) == names


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_any_order_without_a_circle_can_be_started(seed: int, count: int) -> None:
    chance = random.Random(seed)
    parts = [
        Noted(str(number), *(str(other) for other in range(number) if chance.random() < 0.4))
        for number in range(count)
    ]
    chance.shuffle(parts)
    names = order(*parts)
    assert sorted(names) == sorted(map(name_of, parts))
    for part in parts:
        assert all(names.index(need) < names.index(part.name) for need in part.needs)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([Noted("a"), Noted("a")], "two parts are called 'a'"),
        ([Noted("cache"), Noted("b", "cach")], "needs 'cach', which is not there; did you mean"),
        ([Noted("a", "b"), Noted("b", "a"), Noted("c")], "need each other: 'a', 'b'"),
        ([Noted("a", "a")], "need each other: 'a'"),
    ],
)
def test_what_cannot_be_started_is_refused(parts: Sequence[Part], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        Parts(parts)


async def test_parts_stop_in_reverse_and_once() -> None:
    notes: list[str] = []
    parts = Parts([Noted("a", notes=notes), Noted("b", notes=notes), Noted("c", notes=notes)])
    await parts.start(WORKER)
    await parts.start(WORKER)  # what has started goes on
    await parts.stop(down_to="b")
    assert notes == ["start a", "start b", "start c", "stop c"]
    await parts.start(WORKER)
    await parts.stop()
    await parts.stop()
    assert notes[4:] == ["start c", "stop c", "stop b", "stop a"]


@pytest.mark.parametrize(
    ("broken", "error", "text"),
    [
        (Broken("broken"), OSError, "no port is free"),
        (Stuck("stuck"), PartFailed, "the part 'stuck' did not start within 0.01 s"),
        (StartsWithWhatIsCancelled("late"), PartFailed, "'late' waited for what was cancelled"),
    ],
)
async def test_start_that_fails_is_rolled_back(
    broken: Part, error: type[Exception], text: str
) -> None:
    notes: list[str] = []
    parts = Parts([Noted("a", notes=notes), Noted("b", notes=notes), broken])
    with pytest.raises(error, match=text) as raised:
        await parts.start(WORKER)
    assert notes == ["start a", "start b", "stop b", "stop a"]
    if error is OSError:
        assert raised.value.__notes__ == ["while the part 'broken' of the worker started"]


@pytest.mark.parametrize("turns", range(2, 10))
async def test_start_that_is_cancelled_is_rolled_back(turns: int) -> None:
    notes: list[str] = []
    waiting = Stuck("b", "a")
    vars(waiting)["start_s"] = None
    starting = asyncio.create_task(Parts([Noted("a", notes=notes), waiting]).start(WORKER))
    for _ in range(turns):  # the first is about to have started, or the second starts
        await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert notes == ["start a", "stop a"]


@pytest.mark.parametrize("kind", [NeverStops, BreaksAtTheEnd, AwaitsWhatItCancels])
async def test_part_that_does_not_stop_is_named_and_does_not_keep_the_others(
    kind: type[Noted], caplog: pytest.LogCaptureFixture
) -> None:
    notes: list[str] = []
    parts = Parts([Noted("a", notes=notes), kind("b", notes=notes), Noted("c", notes=notes)])
    await parts.start(WORKER)
    await parts.stop()
    assert notes[-2:] == ["stop c", "stop a"]
    assert "the part 'b' did not stop as it should" in caplog.text


def test_name_is_that_of_the_class_by_default() -> None:
    class Probe(Part):
        pass

    assert name_of(Probe()) == "Probe"


async def test_stop_that_is_cancelled_leaves_the_rest_to_the_next() -> None:
    notes: list[str] = []
    waiting = NeverStops("b")
    vars(waiting)["stop_s"] = None
    parts = Parts([Noted("a", notes=notes), waiting])
    await parts.start(WORKER)
    stopping = asyncio.create_task(parts.stop())
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert notes == ["start a"]
    await parts.stop()
    assert notes == ["start a", "stop a"]


@pytest.mark.parametrize(
    ("needs", "commands", "text"),
    [("jobs", (), "needs is a text"), ((), "refill", "commands is a text")],
)
def test_text_in_the_place_of_names_is_refused(needs: Any, commands: Any, text: str) -> None:
    part = Noted("a")
    vars(part).update(needs=needs, commands=commands)
    with pytest.raises(SettingsError, match=text):
        Parts([part])


async def test_part_of_the_worker_that_does_not_start_takes_back_what_it_began() -> None:
    notes: list[str] = []

    async def begin() -> None:
        notes.append("begun")
        await asyncio.Event().wait()

    made = Made("mine", start=begin, stop=lambda: notes.append("taken back"), start_s=0.01)
    with pytest.raises(PartFailed, match="the part 'mine' did not start within"):
        await Parts([made]).start(WORKER)
    assert notes == ["begun", "taken back"]


def test_each_step_of_the_worker_s_own_parts_has_a_time_limit() -> None:
    @task
    async def job(_ctx: Any) -> None: ...

    own = Worker([job])._own_parts()
    assert [name_of(part) for part in own if part.start_s is None] == []
    # Jobs have job_completion_wait and cancel_grace, each value that is provided 30 s of its own.
    assert [name_of(part) for part in own if part.stop_s is None] == ["provided", JOBS]


class StartsAfterAll(Noted):
    """Comes to its end, though too late."""

    start_s = 0.01

    async def start(self, _worker: Any) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        self.notes.append(f"start {self.name}")


async def test_part_that_starts_too_late_is_stopped() -> None:
    notes: list[str] = []
    with pytest.raises(PartFailed, match="the part 'late' did not start within"):
        await Parts([StartsAfterAll("late", notes=notes)]).start(WORKER)
    assert notes == ["start late", "stop late"]


async def test_part_that_heeds_no_cancellation_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("runner.parts.GIVE_UP_S", 0.01)
    notes: list[str] = []
    starts, stops = NeverEndsToStart("starts"), NeverEndsToStop("stops")
    parts = Parts([Noted("a", notes=notes), stops, starts])
    with pytest.raises(PartFailed, match="the part 'starts' did not start within"):
        await parts.start(WORKER)
    assert notes == ["start a", "stop a"]
    assert "the part 'stops' did not stop as it should" in caplog.text
    assert caplog.text.count("goes on though it was given up") == 2
    for stubborn in (starts, stops):
        stubborn.released.set()
