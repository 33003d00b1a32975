"""The same work the old way: each service with connections and transactions of its own.

Sixteen services, a pool of five connections each; a departure is one transaction of four
statements, and ten departures of a service are under way at a time. A transaction that
Postgres ends to break a deadlock is run again.

In which order a transaction touches its rows is up to whoever wrote that code path, and where
several people wrote several paths, the orders differ. So it is here at first: a departure
updates the airline and then the airport-hour, a cancellation (one in forty) the airport-hour
and then the airline. Done again with one order everywhere, nothing can deadlock, and what is
left of the trouble is the connections and the waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import asyncpg

from jobs.demo.report import Account
from jobs.demo.screen import View
from jobs.demo.watch import EVERY_S, Connections, deadlocks
from jobs.validation import BadRow, Departure, validate

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from jobs.demo.screen import Screen
    from jobs.flights import Flight

POOL = 5
TASKS = 10

_INSERT: Final = """\
INSERT INTO departures
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
"""
_AIRLINE: Final = """\
UPDATE airlines
   SET flights = flights + 1, cancelled = cancelled + $2, late = late + $3,
       delay_minutes = delay_minutes + $4, miles = miles + $5
 WHERE carrier = $1
"""
_AIRPORT_HOUR: Final = """\
INSERT INTO airport_hours AS t (origin, hour, flights, cancelled, late, delay_minutes)
VALUES ($1, $2, 1, $3, $4, $5)
    ON CONFLICT (origin, hour) DO UPDATE
   SET flights = t.flights + 1, cancelled = t.cancelled + excluded.cancelled,
       late = t.late + excluded.late, delay_minutes = t.delay_minutes + excluded.delay_minutes
"""
_AEROPLANE: Final = """\
INSERT INTO aeroplanes AS t (tail, flights, cancelled, miles, air_minutes)
VALUES ($1, 1, $2, $3, $4)
    ON CONFLICT (tail) DO UPDATE
   SET flights = t.flights + 1, cancelled = t.cancelled + excluded.cancelled,
       miles = t.miles + excluded.miles, air_minutes = t.air_minutes + excluded.air_minutes
"""

Statement = tuple[object, ...]


@dataclass(slots=True, kw_only=True)
class DirectServices:
    """The sixteen services without a queue.

    Attributes:
        database_url: where they write.
        database: the name of the database there.
        flights: the departures of each airline, in time order.
        same_order: whether every code path touches rows in the same order.
        sent: departures begun, by airline.
        committed: departures committed, by airline.
        retries: transactions that were run again after a deadlock.
        statements: statements that were committed.
        refused: bad lines.
        connections: the connections that were seen.
    """

    database_url: str
    database: str
    flights: Mapping[str, Sequence[Flight]]
    same_order: bool
    sent: Counter[str] = field(default_factory=Counter)
    committed: Counter[str] = field(default_factory=Counter)
    retries: int = 0
    statements: int = 0
    refused: int = 0
    connections: Connections = field(default_factory=Connections)

    async def run(
        self,
        monitor: asyncpg.Connection[asyncpg.Record],
        screen: Screen,
    ) -> Account:
        """Record everything; return the account of it."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watch(monitor), name="watch connections")
            drawing = group.create_task(screen.keep_drawing(), name="screen")
            services = [
                group.create_task(self._serve(carrier), name=f"direct service {carrier}")
                for carrier in self.flights
            ]
            await asyncio.gather(*services)
            seconds = time.monotonic() - began
            watching.cancel()
            drawing.cancel()
        committed = self.committed.total()
        return Account(
            name="direct, one order" if self.same_order else "direct",
            departures=committed,
            jobs=None,
            retries=self.retries,
            writes=self.statements,
            transactions=committed,
            connections=self.connections,
            deadlocks=await deadlocks(monitor),
            seconds=seconds,
            refused=self.refused,
            kills=0,
        )

    def view(self, names: Mapping[str, str], totals: Mapping[str, int]) -> View:
        """Return what a screen shows of the run."""
        began = time.monotonic()
        order = "one order everywhere" if self.same_order else "orders differ"
        return View(
            title=f"The same directly: {len(self.flights)} services → "
            f"{POOL * len(self.flights)} connections → Postgres ({order})",
            names=names,
            totals=totals,
            sent=lambda: self.sent,
            committed=lambda: self.committed,
            writer=None,
            foot=lambda: (
                f"{self.committed.total() / (time.monotonic() - began):,.0f}/s · "
                f"deadlocks {self.retries:,} · refused {self.refused:,} · "
                f"connections {self.connections.now} · {time.monotonic() - began:.0f} s"
            ),
        )

    async def _watch(self, monitor: asyncpg.Connection[asyncpg.Record]) -> None:
        while True:
            await self.connections.sample(monitor)
            await asyncio.sleep(EVERY_S)

    async def _serve(self, carrier: str) -> None:
        async with asyncpg.create_pool(
            self.database_url,
            database=self.database,
            min_size=POOL,
            max_size=POOL,
            server_settings={"application_name": f"service-{carrier}"},
        ) as pool:
            waiting = iter(self.flights[carrier])
            async with asyncio.TaskGroup() as group:
                for number in range(TASKS):
                    group.create_task(
                        self._work(carrier, pool, waiting), name=f"{carrier} {number}"
                    )

    async def _work(
        self,
        carrier: str,
        pool: asyncpg.Pool[asyncpg.Record],
        waiting: Iterator[Flight],
    ) -> None:
        for row, fields in waiting:
            self.sent[carrier] += 1
            try:
                departure = validate(row, fields)
            except BadRow:
                self.refused += 1
                continue
            await self._record(pool, departure)
            self.committed[carrier] += 1

    async def _record(self, pool: asyncpg.Pool[asyncpg.Record], departure: Departure) -> None:
        statements = list(_statements(departure, same_order=self.same_order))
        while True:
            try:
                async with pool.acquire() as connection, connection.transaction():
                    for sql, *values in statements:
                        await connection.execute(str(sql), *values)
            except asyncpg.DeadlockDetectedError:
                self.retries += 1
            else:
                self.statements += len(statements)
                return


def _statements(departure: Departure, *, same_order: bool) -> Iterator[Statement]:
    d = departure
    cancelled, late, delay = int(d.cancelled), int(d.late), d.departure_delay or 0
    miles = 0 if d.cancelled else d.miles
    yield (
        *(_INSERT, d.row, d.scheduled_at, d.day, d.carrier, d.flight, d.tail, d.origin, d.dest),
        *(d.miles, d.departure_delay, d.arrival_delay, d.air_minutes),
    )
    airline = (_AIRLINE, d.carrier, cancelled, late, delay, miles)
    airport_hour = (_AIRPORT_HOUR, d.origin, d.hour, cancelled, late, delay)
    if same_order or not d.cancelled:
        yield from (airline, airport_hour)
    else:
        yield from (airport_hour, airline)
    if d.tail is not None:
        yield (_AEROPLANE, d.tail, cancelled, miles, d.air_minutes or 0)
