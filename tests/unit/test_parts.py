"""Parts start in the order of their needs and stop in reverse, whole or not at all."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import PartFailed, SettingsError
from runner.parts import JOBS, Part, Parts, in_order, name_of

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


async def test_start_that_is_cancelled_is_rolled_back() -> None:
    notes: list[str] = []
    waiting = Stuck("b", "a")
    vars(waiting)["start_s"] = None
    starting = asyncio.create_task(Parts([Noted("a", notes=notes), waiting]).start(WORKER))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert notes == ["start a", "stop a"]


@pytest.mark.parametrize("kind", [NeverStops, BreaksAtTheEnd])
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
