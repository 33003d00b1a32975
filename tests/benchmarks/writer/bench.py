"""The bench of the writer: two servers, and a database of its own for each measurement."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import asyncpg
from redis import Redis

from tests.benchmarks.processes import Process, ProcessFailed, cpu_s, wait_for_lines
from tests.benchmarks.sides import ROOT
from tests.benchmarks.writer.workloads import SCHEMA

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runner.embedded import Servers
    from tests.benchmarks.writer.callers import Figures, Wish

SETTINGS: Final = "tests.benchmarks.writer.settings.WorkerSettings"
START_TIMEOUT_S: Final = 30.0
RUN_TIMEOUT_S: Final = 240.0
LOOK_S: Final = 0.05
CONNECTIONS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'"
)
DEADLOCKS: Final = "SELECT deadlocks FROM pg_stat_database WHERE datname = $1"


@dataclass(frozen=True, slots=True)
class Place:
    """A fresh database, and an empty Redis."""

    name: str
    url: str


class WriterBench:
    """Starts what a measurement needs; nothing of it outlives the benchmark."""

    def __init__(self, servers: Servers, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.redis = Redis.from_url(servers.redis_url)
        self._numbers = 0

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Place]:
        """Lend a database with the tables, and an empty Redis."""
        self._numbers += 1
        name = f"bench_{os.getpid()}_{self._numbers}"
        place = Place(name, urlsplit(self.servers.database_url)._replace(path=f"/{name}").geturl())
        self.redis.flushall()
        self.ask(f"CREATE DATABASE {name}")
        try:
            self.ask(SCHEMA, place=place)
            self.ask("CHECKPOINT")
            yield place
        finally:
            self.ask(f"DROP DATABASE {name} WITH (FORCE)")

    def ask(self, sql: str, *args: Any, place: Place | None = None) -> Any:
        """Run SQL over a connection of its own; return the first value, if there is one."""

        async def run() -> Any:
            connection = await asyncpg.connect(place.url if place else self.servers.database_url)
            try:
                if args or sql.startswith("SELECT"):
                    return await connection.fetchval(sql, *args)
                return await connection.execute(sql)
            finally:
                await connection.close()

        return asyncio.run(run())

    @contextlib.contextmanager
    def writer(self, place: Place) -> Iterator[Process]:
        """Run ``runner writer`` in a process of its own, and wait until it is elected."""
        with self._start(place, "writer", "runner", "writer", SETTINGS) as process:
            until = time.monotonic() + START_TIMEOUT_S
            while not self.redis.hexists("runner:writer", "leader"):
                process.check()
                if time.monotonic() > until:
                    raise ProcessFailed(
                        f"no writer within {START_TIMEOUT_S:g} s:\n{process.tail()}"
                    )
                time.sleep(LOOK_S)
            yield process

    @contextlib.contextmanager
    def worker(self, place: Place, *, pool: int) -> Iterator[Process]:
        """Run one worker, with a pool of its own if that is not 0."""
        ready = self._file("ready")
        variables = {"BENCH_POOL": str(pool), "BENCH_READY": str(ready)}
        with self._start(place, "worker", "arq", SETTINGS, **variables) as process:
            wait_for_lines(ready, 1, timeout_s=START_TIMEOUT_S, check=[process])
            yield process

    def call(self, place: Place, wish: Wish) -> Figures:
        """Run the callers' process to its end; return its figures, and the connections it saw.

        Raises:
            ProcessFailed: it failed, or took too long.
        """
        answer = self._file("figures.json")
        words = (
            *("python", "-m", "tests.benchmarks.writer.callers"),
            *(json.dumps(asdict(wish)), str(answer)),
        )
        most = 0
        with self._start(place, "callers", *words) as process:
            until = time.monotonic() + RUN_TIMEOUT_S
            while process.is_running():
                most = max(most, self.ask(CONNECTIONS, place.name))
                if time.monotonic() > until:
                    raise ProcessFailed(f"not done within {RUN_TIMEOUT_S:g} s:\n{process.tail()}")
                with contextlib.suppress(ProcessFailed):
                    process.wait(1)
            process.wait(1)
        figures: Figures = json.loads(answer.read_text())
        return {**figures, "connections": most}

    def deadlocks(self, place: Place) -> int:
        """Return how many deadlocks there were; sessions report when they end."""
        return int(self.ask(DEADLOCKS, place.name))

    def cpu_s(self, process: Process) -> float:
        """Return what a process has used of the processors."""
        return cpu_s(process.pid)

    def _start(self, place: Place, log: str, *words: str, **variables: str) -> Process:
        program = os.path.join(os.path.dirname(sys.executable), words[0])  # noqa: PTH118, PTH120  not its target
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in ("HOME", "LANG", "PATH", "TMPDIR")
        }
        environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "BENCH_REDIS_URL": self.servers.redis_url,
            "BENCH_DATABASE_URL": place.url,
            "BENCH_POOL": "0",
            **variables,
        }
        return Process(
            [program, *words[1:]],
            folder=ROOT,
            environment=environment,
            log=self._file(f"{log}.log"),
        )

    def _file(self, name: str) -> Path:
        self._numbers += 1
        return self.folder / f"{self._numbers}-{name}"
