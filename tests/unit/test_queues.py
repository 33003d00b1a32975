"""How the slots of a worker are dealt out among its queues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import Worker, WorkerSettings, keys, task
from runner.errors import SettingsError
from runner.queues import TURN, ByWeight, InOrder, Policy, named

DEFAULT = keys.DEFAULT_QUEUE


@task
async def idle(_ctx: Any) -> None: ...


@dataclass
class Line:
    """What a policy sees of a queue."""

    backlog: bool = True
    reserved: int = 0


def lines_of(*backlogs: bool) -> list[Any]:
    return [Line(backlog) for backlog in backlogs]


def claim(policy: Policy, lines: list[Any], room: int, order: Any = None) -> list[int]:
    """Let each queue claim what it may of so many slots; return how many each one took."""
    taken = [0] * len(lines)
    for rank in order or range(len(lines)):
        if not lines[rank].backlog:
            continue
        may = max(policy.room(rank, room - sum(taken), lines), 0)
        taken[rank] += may
        for _ in range(may):
            policy.started(rank)
    return taken


WEIGHTS = st.lists(st.integers(1, 20), min_size=2, max_size=5)


@given(
    WEIGHTS,
    st.lists(st.integers(1, 60), min_size=1, max_size=60),
    st.randoms(use_true_random=False),
)
def test_busy_queues_share_by_weight_whoever_asks_first(
    weights: list[int], rooms: list[int], chance: Any
) -> None:
    policy, lines = ByWeight(weights), lines_of(*[True] * len(weights))
    claims = [0] * len(weights)
    for room in rooms:
        order = list(range(len(weights)))
        chance.shuffle(order)
        taken = claim(policy, lines, room, order)
        assert sum(taken) == room, "no slot is left free"
        claims = [before + now for before, now in zip(claims, taken, strict=True)]
        total = sum(claims)
        for weight, count in zip(weights, claims, strict=True):
            assert abs(count - total * weight / sum(weights)) < len(weights)


@given(WEIGHTS, st.integers(0, 1000))
def test_what_a_queue_does_not_use_goes_to_the_others(weights: list[int], room: int) -> None:
    policy, lines = ByWeight(weights), lines_of(*[True] * len(weights))
    lines[0].backlog = False
    taken = claim(policy, lines, room)
    assert taken[0] == 0
    assert sum(taken) == room


def test_idle_time_is_not_saved_up() -> None:
    policy, lines = ByWeight([1, 1]), lines_of(True, False)
    assert claim(policy, lines, 10_000) == [10_000, 0]
    lines[1].backlog = True
    assert claim(policy, lines, 100) == [50, 50]
    lines[0].backlog = False
    claim(policy, lines, 500)
    lines[0].backlog = True
    assert claim(policy, lines, 100) == [50, 50]


def test_slots_that_are_promised_count() -> None:
    policy, lines = ByWeight([1, 1]), lines_of(True, True)
    lines[0].reserved = 10
    assert policy.room(0, 10, lines) == 0
    assert policy.room(1, 10, lines) == 10


def test_queue_that_asks_takes_part_before_it_is_known_to_have_work() -> None:
    policy, lines = ByWeight([3, 1]), lines_of(True, False)
    assert policy.room(1, 8, lines) == 2


def test_no_slot_is_no_slot() -> None:
    policy, lines = ByWeight([3, 1]), lines_of(True, True)
    assert policy.room(0, 0, lines) == 0
    assert policy.room(0, -3, lines) == -3


def test_in_order_each_later_queue_has_one_turn_in_eleven() -> None:
    policy, lines = InOrder(3), lines_of(True, True, True)
    taken = [0, 0, 0]
    for _ in range(1_100):
        # The urgent one asks last, as in a worker: turns come first.
        for rank in (2, 1, 0):
            if policy.room(rank, 1, lines) > 0:
                policy.started(rank)
                taken[rank] += 1
                break
    assert sum(taken) == 1_100
    assert taken[1] >= 1_100 // (TURN + 1) - TURN
    assert taken[2] >= 1_100 // (TURN + 1) - TURN
    assert taken[0] >= 1_100 * (1 - 2 / TURN)


@pytest.mark.parametrize(
    ("queue_name", "queues", "names", "weights"),
    [
        (DEFAULT, (), [DEFAULT], None),
        (DEFAULT, ("a", "b"), [DEFAULT, "a", "b"], None),
        ("b", ("a", "b", "c"), ["a", "b", "c"], None),
        (DEFAULT, ("a", "a"), [DEFAULT, "a"], None),
        ("b", {"a": 6, "b": 3, "c": 1}, ["a", "b", "c"], [6, 3, 1]),
        (DEFAULT, {}, [DEFAULT], None),
    ],
)
def test_names_stand_in_the_order_that_was_given(
    queue_name: str, queues: Any, names: list[str], weights: list[int] | None
) -> None:
    assert named(queue_name, queues, default=DEFAULT) == (names, weights)


@pytest.mark.parametrize(
    ("queue_name", "queues", "why"),
    [
        (DEFAULT, {"a": 1}, "arq's default: give it one, or set queue_name to one of 'a'"),
        ("x", {"a": 1}, "none to queue_name 'x'"),
        ("a", {"a": 0}, "from 1 to"),
        ("a", {"a": True}, "from 1 to"),
        ("a", {"a": 1.5}, "from 1 to"),
        ("a", {"a": 10_000_000}, "from 1 to"),
    ],
)
def test_weights_that_make_no_sense_are_refused(queue_name: str, queues: Any, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        Worker([idle], queue_name=queue_name, queues=queues)


def test_settings_take_weights() -> None:
    class Settings(WorkerSettings):
        queue_name = "b"
        queues = {"a": 6, "b": 3}  # noqa: RUF012  as users write it

    assert Settings.queues == {"a": 6, "b": 3}
    for wrong, why in (({"a": "6"}, "whole numbers"), ({"a": 6}, "Wrong: queues gives weights")):
        with pytest.raises(SettingsError, match=why):
            type("Wrong", (WorkerSettings,), {"queues": wrong})
