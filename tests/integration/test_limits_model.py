"""The two rules of rates, held against other formulations of them, at random times.

The scripts read Redis's clock; here the clock is two keys, which the test sets.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import redis as sync_redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner import keys
from runner.limits import Bucket, Window
from runner.scripts import load

if TYPE_CHECKING:
    from collections.abc import Iterator

QUEUE = keys.DEFAULT_QUEUE
HOLD_US = 50_000
START_US = 1_700_000_000_000_000
TOKEN = "r:test:1"

quickly = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
counts = st.integers(1, 6)
periods = st.sampled_from([1_000, 70_000, 1_000_000, 7_777_777])
steps = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(1, 60_000), st.integers(60_000, 9_000_000)),
        st.integers(1, 6),
    ),
    max_size=40,
)


@pytest.fixture
def server(redis_url: str) -> Iterator[Any]:
    with sync_redis.Redis.from_url(redis_url) as client:
        yield client
        client.flushdb()  # the keys of jobs that the bench left half done


@dataclass
class Bench:
    """The script that admits, under a clock of the test's own."""

    redis: Any
    now_us: int = START_US
    jobs: int = 0
    starts: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.redis.flushdb()
        script = load("admit")
        assert "redis.call('TIME')" in script.text
        clock = "redis.call('MGET', 'test:s', 'test:us')"
        text = script.text.replace("redis.call('TIME')", clock)
        self.script = replace(script, text=text)

    def claimed(self, job_id: str) -> None:
        """Let a worker hold this job."""
        self.redis.set(keys.in_progress(job_id), TOKEN)
        self.redis.zadd(QUEUE, {job_id: self.now_us // 1000 + 15_000})
        self.redis.hset(keys.held(QUEUE), job_id, f"{TOKEN} 0 {self.now_us / 1000:.3f}")

    def ask(self, job_id: str, rule: Window | Bucket, weight: int) -> tuple[int, int]:
        """Return the answer for one job, and what it is to wait in microseconds."""
        self.claimed(job_id)
        self.redis.mset({"test:s": self.now_us // 10**6, "test:us": self.now_us % 10**6})
        spec = (rule.kind, "l", "l", rule.count, rule.period_us, rule.burst, weight)
        args = (job_id, TOKEN, 1, "t", msgspec.msgpack.encode([spec]))
        (answer,) = self.redis.eval(self.script.text, 2, QUEUE, keys.held(QUEUE), *args)
        for kind in ("window", "bucket", "reserved", "late"):
            self.redis.persist(f"runner:{kind}:l")  # expiry goes by the real clock
        if answer[0] == 1:
            self.starts.append((self.now_us + answer[1], weight))
            self.redis.zrem(QUEUE, job_id)
        return answer[0], answer[1] * (1 if answer[0] == 1 else 1000)

    def newcomer(self, rule: Window | Bucket, weight: int) -> tuple[int, int]:
        self.jobs += 1
        return self.ask(f"j{self.jobs}", rule, weight)

    def forget_places(self) -> None:
        self.redis.delete("runner:reserved:l")

    def place_of(self, job_id: str) -> int | None:
        place = self.redis.zscore("runner:reserved:l", job_id_member(job_id))
        return None if place is None else round(place * 1000)


def job_id_member(job_id: str) -> str:
    return f"{QUEUE}\n{job_id}"


def most_in_a_window(starts: list[tuple[int, int]], period_us: int) -> int:
    """Return the greatest weight that began in one window, half open."""
    most = 0
    for begin, _ in starts:
        most = max(most, sum(w for at, w in starts if begin <= at < begin + period_us))
    return most


def window_admits_at(starts: list[tuple[int, int]], rule: Window, weight: int, now_us: int) -> int:
    """Try every moment at which an admission leaves the window, the earliest first."""
    last = max((at for at, _ in starts), default=0)
    moments = sorted({max(now_us, last), *(at + rule.period_us for at, _ in starts)})
    for moment in moments:
        held = sum(w for at, w in starts if moment - rule.period_us < at)
        if moment >= max(now_us, last) and held + weight <= rule.count:
            return moment
    raise AssertionError("the last moment finds the window empty")


@dataclass
class Tokens:
    """A bucket as it is drawn: a level that rises with time, in exact fractions."""

    rule: Bucket
    level: Fraction
    at: Fraction

    def wait_us(self, weight: int, now_us: int) -> Fraction:
        rise = Fraction(self.rule.count, self.rule.period_us)
        level = min(Fraction(self.rule.burst), self.level + (now_us - self.at) * rise)
        return max((weight - level) / rise, Fraction(0))

    def take(self, weight: int, at: Fraction) -> None:
        rise = Fraction(self.rule.count, self.rule.period_us)
        self.level = min(Fraction(self.rule.burst), self.level + (at - self.at) * rise) - weight
        self.at = at


@quickly
@given(count=counts, period_us=periods, sequence=steps)
def test_a_window_decides_as_one_that_tries_every_moment(
    server: Any, count: int, period_us: int, sequence: list[tuple[int, int]]
) -> None:
    rule, bench = Window(count, period_us), Bench(server)
    for step_us, wanted in sequence:
        bench.now_us += step_us
        weight = min(wanted, count)
        expected = window_admits_at(bench.starts, rule, weight, bench.now_us) - bench.now_us
        answer, wait_us = bench.newcomer(rule, weight)
        assert answer == (1 if expected <= HOLD_US else 2)
        assert abs(wait_us - expected) <= (0 if answer == 1 else 1000)
        bench.forget_places()
    assert most_in_a_window(bench.starts, period_us) <= count


@quickly
@given(count=counts, period_us=periods, burst=counts, sequence=steps)
def test_a_bucket_decides_as_one_whose_level_rises(
    server: Any, count: int, period_us: int, burst: int, sequence: list[tuple[int, int]]
) -> None:
    rule, bench = Bucket(count, period_us, burst), Bench(server)
    tokens = Tokens(rule, Fraction(burst), Fraction(START_US))
    for step_us, wanted in sequence:
        bench.now_us += step_us
        weight = min(wanted, burst)
        expected = float(tokens.wait_us(weight, bench.now_us))
        if abs(expected - HOLD_US) < 2:
            continue  # the script counts in doubles
        answer, wait_us = bench.newcomer(rule, weight)
        assert answer == (1 if expected <= HOLD_US else 2)
        assert abs(wait_us - expected) <= (2 if answer == 1 else 1001)
        if answer == 1:
            tokens.take(weight, Fraction(bench.now_us + wait_us))
        bench.forget_places()
    for begin, _ in bench.starts:
        for end, _ in bench.starts:
            began = sum(w for at, w in bench.starts if begin <= at <= end)
            assert began <= burst + count * (end - begin + 2) / period_us + 1e-3 or end < begin


class Crowd:
    """Jobs that arrive, are refused, and come back at the scores of their queue: late, or never."""

    def __init__(
        self, bench: Bench, rule: Window | Bucket, arrivals: list[tuple[int, int, int, bool]]
    ) -> None:
        self.bench = bench
        self.rule = rule
        self.arrivals = arrivals
        self.admitted: set[str] = set()
        at = START_US
        self.coming: dict[str, int] = {}
        for number, (step_us, *_) in enumerate(arrivals):
            at += step_us
            self.coming[f"j{number}"] = at
        self.refused: set[str] = set()

    def step(self) -> bool:
        """Let the next job come; return whether there was one."""
        if not self.coming:
            return False
        job_id = min(self.coming, key=lambda name: (self.coming[name], name))
        at = self.coming.pop(job_id)
        _, weight, _, is_lost = self.arrivals[int(job_id[1:])]
        if job_id in self.refused and is_lost:
            self.bench.redis.zrem(QUEUE, job_id)  # it was purged
            return True
        self.bench.now_us = max(self.bench.now_us, at)
        answer, _ = self.bench.ask(job_id, self.rule, min(weight, self.rule.most))
        if answer == 1:
            self.admitted.add(job_id)
        else:
            self.bench.redis.delete(keys.in_progress(job_id))
            self.coming[job_id] = 0
            self.refused.add(job_id)
        self._look_again()
        return True

    def _look_again(self) -> None:
        """Times may have been pulled forward. Who is late is late every time."""
        for job_id in self.refused & self.coming.keys():
            score = self.bench.redis.zscore(QUEUE, job_id)
            late_us = self.arrivals[int(job_id[1:])][2]
            self.coming[job_id] = round(score * 1000) + 1 + late_us


lateness = st.one_of(st.just(0), st.integers(0, 3_000), st.integers(100_000, 5_000_000))


@quickly
@given(
    count=counts,
    burst=st.one_of(st.none(), counts),
    arrivals=st.lists(
        st.tuples(st.integers(0, 400_000), st.integers(1, 3), lateness, st.booleans()),
        min_size=1,
        max_size=30,
    ),
)
def test_who_comes_late_or_never_breaks_no_limit_and_starves_nobody(
    server: Any,
    count: int,
    burst: int | None,
    arrivals: list[tuple[int, int, int, bool]],
) -> None:
    period_us = 1_000_000
    rule: Window | Bucket = (
        Window(count, period_us) if burst is None else Bucket(count, period_us, burst)
    )
    bench = Bench(server)
    crowd = Crowd(bench, rule, arrivals)
    for rounds in range(3_000):
        assert rounds < 2_999, "jobs come back for ever"
        if not crowd.step():
            break
    assert {f"j{n}" for n, (_, _, _, lost) in enumerate(arrivals) if not lost} <= crowd.admitted
    if isinstance(rule, Window):
        assert most_in_a_window(bench.starts, period_us) <= count
    else:
        for begin, _ in bench.starts:
            began = sum(w for at, w in bench.starts if begin <= at < begin + period_us)
            assert began <= rule.burst + count + 1e-3
