"""Take office: see that Redis and Postgres belong together, and that neither went back."""

from __future__ import annotations

import contextlib
import logging
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import ResponseError

from runner import keys
from runner.errors import StoreWentBack, WriterUnavailable
from runner.writer.queries import query
from runner.writer.session import LOCK
from runner.writer.status import ZERO, exceeds, note_facts

if TYPE_CHECKING:
    from asyncpg import Connection, Record
    from redis.asyncio import Redis

__all__ = [
    "Office",
    "adopt",
    "check_eviction",
    "check_held",
    "check_pair",
    "note_loss",
    "take_office",
]

logger = logging.getLogger("runner.writer")

_ADOPT = (
    "If they shall belong together from now on, stop the workers and run `runner writer --adopt` "
    "with their settings: units that are in the stream by then count as applied"
)


@dataclass(slots=True)
class Office:
    """What a leader holds.

    Attributes:
        epoch: the number of its term.
        position: the last entry that it knows to be applied.
        ledger: which of the two ledgers is in use.
        lock: the number of the advisory lock.
        answered: the last entry that callers were told of when the term began.
        ledger_age_s: how long the ledger had been in use then.
        losses: how many sessions were lost at this very position before.
        redis_lost: whether the entry at the position is not in the stream any more.
    """

    epoch: int
    position: str
    ledger: int
    lock: int
    answered: str
    ledger_age_s: float = 0.0
    losses: int = 0
    redis_lost: bool = False


async def take_office(connection: Connection[Record], redis: Redis, name: str) -> Office:
    """Begin a new term, which fences every older one.

    Raises:
        StoreWentBack: one store has lost what the other still knows; says what to do.
    """
    row = await connection.fetchrow(query("take_office"), name)
    assert row is not None
    facts = await _facts(redis)
    position = row["position"]
    await _agree(connection, redis, row, facts)
    _check_trimmed(position, facts)
    # Nothing answered yet: what is committed may have been the first batch of a leader that
    # did not live to say so. Settling is repeatable; each job's marker decides.
    answered = facts.get("answered", ZERO)
    redis_lost = await _has_lost(redis, position, answered)
    if exceeds(answered, position):
        logger.warning(
            "Postgres went back from %s to %s, as after a failover to a replica that lacked "
            "commits: applying what is between again, from the stream's tail",
            *(answered, position),
        )
    await note_facts(redis, leader=name, position=position)
    return Office(
        epoch=row["epoch"],
        position=position,
        ledger=row["ledger"],
        lock=LOCK,
        answered=answered,
        # Below nothing, when a clock was set back: the ledger is not kept for as long as that.
        ledger_age_s=max(0.0, row["ledger_age"].total_seconds()),
        losses=_losses(position, facts),
        redis_lost=redis_lost,
    )


async def check_pair(connection: Connection[Record], redis: Redis) -> None:
    """See that both stores belong together, before a writer that is at work is disturbed.

    Raises:
        StoreWentBack: the database is another Redis's; or Redis was emptied.
    """
    if await connection.fetchval(query("has_tables")):
        row = await connection.fetchrow(query("pair"))
        if row is not None:
            _refuse_strangers(row, await _facts(redis))


async def note_loss(redis: Redis, office: Office) -> None:
    """Count a session that was lost while units were applied behind this position."""
    value = f"{office.position} {office.losses + 1}"
    await note_facts(redis, losses=value)


async def check_held(redis: Redis, position: str) -> None:
    """Raise when Redis does not hold the entry at the position any more: a new term mends it."""
    if position != ZERO and not await redis.xrange(keys.UNITS, position, position):
        raise ConnectionResetError(f"Redis has lost the entry {position}: the term is over")


async def check_eviction(redis: Redis) -> None:
    """Raise `WriterUnavailable` where Redis may evict units that are not applied yet."""
    try:
        policy = (await redis.config_get("maxmemory-policy")).get("maxmemory-policy", "")
    except ResponseError:
        logger.warning("cannot see Redis's maxmemory-policy: make sure that it is noeviction")
        return
    if policy and policy != "noeviction":
        raise WriterUnavailable(
            f"Redis's maxmemory-policy is {policy}: at its limit it would throw units away that "
            f"are not applied yet. Set it to noeviction",
        )


