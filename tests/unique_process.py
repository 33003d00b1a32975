"""A process that enqueues the same unique jobs as nine others, at the same moment.

``python -m tests.unique_process URL ROUNDS``: it says that it is there, waits for the start, and
prints for each round the id of the job that it got and whether that was its own.
"""

from __future__ import annotations

import asyncio
import os
import sys

import runner
from runner import Context, Unique, task

START = "start"
HERE = "here"


@task(unique=Unique(by="number", until="start"))
async def only(_ctx: Context, number: int, process: int) -> None: ...


async def main(url: str, rounds: int) -> None:
    async with runner.connect(url) as client:
        await client.rpush(HERE, os.getpid())  # type: ignore[misc]
        await client.blpop(START)  # type: ignore[arg-type,misc]
        calls = (client.enqueue(only, number, os.getpid()) for number in range(rounds))
        for number, job in enumerate(await asyncio.gather(*calls)):
            sys.stdout.write(f"{number} {job.job_id} {int(job.is_new)}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
