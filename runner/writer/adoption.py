"""Adopt a database: an operator's word that it and a Redis belong together from now on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec

from runner import keys
from runner.errors import WriteRejected
from runner.types import Retention
from runner.writer.office import adopt
from runner.writer.queries import migrate
from runner.writer.session import close, connect
from runner.writer.settle import Settler
from runner.writer.status import ZERO, exceeds
from runner.writer.stream import entries_between

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from runner.codec import Codec
    from runner.writer.entries import Unit

__all__ = ["adopt_database"]

_WHY = (
    "not applied: the database was adopted while this unit waited in the stream. Requeue the job "
    "if its writes are still wanted"
)


async def adopt_database(
    redis: Redis, database_url: str, codec: Codec, *, retention: Retention | None = None
) -> str:
    """Give a Redis and a database one new identity, and return it.

    Jobs whose units wait in the stream fail with `WriteRejected` and become dead letters: what
    the stream holds is not applied here, and nobody waits for it for ever.

    Args:
        redis: a client that does not decode replies.
        database_url: leads to Postgres itself.
        codec: what jobs and results are written in.
        retention: how long those letters are kept, and whether there is a history to correct.

    Raises:
        WriterUnavailable: the database cannot be the writer's.
    """
    connection = await connect(database_url)
    try:
        await migrate(connection)
        await _refuse_what_waits(redis, codec, retention or Retention())
        return await adopt(redis, connection)
    finally:
        await close(connection)


async def _refuse_what_waits(redis: Redis, codec: Codec, retention: Retention) -> None:
    last = await redis.xrevrange(keys.UNITS, count=1)
    if not last:
        return
    answered = await cast(Any, redis.hget(keys.WRITER, "answered"))
    done = answered.decode() if answered else ZERO
    settler = Settler(redis, codec, "", ZERO, retention)
    # A job that was settled carries no marker any more, and is left as it is; so is a commit of a
    # running job that has its answer, and a unit of a service that had its own.
    async for entries in entries_between(redis, ZERO, last[0][0].decode()):
        units = [_left_to_fail(unit, done) for unit in entries]
        refused = {
            unit.entry: WriteRejected(_WHY)
            for unit in units
            if unit.job or unit.commit or exceeds(unit.entry, done)
        }
        await settler.settle(units, refused)


def _left_to_fail(unit: Unit, done: str) -> Unit:
    """Return a unit whose job does not run again by itself: that is for a person to say."""
    if unit.job is not None:
        return msgspec.structs.replace(unit, job=msgspec.structs.replace(unit.job, again_ms=-1))
    is_open = unit.commit is not None or exceeds(unit.entry, done)
    return unit if is_open else msgspec.structs.replace(unit, asks=None)