async def adopt(redis: Redis, connection: Connection[Record]) -> str:
    """Declare that a Redis and a database belong together; return their new identity.

    Everything in the stream counts as applied, so that no unit is applied twice. Only for
    an operator who knows that the units in the stream are not wanted, and with no writer
    running. See `adoption.adopt_database`, which also ends the jobs that wait for them.
    """
    identity = secrets.token_hex(16)
    last = await redis.xrevrange(keys.UNITS, count=1)
    position = last[0][0].decode() if last else ZERO
    await connection.execute(
        "UPDATE runner.writer SET identity = $1, position = $2, epoch = epoch + 1",
        *(identity, position),
    )
    info: dict[str, Any] = await redis.xinfo_stream(keys.UNITS) if last else {}
    await note_facts(
        redis,
        identity=identity,
        position=position,
        answered=position,
        done=int(info.get("entries-added", 0)),
    )
    await cast(Any, redis.hdel(keys.WRITER, "trimmed"))
    return identity


async def _agree(
    connection: Connection[Record], redis: Redis, row: Record, facts: dict[str, str]
) -> None:
    """See that both stores carry one identity; give them one when both are new."""
    theirs, ours = facts.get("identity"), row["identity"]
    if theirs is not None and theirs == ours:
        return
    _refuse_strangers(row, facts)
    identity = theirs or ours or secrets.token_hex(16)
    await connection.execute(query("set_identity"), identity, row["epoch"])
    await note_facts(redis, identity=identity)
    await _keep_on_disk(redis)


def _refuse_strangers(row: Record, facts: dict[str, str]) -> None:
    theirs, ours = facts.get("identity"), row["identity"]
    if theirs is not None and theirs == ours:
        return
    if theirs is None and row["position"] != ZERO:
        raise StoreWentBack(
            f"Redis does not know this database, which has applied units up to {row['position']}: "
            f"Redis was emptied, or it is another one. {_ADOPT}",
        )
    if theirs is not None and (ours is not None or facts.get("answered", ZERO) != ZERO):
        raise StoreWentBack(
            "the units in Redis belong to another database, or this database was set back to "
            f"a state from before them. {_ADOPT}",
        )


async def _facts(redis: Redis) -> dict[str, str]:
    facts = await cast(Any, redis.hgetall(keys.WRITER))
    return {key.decode(): value.decode() for key, value in facts.items()}


async def _keep_on_disk(redis: Redis) -> None:
    """Wait, this once, until Redis has its identity on disk: without it, it seems another one."""
    with contextlib.suppress(ResponseError):  # no appendonly file, or older than 7.2
        await cast(Any, redis).execute_command("WAITAOF", 1, 0, 2000)


def _losses(position: str, facts: dict[str, str]) -> int:
    at, _, count = facts.get("losses", "").partition(" ")
    return int(count) if at == position else 0


def _check_trimmed(position: str, facts: dict[str, str]) -> None:
    trimmed = facts.get("trimmed")
    if trimmed is not None and exceeds(trimmed, position):
        raise StoreWentBack(
            f"Postgres says that it applied units up to {position}, but Redis has answered and "
            f"dropped them up to {trimmed}: those between are in neither. Restore a database "
            f"that has them. {_ADOPT}",
        )


async def _has_lost(redis: Redis, position: str, answered: str) -> bool:
    """See whether Redis still has the entry at the position, which is never trimmed."""
    if position == ZERO or await redis.xrange(keys.UNITS, position, position):
        return False
    if exceeds(answered, position):
        raise StoreWentBack(
            f"both stores went back: Postgres says that it applied units up to {position}, and "
            f"Redis, which answered them up to {answered}, does not hold the entry {position} any "
            f"more, so what is between cannot be applied again. Restore a database that has "
            f"them. {_ADOPT}",
        )
    logger.error(
        "Redis lost units: the entry %s, the last that was applied, is not in the stream any "
        "more. Jobs whose end was lost with it run again; the ledger keeps their writes from "
        "being applied twice",
        position,
    )
    return True
