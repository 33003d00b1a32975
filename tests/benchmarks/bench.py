"""The bench: one server, and the workers and producers that a measurement needs.

What is measured is seen from outside of the processes: time by how many jobs Redis still
shows as not done, processor time and memory from /proc, commands from Redis's own counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from redis import Redis

from tests.benchmarks.environments import NotInstalled, prepare
from tests.benchmarks.processes import (
    Process,
    ProcessFailed,
    cpu_s,
    memory_mb,
    wait_for_lines,
)
from tests.benchmarks.sides import ROOT, Side

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

POLL_S: Final = 0.005
START_TIMEOUT_S: Final = 60.0
PRODUCE_TIMEOUT_S: Final = 180.0
FLEET_TIMEOUT_S: Final = 180.0
NEARLY: Final = 3
"""Sides whose results are counted by all keys of the server are done when so few are missing: keys
of their workers come and go."""

OWN_COMMANDS: Final = ("info", "flushall", "config", "ping", "auth", "hello", "client", "select")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured: jobs in a drain, and seconds that parts of it may take at most."""

    jobs: int
    fill_s: float
    drain_s: float
    enqueue_s: float
    latency_jobs: int
    latency_s: float
    fleets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """The counts of one moment."""

    at: float
    worker_cpu_s: float
    server_cpu_s: float
    commands: int
    packets: int


class Bench:
    """One server with everything that measurements need; nothing of it outlives the benchmark."""

    def __init__(self, url: str, server_pid: int, folder: Path, scale: Scale) -> None:
        self.url = url
        self.server_pid = server_pid
        self.folder = folder
        self.scale = scale
        self.redis = Redis.from_url(url, socket_timeout=60)
        self._programs: dict[str, Path] = {}
        self._unusable: dict[str, str] = {}
        self._numbers = 0

    def prepare(self, side: Side) -> str | None:
        """Make a side's environment; return None, or the reason why it cannot be measured."""
        try:
            self._programs[side.name] = prepare(side)
        except NotInstalled as reason:
            return str(reason)
        return None

    def programs(self, side: Side) -> Path:
        """Return where the programs of a side lie."""
        return self._programs[side.name]

    def fresh(self) -> None:
        """Forget everything that is in Redis."""
        self.redis.flushall()

    def produce(self, side: Side, what: str, *, concurrency: int = 100, **options: Any) -> Any:
        """Run one side's producer to its end, and return its figures.

        Raises:
            ProcessFailed: it failed, or took too long.
        """
        command = (
            *(str(self.programs(side) / "python"), "-m", "tests.benchmarks.produce"),
            *(side.module, what, json.dumps(options), str(answer := self.file("figures.json"))),
        )
        environment = self._environment(side, self.url, concurrency)
        log = self._log(side, what)
        with Process(command, folder=ROOT, environment=environment, log=log) as process:
            process.wait(PRODUCE_TIMEOUT_S)
        return json.loads(answer.read_text())

    def fill(self, side: Side, *, task: str = "noop", jobs: int | None = None) -> int:
        """Empty Redis, and enqueue jobs; return how many there are, if time did not do for all.

        Raises:
            ProcessFailed: what the side says of its queue is not what Redis shows.
        """
        self.fresh()
        figures = self.produce(
            side, "fill", jobs=jobs or self.scale.jobs, task=task, limit_s=self.scale.fill_s
        )
        queued = int(figures["queued"])
        seen = Counter(self.redis, side, queued).left()
        if seen != queued:
            raise ProcessFailed(f"{queued} jobs were queued, but Redis shows {seen}")
        return queued

    def worker(
        self,
        side: Side,
        *,
        url: str | None = None,
        concurrency: int = 100,
        **variables: str,
    ) -> Process:
        """Start one worker of a side; use it with ``with``."""
        url = url or self.url
        filled = [
            word.replace("{concurrency}", str(concurrency)).replace("{url}", url)
            for word in side.worker
        ]
        command = [str(self.programs(side) / filled[0]), *filled[1:]]
        environment = {**self._environment(side, url, concurrency), **variables}
        return Process(command, folder=ROOT, environment=environment, log=self._log(side, "worker"))

    @contextlib.contextmanager
    def fleet(self, side: Side, count: int) -> Iterator[list[Process]]:
        """Start many workers on an empty queue, and wait until all are up."""
        ready = self.file("ready")
        with contextlib.ExitStack() as stack:
            workers = [
                stack.enter_context(self.worker(side, BENCH_READY=str(ready))) for _ in range(count)
            ]
            wait_for_lines(ready, count, timeout_s=FLEET_TIMEOUT_S, check=workers)
            yield workers
            for worker in workers:
                worker.ask_to_end()

    def read(self, workers: Sequence[Process] = ()) -> Reading:
        """Read the counts of this moment."""
        stats: Any = self.redis.info("commandstats")
        commands = sum(
            int(counts["calls"])
            for name, counts in stats.items()
            if name.removeprefix("cmdstat_").partition("|")[0] not in OWN_COMMANDS
        )
        general: Any = self.redis.info("stats")
        return Reading(
            at=time.perf_counter(),
            worker_cpu_s=sum(cpu_s(worker.pid) for worker in workers),
            server_cpu_s=cpu_s(self.server_pid),
            commands=commands,
            packets=int(general["total_reads_processed"]),
        )

    def watch(self, side: Side, workers: Sequence[Process], queued: int) -> dict[str, float]:
        """Watch workers drain a full queue, from just before the first job is done to the last.

        Starting the worker is not part of it. A drain that takes too long is cut short, and
        counts as far as it has come.

        Raises:
            ProcessFailed: a worker has ended, or none has done a job in time.
        """
        counter = Counter(self.redis, side, queued)
        before = self._wait_for_first(counter, workers)
        until = before.at + self.scale.drain_s
        left, now = queued, before.at
        while now < until:
            left, now = counter.left(), time.perf_counter()
            if left <= 0:
                break
            for worker in workers:
                worker.check()
            time.sleep(POLL_S)
        after = self.read(workers)
        peak = sum(memory_mb(worker.pid, peak=True) for worker in workers)
        done = queued - left
        return figures_of(before, after, ended=now, done=done, polls=counter.commands, peak=peak)

    def _wait_for_first(self, counter: Counter, workers: Sequence[Process]) -> Reading:
        until = time.perf_counter() + START_TIMEOUT_S
        before = self.read(workers)
        while counter.left() == counter.queued:
            for worker in workers:
                worker.check()
            if time.perf_counter() > until:
                said = workers[0].tail() if workers else ""
                raise ProcessFailed(f"no job was done within {START_TIMEOUT_S:g} s:\n{said}")
            time.sleep(POLL_S)
            counter.commands = 0
            before = self.read(workers)
        return before

    def file(self, name: str) -> Path:
        """Return the path of a new file."""
        self._numbers += 1
        return self.folder / f"{self._numbers}-{name}"

    def release(self, workers: Sequence[Process]) -> None:
        """Let stopped workers go on."""
        for worker in workers:
            worker.signal(signal.SIGCONT)

    def hold(self, workers: Sequence[Process]) -> None:
        """Stop workers where they are."""
        for worker in workers:
            worker.signal(signal.SIGSTOP)

    def _log(self, side: Side, name: str) -> Path:
        return self.file(f"{side.name}-{name}.log")

    def _environment(self, side: Side, url: str, concurrency: int) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in ("HOME", "LANG", "PATH", "TMPDIR")
        }
        return {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_REDIS_URL": url,
            "BENCH_CONCURRENCY": str(concurrency),
            **side.variables,
        }


