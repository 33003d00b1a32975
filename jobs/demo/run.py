"""One run from beginning to end.

tables ─▶ the work through the writer ─▶ every total against the file
       ─▶ (the same work directly, twice) ─▶ tables of figures, picture, verdict
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg
from redis.exceptions import RedisError

import runner
from jobs.demo import check, plots, report
from jobs.demo.direct import DirectServices
from jobs.demo.queued import AT_LEAST, ROUTES, QueuedRun
from jobs.demo.screen import open_screen
from jobs.demo.watch import MONITOR
from jobs.departures import schema
from jobs.flights import load_airports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rich.console import Console

    from jobs.demo.check import Difference
    from jobs.demo.options import Options
    from jobs.demo.queued import Finished
    from jobs.demo.report import Account
    from jobs.demo.work import Work
    from runner import Client

WRITTEN_DIRECTLY: Final = ("departures", "airlines", "airport_hours", "aeroplanes")

DIRECT_MEANS: Final = (
    "Direct: each service has its own connections, each departure its own transaction; "
    "departures and cancellations touch their rows in different orders, as code by several "
    "hands does. One order: the same with one order everywhere, which nothing enforces."
)


class ServersError(RuntimeError):
    """Raised when Redis or Postgres does not answer, or holds work already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """A run on two servers.

    Attributes:
        options: what is asked for.
        work: what is to be done.
        console: where to say it.
        redis_url: the one server.
        database_url: the other.
    """

    options: Options
    work: Work
    console: Console
    redis_url: str
    database_url: str

    async def run(self) -> bool:
        """Do everything and say everything; return whether every total is right."""
        finished, wrong = await self._queued()
        accounts = [finished.account]
        if self.options.direct:
            for same_order in (False, True):
                self.console.print()
                account, off = await self._direct(same_order=same_order)
                accounts.append(account)
                wrong += off
        self._report(finished, accounts)
        return self._verdict(wrong)

    async def _queued(self) -> tuple[Finished, list[Difference]]:
        async with (
            self._monitor() as connection,
            self._client() as client,
        ):
            await _prepare(connection, client)
            finished = await QueuedRun(
                options=self.options,
                work=self.work,
                client=client,
                connection=connection,
                redis_url=self.redis_url,
                environment={"REDIS_URL": self.redis_url, "DATABASE_URL": self.database_url},
            ).run(self.console)
            routes = finished.routes
            wrong = finished.wrong
            for ranking in (routes, finished.ranking):
                wrong += check.wrong_routes(
                    ranking, self.work.expected, limit=ROUTES, at_least=AT_LEAST
                )
            return finished, wrong + await check.differences(connection, self.work.expected)

    async def _direct(
        self,
        *,
        same_order: bool,
    ) -> tuple[Account, list[Difference]]:
        name = "direct_same_order" if same_order else "direct"
        async with self._database(name), self._monitor(name) as connection:
            await connection.execute(schema())
            services = DirectServices(
                database_url=self.database_url,
                database=name,
                flights=self.work.mixed,
                same_order=same_order,
            )
            view = services.view(self.work.names, self.work.totals)
            with open_screen(self.console, view) as screen:
                account = await services.run(connection, screen)
            return account, await check.differences(
                connection, self.work.expected, WRITTEN_DIRECTLY
            )

    @contextlib.asynccontextmanager
    async def _client(self) -> AsyncIterator[Client]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                client = await stack.enter_async_context(runner.connect(self.redis_url))
                await client.queue_stats()
            except (RedisError, runner.errors.SettingsError) as exc:
                raise ServersError(f"Redis does not answer: {exc}") from exc
            yield client

    @contextlib.asynccontextmanager
    async def _monitor(
        self,
        database: str | None = None,
    ) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        try:
            connection = await asyncpg.connect(
                self.database_url,
                database=database,
                server_settings={"application_name": MONITOR},
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as exc:
            raise ServersError(f"Postgres does not answer: {exc}") from exc
        try:
            yield connection
        finally:
            await connection.close(timeout=5)

    @contextlib.asynccontextmanager
    async def _database(self, name: str) -> AsyncIterator[None]:
        """Make a database of its own for a direct run: its deadlocks are counted apart."""
        async with self._monitor() as connection:
            await connection.execute(f"CREATE DATABASE {name}")
            try:
                yield
            finally:
                await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _report(self, finished: Finished, accounts: list[Account]) -> None:
        self.console.print()
        report.print_routes(self.console, finished.routes, load_airports())
        report.print_accounts(self.console, accounts)
        if self.options.direct:
            report.say(self.console, DIRECT_MEANS)
        report.print_connections(self.console, finished.account.connections, MONITOR)
        if self.options.plot:
            path = self.options.folder / "demo.png"
            try:
                plots.draw_run(path, finished.samples, finished.kills)
                report.say(self.console, f"The run as a picture: {report.place(path)}")
            except plots.NoMatplotlibError as exc:
                report.say(self.console, f"No picture of the run: {exc}")

    def _verdict(self, wrong: list[Difference]) -> bool:
        if wrong:
            report.print_differences(self.console, wrong)
            logs = self.options.folder / "demo-logs"
            report.say(self.console, f"The logs of the processes: {report.place(logs)}")
            return False
        rows = {table: len(rows) for table, rows in self.work.expected.tables.items()}
        report.say(
            self.console,
            f"Exact: all {rows['departures']:,} departures, {rows['airlines']} airlines, "
            f"{rows['airport_hours']:,} airport-hours, {rows['aeroplanes']:,} aeroplanes, "
            f"{rows['delay_report']} days of the report and {len(self.work.damaged)} refused "
            "lines are as the file says.",
            "bold green",
        )
        return True


async def _prepare(connection: asyncpg.Connection[asyncpg.Record], client: Client) -> None:
    """Make the tables; refuse servers of the user's own that are in use."""
    await connection.execute(schema())
    if await connection.fetchval("SELECT EXISTS (SELECT FROM departures)"):
        raise ServersError(
            "the database of DATABASE_URL holds departures of an earlier run; give an empty one",
        )
    if queued := (await client.queue_stats()).queued:
        raise ServersError(f"the queue in REDIS_URL holds {queued:,} jobs; give an empty one")
