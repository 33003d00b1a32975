"""What a place costs: ``python -m tests.benchmarks.unique``.

Jobs are enqueued in ticks of 300 on a Valkey of its own: with no option, with a place that is
free, and with one that another job has. The client's processor time and the time that the server
spends in the script are read, in turns, and the median of the rounds is shown: both in
microseconds a job, so that a busy machine changes them little.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import runner
from runner import Debounce, Throttle, Unique, embedded

if TYPE_CHECKING:
    from runner.tasks import BoundTask

TICK = 300
SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval")


@runner.task
async def noop(_ctx: runner.Context, number: int, turn: int) -> None:
    """Do nothing: nobody runs it."""


BY = ("number",)
CASES: dict[str, BoundTask[Any, None]] = {
    "no option": noop.options(),
    "unique, all new": noop.options(unique=True),
    "unique, there already": noop.options(unique=Unique(by=BY)),
    "unique, replaced": noop.options(unique=Unique(by=BY, second="replace")),
    "debounced": noop.options(debounce=Debounce(3600, by=BY)),
    "throttled": noop.options(throttle=Throttle(3600, by=BY)),
}


async def measure(
    client: runner.Client, bound: BoundTask[Any, None], ticks: int
) -> tuple[float, float]:
    """Return the client's and the server's microseconds a job."""
    await client.flushdb()
    await tick(client, bound, 0)
    await client.config_resetstat()
    began = time.process_time()
    for turn in range(1, ticks + 1):
        await tick(client, bound, turn)
    took_s = time.process_time() - began
    stats: dict[str, Any] = await client.info("commandstats")
    server_us = sum(stats.get(name, {}).get("usec", 0) for name in SCRIPTS)
    return took_s * 1e6 / (ticks * TICK), server_us / (ticks * TICK)


async def tick(client: runner.Client, bound: BoundTask[Any, None], turn: int) -> None:
    """Enqueue the jobs of one tick."""
    await asyncio.gather(*(client.enqueue(bound, number, turn) for number in range(TICK)))


async def compare(arguments: Any) -> dict[str, list[tuple[float, float]]]:
    """Measure all cases on one server, in turns."""
    servers = await asyncio.to_thread(embedded.start, postgres=False)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    try:
        async with runner.connect(servers.redis_url) as client:
            for _ in range(arguments.rounds):
                for name, bound in CASES.items():
                    found[name].append(await measure(client, bound, arguments.ticks))
    finally:
        await asyncio.to_thread(servers.stop)
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ticks", type=int, default=50)
    arguments = parser.parse_args()
    found = asyncio.run(compare(arguments))
    sys.stdout.write(f"{'case':24} {'client us/job':>13} {'server us/job':>13}\n")
    for name, rounds in found.items():
        client_us, server_us = (statistics.median(column) for column in zip(*rounds, strict=True))
        sys.stdout.write(f"{name:24} {client_us:13.1f} {server_us:13.1f}\n")


if __name__ == "__main__":
    main()