class Counter:
    """Count the jobs of a side that are not done, by what Redis shows."""

    def __init__(self, redis: Redis, side: Side, queued: int) -> None:
        self.queued = queued
        self.commands = 0
        self._redis = redis
        self._left = [command.split() for command in side.left]
        self._done = [command.split() for command in side.done]
        self._slack = NEARLY if "DBSIZE" in side.done else 0
        self._base = self._sum(self._done)

    def left(self) -> int:
        """Return how many jobs are not done."""
        if self._left:
            return self._sum(self._left)
        left = self.queued - (self._sum(self._done) - self._base)
        return 0 if left <= self._slack else min(left, self.queued)

    def _sum(self, commands: list[list[str]]) -> int:
        self.commands += len(commands)
        execute: Any = self._redis.execute_command
        return sum(int(execute(*command)) for command in commands)


def figures_of(
    before: Reading, after: Reading, *, ended: float, done: int, polls: int, peak: float
) -> dict[str, float]:
    """Turn two readings into the figures of a drain."""
    if not done:
        raise ProcessFailed("no job was done")
    return {
        "rate": done / (ended - before.at),
        "cpu": (after.worker_cpu_s - before.worker_cpu_s) / done * 10_000,
        "server_cpu": (after.server_cpu_s - before.server_cpu_s) / done * 10_000,
        "commands": max(0, after.commands - before.commands - polls) / done,
        "packets": max(0, after.packets - before.packets - polls) / done,
        "peak": peak,
        "done": done,
    }


def address_of(url: str) -> tuple[str, int]:
    """Return host and port of a Redis URL."""
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port
