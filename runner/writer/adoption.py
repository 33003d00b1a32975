"""Adopt a database: an operator's word that it and a Redis belong together from now on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from runner import keys
from runner.errors import WriteRejected
from runner.writer.office import adopt
from runner.writer.queries import migrate
from runner.writer.session import close, connect
from runner.writer.settle import Settler
from runner.writer.status import ZERO
from runner.writer.stream import entries_between

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from runner.codec import Codec

__all__ = ["adopt_database"]

_WHY = (
    "not applied: the database was adopted while this unit waited in the stream. Requeue the job "
    "if its writes are still wanted"
)


async def adopt_database(redis: Redis, database_url: str, codec: Codec) -> str:
    """Give a Redis and a database one new identity, and return it.

    Jobs whose units wait in the stream fail with `WriteRejected` and become dead letters: what
    the stream holds is not applied here, and nobody waits for it for ever.

    Raises:
        WriterUnavailable: the database cannot be the writer's.
    """
    connection = await connect(database_url)
    try:
        await migrate(connection)
        await _refuse_what_waits(redis, codec)
        return await adopt(redis, connection)
    finally:
        await close(connection)


async def _refuse_what_waits(redis: Redis, codec: Codec) -> None:
    last = await redis.xrevrange(keys.UNITS, count=1)
    if not last:
        return
    settler = Settler(redis, codec, "", ZERO)
    # A job that was settled carries no marker any more, and is left as it is; so is a commit of a
    # running job that has its answer. Whoever else asked is told nothing: it is not known here.
    async for entries in entries_between(redis, ZERO, last[0][0].decode()):
        units = [
            unit if unit.commit else msgspec.structs.replace(unit, asks=None) for unit in entries
        ]
        refused = {unit.entry: WriteRejected(_WHY) for unit in units if unit.job or unit.commit}
        await settler.settle(units, refused)
