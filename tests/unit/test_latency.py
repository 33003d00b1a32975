"""Histograms, and what the tally of a worker makes of ends."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.broker import Claimed
from runner.codec import JobRecord
from runner.execution import Attempt, Ending
from runner.inspect.finished import packed, unpacked
from runner.inspect.latency import BOUNDS_MS, bucket, latency
from runner.monitor.tally import FOLDED, Tally
from runner.types import Outcome


@pytest.mark.parametrize(
    ("ms", "bound"), [(0, 1), (1, 1), (2, 2), (4, 5), (1_001, 1_500), (86_400_000, 86_400_000)]
)
def test_a_time_falls_below_the_next_bound(ms: int, bound: int) -> None:
    assert BOUNDS_MS[bucket(ms)] == bound


def test_percentiles_are_within_a_third_of_the_truth() -> None:
    times = [*range(1, 5_000, 3)]
    found = latency(Counter(map(bucket, times)), sum(times))
    assert found.count == len(times)
    assert found.mean == sum(times) / len(times)
    for part, read in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        assert read == pytest.approx(times[int(len(times) * part)], rel=1 / 3)


def test_nothing_took_no_time_and_beyond_the_last_bound_lies_the_last() -> None:
    assert latency({}, 0).p99 == 0
    assert latency({len(BOUNDS_MS): 3}, 1).p50 == BOUNDS_MS[-1]


def attempt(
    job_id: str,
    *,
    task: str = "t",
    due_ms: float = 1_000.5,
    ended_ms: int = 1_030,
    context: object = None,
) -> Attempt:
    record = JobRecord(task=task, args=(), kwargs={}, attempt=None, enqueued_ms=900, options={})
    claimed = Claimed(job_id, "q", "token", due_ms, None, 1, 0)
    made = Attempt(claimed, 1_010, record, 1, ended_ms)
    made.context = context  # type: ignore[assignment]  # whether there is one is all that counts
    return made


def test_successes_are_counted_and_listed_as_they_come() -> None:
    tally = Tally("w", {"t", "u"}, most=10)
    for job_id, task, ended_ms in (("a", "t", 1_030), ("b", "u", 1_031), ("c", "t", 1_032)):
        tally.ended(attempt(job_id, task=task, ended_ms=ended_ms), Ending(Outcome.SUCCEEDED))
    counted, finished = tally.take()
    assert {(c.task, c.outcome): c.count for c in counted} == {
        ("t", "succeeded"): 2,
        ("u", "succeeded"): 1,
    }
    assert (counted[0].waited_ms, counted[0].ran_ms) == (19, 42)
    count, piece = finished["q"]
    jobs = list(unpacked(piece))
    assert [job.job_id for job in jobs] == ["c", "b", "a"], "the newest first"
    assert (count, jobs[1].task, jobs[0].worker) == (3, "u", "w")
    assert tally.take() == ([], {})


def test_of_too_many_the_last_are_listed_and_all_are_counted() -> None:
    tally = Tally("w", {"t"}, most=2)
    for number in range(5):
        tally.ended(attempt(str(number)), Ending(Outcome.SUCCEEDED))
    (counted,), finished = tally.take()
    assert (counted.count, finished["q"][0]) == (5, 2)
    assert [job.job_id for job in unpacked(finished["q"][1])] == ["4", "3"]


@pytest.mark.parametrize("due_ms", [float("inf"), float("-inf"), float("nan"), 5_000.0])
def test_a_due_time_that_makes_no_sense_harms_nothing(due_ms: float) -> None:
    tally = Tally("w", {"t"}, most=2)
    tally.ended(attempt("a", due_ms=due_ms), Ending(Outcome.SUCCEEDED))
    tally.ended(attempt("b", due_ms=due_ms, context=1), Ending(Outcome.FAILED, ValueError("x")))
    counted, finished = tally.take()
    assert [cell.waited_ms for cell in counted] == [0, 0]
    assert finished["q"][0] == 2


@pytest.mark.parametrize("is_taken", [False, True])
def test_an_end_that_did_not_count_is_taken_back(is_taken: bool) -> None:
    tally = Tally("w", {"t"}, most=9)
    tally.ended(attempt("a"), Ending(Outcome.SUCCEEDED))
    if is_taken:
        tally.take()
    tally.lost("q", "a")
    tally.ended(attempt("b"), Ending(Outcome.SUCCEEDED))
    counted, finished = tally.take()
    assert {c.outcome: c.count for c in counted} == {
        "succeeded": 0 if is_taken else 1,
        "lost_lease": 1,
    }
    assert finished["q"][0] == 1
    assert tally.leases_lost == 1


@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 10**9)), max_size=30))
def test_times_are_counted_by_bucket_as_one_by_one(times: list[tuple[float, int]]) -> None:
    tally = Tally("w", {"t"}, most=9)
    waits, runs = Counter[int](), Counter[int]()
    for waited_ms, ran_ms in times:
        tally.ended(
            attempt("a", due_ms=1_010 - waited_ms, ended_ms=1_010 + ran_ms),
            Ending(Outcome.SUCCEEDED),
        )
        waits[bucket(1_010 - (1_010 - waited_ms))] += 1
        runs[bucket(ran_ms)] += 1
    counted, _ = tally.take()
    assert [(c.waited, c.ran) for c in counted] == ([(waits, runs)] if times else [])
    assert sum(c.ran_ms for c in counted) == sum(ran for _, ran in times)


def test_a_piece_takes_ids_that_are_no_text() -> None:
    row = ("t", "failed", "a\udcff", 1, 2, float("inf"), 3, 4, "Error: \udcff")
    (job,) = unpacked(packed("w", [row]))
    assert (job.job_id, job.error, job.due_ms) == ("a\\udcff", "Error: \\udcff", 0)


def test_no_bound_is_more_than_twice_the_one_before() -> None:
    pairs = list(pairwise(BOUNDS_MS))
    assert all(upper <= 2 * lower for lower, upper in pairs[:-1])


def test_more_successes_than_are_counted_at_once_are_all_counted() -> None:
    tally = Tally("w", {"t"}, most=1_000)
    many = FOLDED * 3 + 7
    for number in range(many):
        tally.ended(attempt(str(number), due_ms=1_000 + number / 1_000), Ending(Outcome.SUCCEEDED))
    tally.lost("q", str(many - FOLDED))  # it is counted already
    (counted, lost), finished = tally.take()
    assert (counted.count, sum(counted.ran.values()), counted.ran_ms) == (many - 1, many, many * 20)
    assert (lost.outcome, lost.count) == ("lost_lease", 1)
    jobs = [job.job_id for job in unpacked(finished["q"][1])]
    newest = [str(number) for number in reversed(range(many - FOLDED - 7, many))]
    assert jobs == [name for name in newest if name != str(many - FOLDED)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-5, 100_000_000) | st.sampled_from(BOUNDS_MS), min_size=1, max_size=300)
)
def test_percentiles_lie_between_the_bounds_of_the_truth(times: list[int]) -> None:
    found = latency(Counter(map(bucket, times)), sum(max(ms, 0) for ms in times))
    ordered = sorted(times)
    for part, read in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        rank = math.ceil(round(part * len(ordered), 9))
        index = bucket(ordered[rank - 1])
        upper = BOUNDS_MS[min(index, len(BOUNDS_MS) - 1)]
        lower = BOUNDS_MS[index - 1] if index else 0
        assert lower <= read <= upper
    assert found.p50 <= found.p95 <= found.p99


def test_buckets_are_those_of_prometheus_at_the_edges() -> None:
    for index, bound in enumerate(BOUNDS_MS):
        assert bucket(bound) == index, "an upper end is inclusive, as le is"
        assert bucket(bound + 1) == index + 1
