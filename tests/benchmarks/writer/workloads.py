"""What is written: the tables, and each workload's one write, ours and by asyncpg."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

if TYPE_CHECKING:
    from runner import Database

HOT_ROWS: Final = 1_000
ACCOUNTS: Final = 100
COUNTERS: Final = 16
TRIES_AT_DEADLOCK: Final = 100

SCHEMA: Final = f"""
CREATE TABLE events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    caller int NOT NULL, number int NOT NULL, note text NOT NULL);
CREATE TABLE hot (id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0, note text)
    WITH (fillfactor = 50);
INSERT INTO hot (id) SELECT generate_series(0, {HOT_ROWS - 1});
CREATE TABLE counter (id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0) WITH (fillfactor = 10);
INSERT INTO counter SELECT generate_series(0, {COUNTERS - 1});
CREATE TABLE latest (id int PRIMARY KEY, number int NOT NULL);
CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 10);
INSERT INTO account SELECT generate_series(0, {ACCOUNTS - 1}), 1000;
CREATE TABLE done (number int PRIMARY KEY);
"""

INSERT: Final = "INSERT INTO events (caller, number, note) VALUES ($1, $2, $3)"
ADD_HOT: Final = "UPDATE hot SET n = n + 1 WHERE id = $1"
NOTE_HOT: Final = "UPDATE hot SET note = $2 WHERE id = $1"
COUNT: Final = "UPDATE counter SET n = n + $2 WHERE id = $1"
UPSERT: Final = (
    "INSERT INTO latest (id, number) VALUES ($1, $2)"
    " ON CONFLICT (id) DO UPDATE SET number = excluded.number"
)
MOVE: Final = "UPDATE account SET balance = balance + $2 WHERE id = $1"
TEXT: Final = "a note of some forty characters, as usual"

OursWrite: TypeAlias = "Callable[[Database, int, int], Awaitable[Any]]"
PlainWrite: TypeAlias = Callable[[Any, int, int], Awaitable[Any]]
"""The pool, the caller's number, and the number of its write."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One write, both ways; and a query that counts what must be as many as were answered."""

    ours: OursWrite
    plain: PlainWrite
    counted: str


async def _insert(db: Database, caller: int, number: int) -> None:
    await db.insert("events", caller=caller, number=number, note=TEXT)


async def _insert_plainly(pool: Any, caller: int, number: int) -> None:
    await pool.execute(INSERT, caller, number, TEXT)


async def _add(db: Database, _caller: int, _number: int) -> None:
    await db.add("hot", key={"id": random.randrange(HOT_ROWS)}, n=1)


async def _add_plainly(pool: Any, _caller: int, _number: int) -> None:
    await pool.execute(ADD_HOT, random.randrange(HOT_ROWS))


async def _mix(db: Database, caller: int, number: int) -> None:
    match (caller + number) % 4:
        case 0:
            await db.insert("events", caller=caller, number=number, note=TEXT)
        case 1:
            await db.update("hot", key={"id": random.randrange(HOT_ROWS)}, note=TEXT)
        case 2:
            await db.add("counter", key={"id": random.randrange(COUNTERS)}, n=1)
        case _:
            await db.upsert("latest", {"id": random.randrange(HOT_ROWS), "number": number})


async def _mix_plainly(pool: Any, caller: int, number: int) -> None:
    match (caller + number) % 4:
        case 0:
            await pool.execute(INSERT, caller, number, TEXT)
        case 1:
            await pool.execute(NOTE_HOT, random.randrange(HOT_ROWS), TEXT)
        case 2:
            await pool.execute(COUNT, random.randrange(COUNTERS), 1)
        case _:
            await pool.execute(UPSERT, random.randrange(HOT_ROWS), number)


async def _transfer(db: Database, _caller: int, _number: int) -> None:
    giver, taker = random.sample(range(ACCOUNTS), 2)
    async with db.unit() as unit:
        unit.add("account", key={"id": giver}, balance=-1)
        unit.add("account", key={"id": taker}, balance=1)


async def _transfer_plainly(pool: Any, _caller: int, _number: int) -> None:
    giver, taker = random.sample(range(ACCOUNTS), 2)
    for _ in range(TRIES_AT_DEADLOCK):
        try:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(MOVE, giver, -1)
                await connection.execute(MOVE, taker, 1)
        except asyncpg.DeadlockDetectedError:
            continue
        return
    raise AssertionError("a transfer was the victim of every deadlock")


WORKLOADS: Final = {
    "inserts": Workload(_insert, _insert_plainly, "SELECT count(*) FROM events"),
    "updates": Workload(_add, _add_plainly, "SELECT sum(n) FROM hot"),
    "mixed": Workload(_mix, _mix_plainly, ""),
    "transfers": Workload(_transfer, _transfer_plainly, ""),
}
