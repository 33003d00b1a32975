"""Tell what a job has given the writer to write, as far as the stream still has it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from redis.exceptions import ResponseError

from runner import keys
from runner.errors import DecodeError
from runner.writer.entries import decode_rejection, read_entry
from runner.writer.status import ZERO, exceeds
from runner.writer.units import parse_shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from runner.writer.entries import Unit

__all__ = ["JobWrites", "WrittenCall", "writes_of"]

WritesState: TypeAlias = Literal["waiting", "committed", "refused"]

MOST_ENTRIES = 300
BEFORE_MS, AFTER_MS = 2_000, 3_000
"""Around a job's end: its worker's clock and Redis's need not agree."""
COMMITS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """What the calls of one kind do to one table.

    Attributes:
        kind: insert, upsert, add, update, delete or execute.
        table: the table, or the text of raw SQL.
        rows: how many rows are given.
    """

    kind: str
    table: str
    rows: int


@dataclass(frozen=True, slots=True)
class JobWrites:
    """One unit of a job: its writes that commit together.

    Attributes:
        entry: the id of its entry in the stream.
        state: "waiting" for the writer, "committed", or "refused" by Postgres.
        at_commit: it is one that the job sent before its end (`ctx.db.commit`).
        calls: what is written, in order.
        problem: why it cannot be read, or was refused.
    """

    entry: str
    state: WritesState
    at_commit: bool
    calls: tuple[WrittenCall, ...]
    problem: str = ""


async def writes_of(redis: Redis, job_id: str, *, ended_ms: int = 0) -> list[JobWrites]:
    """Return the units of a job, the oldest first.

    Units that were committed stay in the stream for about ten minutes; of a job that has ended
    they are looked for among the three hundred entries around its end.

    Args:
        redis: the connection pool.
        job_id: the job.
        ended_ms: when it ended, Unix time in milliseconds; 0: it has not.
    """
    raw = keys.raw_id(job_id)
    async with redis.pipeline(transaction=True) as pipe:
        untyped: Any = pipe  # typed for ids that are text
        untyped.get(keys.IN_PROGRESS.encode() + raw)
        untyped.hgetall(keys.COMMITS.encode() + raw)
        untyped.hget(keys.WRITER, "position")
        holder, commits, position = await pipe.execute(raise_on_error=False)
    done = position.decode() if isinstance(position, bytes) else ZERO
    entries = _noted(commits if isinstance(commits, dict) else {})
    if isinstance(holder, bytes) and holder.startswith(keys.COMMITTING.encode()):
        entries.append(holder.removeprefix(keys.COMMITTING.encode()).decode())
    units = [unit for entry in entries for unit in await _read(redis, entry, entry)]
    if ended_ms:
        first, last = ended_ms - BEFORE_MS, ended_ms + AFTER_MS
        around = await _read(redis, str(max(first, 0)), str(last))
        units += [unit for unit in around if _is_of(unit, job_id)]
    told = {unit.entry: unit for unit in units}
    refused = await _refused(redis, list(told))
    return [
        _told(unit, done, refused.get(entry, "")) for entry, unit in sorted(told.items(), key=_age)
    ]


def _noted(commits: Mapping[bytes, bytes]) -> list[str]:
    """Return the entries of the commits that a job has sent."""
    noted = [value for name, value in commits.items() if name.isdigit()]
    return [value.split()[0].decode() for value in noted if value.strip()][-COMMITS_SHOWN:]


async def _read(redis: Redis, first: str, last: str) -> list[Unit]:
    try:
        found = await redis.xrange(keys.UNITS, first, last, count=MOST_ENTRIES)
    except ResponseError:
        return []  # no id of an entry: somebody else's key
    return [read_entry(entry.decode(), fields) for entry, fields in found]


def _is_of(unit: Unit, job_id: str) -> bool:
    whose = unit.job or unit.commit
    return whose is not None and whose.job_id == job_id


async def _refused(redis: Redis, entries: list[str]) -> dict[str, str]:
    """Return why Postgres refused them, of those that it refused."""
    if not entries:
        return {}
    found = await redis.mget([keys.FAILED_UNIT + entry for entry in entries])
    said = zip(entries, found, strict=True)
    return {entry: str(decode_rejection(why)) for entry, why in said if why}


def _told(unit: Unit, done: str, refused: str) -> JobWrites:
    state: WritesState = "waiting" if exceeds(unit.entry, done) else "committed"
    rows: Counter[tuple[str, str]] = Counter()
    problem = unit.problem
    try:
        for shape_text, values in unit.operations:
            shape = parse_shape(shape_text)
            width = len(shape.columns)
            rows[shape.kind, shape.table] += len(values) // width if width else 1
    except DecodeError as exc:
        problem = str(exc)
    return JobWrites(
        entry=unit.entry,
        state="refused" if refused or problem else state,
        at_commit=unit.commit is not None,
        calls=tuple(WrittenCall(kind, table, count) for (kind, table), count in rows.items()),
        problem=problem or refused,
    )


def _age(item: tuple[str, Unit]) -> tuple[int, ...]:
    return tuple(int(part) for part in item[0].split("-"))
