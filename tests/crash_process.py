"""Workers and writers that are cheap to start, for a test that kills them by the hundred.

``python -m tests.crash_process REDIS_URL DATABASE_URL LOG`` reads ``worker`` or ``writer VARIANT``
line by line, forks such a process and prints its id. It has imported everything before, so a new
process costs milliseconds. At the end of its input all of them are killed.

Variants of the writer, for the control that the test can fail:

- ``sound``: the writer as it is.
- ``before``: the position, with the ledger, is committed before the batch.
- ``after``: the batch is committed before the position, and without the ledger, which would
  otherwise hide that it is applied again.

Both leave a moment between the two commits, so that a kill is likely to hit it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, Any

import uvloop
from msgspec import structs
from redis.asyncio import Redis

from runner import Context, RedisSettings, Worker, task
from runner.codec import MsgpackCodec
from runner.writer import Candidate, apply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runner.writer.entries import Unit
    from runner.writer.steps import Step

LEASE_S = 2.0
TERM_S = 0.5
BETWEEN_COMMITS_S = 0.03


@task(name="purchase")
async def purchase(ctx: Context, caller: str, number: int) -> int:
    """Write to four tables: what is written twice or never shows in each of them."""
    await asyncio.sleep(0.005)
    ctx.db.insert("purchase", job=ctx.job_id)
    ctx.db.insert("log", caller=caller, number=number)
    ctx.db.add("total", key={"caller": caller}, missing="insert", n=1)
    ctx.db.add("stock", key={"item": number % 5}, n=-1)
    return number


def run_worker(redis_url: str) -> None:
    """Run a worker that leaves the writing to others."""
    Worker(
        [purchase],
        redis_settings=RedisSettings.from_dsn(redis_url),
        codec="msgpack",
        lease=LEASE_S,
        max_jobs=50,
        max_crashes=1000,  # here workers die of their tester, not of a job
        poll_delay=0.2,
    ).run()


def run_writer(redis_url: str, database_url: str, variant: str) -> None:
    """Run a candidate until it is killed."""
    if variant != "sound":
        commits = {"before": _commit_before, "after": _commit_after}
        setattr(apply.Applier, "commit", commits[variant])  # noqa: B010  mypy knows methods as fixed

    async def stand() -> None:
        redis = Redis.from_url(redis_url)
        await Candidate(
            redis=redis,
            database_url=database_url,
            codec=MsgpackCodec(),
            name=f"writer:{os.getpid()}",
            term_s=TERM_S,
        ).start()
        await asyncio.Event().wait()

    uvloop.run(stand())


_commit = apply.Applier.commit
_move = apply._move


async def _commit_before(
    self: apply.Applier,
    steps: Sequence[Step],
    units: Sequence[Unit],
    refused: Sequence[tuple[str, bytes]] = (),
    *,
    planned: bool = True,
) -> dict[str, bytes]:
    last = units[-1].entry
    await self._fused((), [unit.key for unit in units if unit.key], (), last)
    self.office.position = last
    await asyncio.sleep(BETWEEN_COMMITS_S)
    unrecorded = [structs.replace(unit, key=b"") for unit in units]
    return await _commit(self, steps, unrecorded, refused, planned=planned)


async def _commit_after(
    self: apply.Applier,
    steps: Sequence[Step],
    units: Sequence[Unit],
    refused: Sequence[tuple[str, bytes]] = (),
    *,
    planned: bool = True,
) -> dict[str, bytes]:
    position, last = self.office.position, units[-1].entry
    apply._move = _stay
    try:
        unrecorded = [structs.replace(unit, key=b"") for unit in units]
        answers = await _commit(self, steps, unrecorded, refused, planned=planned)
    finally:
        apply._move = _move
    self.office.position = position
    await asyncio.sleep(BETWEEN_COMMITS_S)
    await self._fused((), [], (), last)
    self.office.position = last
    return answers


def _stay(first: int) -> str:
    """Look at the fence as the real one does, and leave the position where it is."""
    return _move(first).replace(
        f"SET position = ${first}",
        f"SET position = CASE WHEN ${first}::text IS NULL THEN '' ELSE position END",
    )


def fork(role: list[str], redis_url: str, database_url: str, log: str) -> int:
    """Start one process and return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        said = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        if role[0] == "worker":
            run_worker(redis_url)
        else:
            run_writer(redis_url, database_url, role[1])
        status = 0
    except BaseException:  # noqa: BLE001  nothing may return into the loop below
        traceback.print_exc()
    os._exit(status)


def main(redis_url: str, database_url: str, log: str) -> None:
    """Fork what is asked for, until the input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    children: list[int] = []
    for line in iter(sys.stdin.readline, ""):
        children.append(fork(line.split(), redis_url, database_url, log))
        sys.stdout.write(f"{children[-1]}\n")
        sys.stdout.flush()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


__all__: Any = ["LEASE_S", "TERM_S", "purchase"]

if __name__ == "__main__":
    main(*sys.argv[1:])
