"""The work done our way: services → Redis → workers → one writer → Postgres."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.demo import check
from jobs.demo.fleet import Fleet, tail
from jobs.demo.report import Account, place
from jobs.demo.screen import View, open_screen
from jobs.demo.services import MOST_QUEUED, Gate, Services
from jobs.demo.watch import Sample, Watch
from jobs.departures import refresh_delay_report, worst_routes
from jobs.routes import ranking_of_year

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg
    from rich.console import Console

    from jobs.demo.options import Options
    from jobs.demo.screen import Screen
    from jobs.demo.work import Work
    from jobs.departures import Route
    from runner import Client

STALLED_S = 90.0
"""Without any progress for so long, a run is given up. The jobs of a killed worker take a lease
of 15 s to be run by another."""

ANSWER_S = 120.0
LOOK_EVERY_S = 0.2
ROUTES = 10
AT_LEAST = 10
"""Routes with fewer flights are left out of the worst ones."""
YEAR = 2013
"""Of the flights."""


class StalledError(RuntimeError):
    """Raised when a run makes no progress any more; ends with the tails of the logs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What is known when everything is committed.

    Attributes:
        account: the run in figures.
        samples: the run as it was seen.
        kills: seconds since the start at which processes were killed.
        routes: the worst routes, as the task returned them.
        ranking: the same, as the flow of months and days returned them.
        wrong: dead letters that are not as they should be.
    """

    account: Account
    samples: list[Sample]
    kills: list[float]
    routes: list[Route]
    ranking: list[Route]
    wrong: list[check.Difference]


@dataclass(slots=True, kw_only=True)
class QueuedRun:
    """One run through the queue.

    Attributes:
        options: what is asked for.
        work: what is to be done.
        client: the demo's own client.
        connection: the demo's own connection to Postgres, which only looks.
        redis_url: where services and workers find Redis.
        environment: what the processes of the fleet find in their environment.
    """

    options: Options
    work: Work
    client: Client
    connection: asyncpg.Connection[asyncpg.Record]
    redis_url: str
    environment: Mapping[str, str]

    async def run(self, console: Console) -> Finished:
        """Do the work, and return when everything is committed and every process has ended."""
        watch = Watch(client=self.client, connection=self.connection)
        services = Services(redis_url=self.redis_url, flights=self.work.mixed)
        with open_screen(console, self._view(watch, services)) as screen:
            fleet = Fleet(
                environment=self.environment,
                logs=self.options.folder / "demo-logs",
                say=screen.say,
            )
            fleet.plan(self.options.workers)
            try:
                return await self._with_fleet(fleet, watch, services, screen)
            finally:
                await fleet.stop()

    async def _with_fleet(
        self,
        fleet: Fleet,
        watch: Watch,
        services: Services,
        screen: Screen,
    ) -> Finished:
        before = await watch.sample()
        async with asyncio.TaskGroup() as group:
            background = [
                group.create_task(fleet.keep_running(member), name=member.name)
                for member in fleet.members
            ]
            background.append(group.create_task(watch.keep_sampling(), name="watch"))
            background.append(group.create_task(screen.keep_drawing(), name="screen"))
            if self.options.kill:
                killing = fleet.kill_now_and_then(
                    self.options.seed,
                    leader=lambda: watch.last.writer.leader,
                    sent=lambda: services.enqueued.total() / self.work.lines,
                )
                background.append(group.create_task(killing, name="kill"))
            await services.run(Gate(client=self.client, most=self._most_queued()))
            last = await self._all_committed(watch, fleet)
            if self.options.kill:
                background.pop().cancel()
            finished = await self._finish(before, last, watch, fleet, screen)
            for task in background:
                task.cancel()
        return finished

    def _most_queued(self) -> int:
        # A small run is over before anything could be killed in it; sent in portions, there is
        # always work under way and work to come when a process is killed.
        return (
            min(MOST_QUEUED, max(200, self.work.lines // 10)) if self.options.kill else MOST_QUEUED
        )

    async def _all_committed(self, watch: Watch, fleet: Fleet) -> Sample:
        """Wait until nothing is queued, nothing runs, and nothing waits for the writer."""
        seen: tuple[int, ...] = ()
        changed = time.monotonic()
        while True:
            sample = await watch.sample()
            if sample.queue.queued == 0 and sample.writer.backlog == 0:
                return sample
            if (now := sample.progress) != seen:
                seen, changed = now, time.monotonic()
            if time.monotonic() - changed > STALLED_S:
                raise StalledError(_stall(sample, fleet))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _finish(
        self,
        before: Sample,
        last: Sample,
        watch: Watch,
        fleet: Fleet,
        screen: Screen,
    ) -> Finished:
        """Refresh the report, ask for the worst routes in two ways, and count."""
        kills = [at - watch.began for at in fleet.kills]
        await (await self.client.enqueue(refresh_delay_report)).result(timeout=ANSWER_S)
        asked = await self.client.enqueue(worst_routes, ROUTES, AT_LEAST)
        routes = await asked.result(timeout=ANSWER_S)
        ranking, ranked = await self._rank(screen)
        letters = await self.client.dead_letters(limit=len(self.work.damaged) + 1000)
        end = await watch.sample()
        account = Account(
            name="one writer",
            departures=end.departures - before.departures,
            jobs=self.work.lines + 2 + ranked,
            retries=end.queue.retried
            + end.queue.crashed
            - before.queue.retried
            - before.queue.crashed,
            writes=end.writer.operations - before.writer.operations,
            transactions=end.writer.batches - before.writer.batches,
            connections=watch.connections,
            deadlocks=await watch.deadlocks(),
            seconds=last.at_s,
            refused=end.queue.dead - before.queue.dead,
            kills=len(kills),
        )
        return Finished(
            account=account,
            samples=[sample for sample in watch.samples if sample.at_s <= last.at_s],
            kills=kills,
            routes=routes,
            ranking=ranking,
            wrong=check.wrong_letters(letters, self.work.damaged),
        )

    async def _rank(self, screen: Screen) -> tuple[list[Route], int]:
        """Rank the routes by a flow, and say how far it is; return them and its jobs."""
        run = await self.client.start(ranking_of_year(YEAR, limit=ROUTES, at_least=AT_LEAST))
        async with asyncio.timeout(ANSWER_S):
            async for status in run.progress:
                screen.say(
                    f"ranking the routes of {YEAR}: {status.done} of {status.expected} jobs of the "
                    f"flow are done ({status.fraction:.0%})"
                )
        return await run.result(timeout=ANSWER_S), status.succeeded

    def _view(self, watch: Watch, services: Services) -> View:
        count = len(self.work.mixed)
        airlines = f"{count} services" if count != 1 else "one service"
        return View(
            title=f"{len(self.work.flights):,} departures · {airlines} → Redis → "
            f"{self.options.workers} workers → one writer → Postgres",
            names=self.work.names,
            totals=self.work.totals,
            sent=lambda: services.enqueued,
            committed=lambda: watch.last.committed,
            writer=lambda: f"{watch.last.writer.operations:,} writes",
            foot=lambda: _foot(watch),
        )


def _foot(watch: Watch) -> str:
    last = watch.last
    parts = [
        f"{watch.rate():,.0f}/s",
        f"lag {last.writer.lag_s:.1f} s",
        f"queued {last.queue.queued:,}",
        f"refused {last.queue.dead:,}",
        f"retried {last.queue.retried + last.queue.crashed:,}",
        f"connections {watch.connections.now}",
        f"{time.monotonic() - watch.began:.0f} s",
    ]
    return " · ".join(parts)


def _stall(sample: Sample, fleet: Fleet) -> str:
    state = (
        f"nothing has happened for {STALLED_S:.0f} s: {sample.departures:,} departures are "
        f"committed, {sample.queue.queued:,} jobs are queued ({sample.queue.running:,} run), "
        f"{sample.writer.backlog:,} units wait for the writer "
        f"({sample.writer.leader or 'none is elected'})"
    )
    logs = [
        f"--- the end of {place(member.log)}\n{tail(member.log, 10)}" for member in fleet.members
    ]
    return "\n".join([state, *logs])
