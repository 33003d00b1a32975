"""What tests of fleets share: a folder with settings, a supervisor, and what its workers noted."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).parents[1]
START_S = 60
MODULE = "shop"

SETTINGS = '''
import asyncio
import os
import time
from urllib.parse import urlsplit

import runner
from runner import Context, RedisSettings, task

HELD = []


async def note(ctx):
    """Say who runs which job, when: the runs of a job are a list."""
    await ctx.client.rpush(f"runs:{ctx.job_id}", f"{os.getpid()} {time.time()}")


@task
async def quick(ctx: Context, seconds: float = 0) -> int:
    await note(ctx)
    await asyncio.sleep(seconds)
    return os.getpid()


@task(max_running=3)
async def limited(ctx: Context, seconds: float) -> int:
    await note(ctx)
    await asyncio.sleep(seconds)
    return os.getpid()


@task
def in_thread(ctx: Context, seconds: float) -> int:
    ctx.run(note(ctx))
    time.sleep(seconds)
    return os.getpid()


@task(executor="process")
def in_process(ctx: Context, seconds: float) -> int:
    time.sleep(seconds)
    return os.getppid()


@task
async def hold(ctx: Context, megabytes: int) -> int:
    """Leak memory."""
    await note(ctx)
    HELD.append(bytearray(os.urandom(1024)) * (megabytes * 1000))
    await asyncio.sleep(0.01)
    return os.getpid()


@task(keep_result=0)
async def burn(ctx: Context, milliseconds: float) -> None:
    """Use a processor."""
    until = time.thread_time() + milliseconds / 1000
    while time.thread_time() < until:
        pass


@task
async def leave_a_task(ctx: Context, seconds: float) -> None:
    await note(ctx)
    HELD.append(asyncio.create_task(asyncio.sleep(3600)))
    await asyncio.sleep(seconds)


@task
async def connect(ctx: Context, keeps: bool) -> None:
    """Leak a connection: keep it for ever, or drop it unclosed."""
    await note(ctx)
    place = urlsplit(os.environ["REDIS_URL"])
    streams = await asyncio.open_connection(place.hostname, place.port)
    if keeps:
        HELD.append(streams)


@task
async def eat_and_refuse(ctx: Context, seconds: float) -> None:
    """Eat memory until somebody says no, and do not end all the same."""
    await note(ctx)
    eats = True
    for _ in range(int(seconds * 20)):
        if eats:
            HELD.append(bytearray(os.urandom(1024)) * 20_000)
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            eats = False


@task
async def eat(ctx: Context, seconds: float) -> None:
    """Eat memory until somebody ends it."""
    await note(ctx)
    for _ in range(int(seconds * 20)):
        HELD.append(bytearray(os.urandom(1024)) * 20_000)
        await asyncio.sleep(0.05)


@task
async def block(ctx: Context, seconds: float) -> None:
    await note(ctx)
    time.sleep(seconds)


@task
async def hold_and_block(ctx: Context, megabytes: int, seconds: float) -> None:
    await note(ctx)
    HELD.append(bytearray(os.urandom(1024)) * (megabytes * 1000))
    time.sleep(seconds)


@task
async def crash(ctx: Context) -> None:
    await note(ctx)
    os.kill(os.getpid(), 11)


class Large(runner.Part):
    """Hold memory from the start on, as a model does."""

    name = "large"

    async def start(self, worker) -> None:
        HELD.append(bytearray(os.urandom(1024)) * 300_000)


@task
async def leave_an_orphan(ctx: Context) -> int:
    """Start a program that ends after its parent has: somebody else must reap it."""
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", "setsid sleep 0.2 & echo $!", stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return int(out)


class WorkerSettings(runner.WorkerSettings):
    functions = [quick, hold]
    functions += [burn, leave_a_task, eat, block, hold_and_block, crash, leave_an_orphan]
    functions += [connect, eat_and_refuse, limited, in_thread]
    redis_settings = RedisSettings.from_dsn(os.environ["REDIS_URL"])
    poll_delay = 0.2
    lease = 2
{more}
'''


@dataclass
class Fleet:
    """A supervisor that runs, and what it says."""

    process: asyncio.subprocess.Process
    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.said)

    def says(self, text: str, times: int = 1) -> bool:
        return self.text.count(text) >= times

    def members(self) -> list[int]:
        """Return the process ids of its workers."""
        return children_of(self.process.pid)

    async def ready(self, times: int = 1) -> None:
        await wait_until(
            lambda: self.says("the fleet is ready", times),
            description=f"the fleet is ready:\n{self.text}",
            timeout_s=START_S,
        )

    async def end(self, *signals: signal.Signals) -> int:
        """Send these, wait for the end, and return the status."""
        for signum in signals or (signal.SIGTERM,):
            self.process.send_signal(signum)
        async with asyncio.timeout(START_S):
            return await self.process.wait()


def children_of(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that has ended and was not reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] not in "ZX"


def write_settings(folder: Path, more: str = "") -> None:
    lines = "".join(f"    {line}\n" for line in more.splitlines())
    (folder / f"{MODULE}.py").write_text(SETTINGS.replace("{more}", lines))


def environment_of(folder: Path, url: str, **more: str) -> dict[str, str]:
    path = f"{folder}{os.pathsep}{ROOT}"
    return {**os.environ, "REDIS_URL": url, "PYTHONPATH": path, **more}


@asynccontextmanager
async def fleet(
    folder: Path,
    url: str,
    *words: str,
    more: str = "",
    command: tuple[str, ...] = (sys.executable, "-m", "runner.cli", "worker"),
    **environment: str,
) -> AsyncIterator[Fleet]:
    """Run ``runner worker`` in this folder; nothing of it is left afterwards."""
    write_settings(folder, more)
    process = await asyncio.create_subprocess_exec(
        *command,
        f"{MODULE}.WorkerSettings",
        *words,
        cwd=folder,
        env=environment_of(folder, url, **environment),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Fleet(process, folder)
    reader = asyncio.create_task(_read(running), name="read what the fleet says")
    seen: set[int] = set()
    try:
        yield running
    finally:
        seen.update(running.members())
        if process.returncode is None:
            process.kill()
        await process.wait()
        await wait_until(
            lambda: not any(map(is_alive, seen)),
            description=f"the workers have ended:\n{running.text}",
            timeout_s=30,
        )
        await reader


async def _read(running: Fleet) -> None:
    assert running.process.stdout is not None
    async for line in running.process.stdout:
        running.said.append(line.decode())


async def runs_of(client: Any, job_id: str) -> list[int]:
    """Return the processes in which a job was run, in order."""
    return [int(run.split()[0]) for run in await client.lrange(f"runs:{job_id}", 0, -1)]
