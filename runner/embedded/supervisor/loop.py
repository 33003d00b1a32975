"""Carry out the plan and the commands, and end everything when the parent is gone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from .children import POLL_S, Children, adopt_orphans
from .messages import Answer, Command, Plan, ServerError
from .postgres import Postgres
from .valkey import Redis

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .server import Server

__all__ = ["Supervisor", "main", "supervise"]

PARENT_POLL_S: Final = 1.0


class Supervisor:
    """Both servers, and what is done with them."""

    def __init__(self, plan: Plan) -> None:
        self._temporary = Path(plan.temporary)
        self._servers: dict[str, Server] = {}
        self.children = Children(plan.account)
        if plan.redis:
            redis = Redis(plan.redis, self.children, plan.start_timeout_s)
            self._servers["redis"] = redis
        if plan.postgres:
            postgres = Postgres(plan.postgres, self.children, plan.start_timeout_s)
            self._servers["postgres"] = postgres

    async def start(self) -> Answer:
        """Start both servers at once."""
        return await self._answer(*(server.start() for server in self._servers.values()))

    async def obey(self, command: Command) -> Answer:
        """Carry out one command on one server."""
        server = self._servers[command.server]
        match command.do:
            case "start":
                return await self._answer(server.start())
            case "stop":
                return await self._answer(server.stop(kill=command.kill))
            case "restart":
                return await self._answer(server.restart(kill=command.kill))
            case unknown:
                return Answer(error=f"no command is called {unknown}")

    async def end(self) -> None:
        """Stop both servers at once and remove what is temporary."""
        stopped = asyncio.gather(*(server.stop() for server in self._servers.values()))
        try:
            await stopped
            await self.children.end_orphans()
        finally:
            await self._remove_temporary()

    async def _remove_temporary(self) -> None:
        for _ in range(50):  # a dying process may still put a file there
            shutil.rmtree(self._temporary, ignore_errors=True)
            if not self._temporary.exists():
                return
            await asyncio.sleep(POLL_S)

    async def _answer(self, *works: Coroutine[None, None, None]) -> Answer:
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        errors = [outcome for outcome in outcomes if outcome is not None]
        for error in errors:
            if not isinstance(error, ServerError):
                raise error
        states = {name: server.state for name, server in self._servers.items()}
        return Answer(error="\n".join(map(str, errors)) or None, **states)


async def supervise(parent: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
    """Serve the process `parent` over the two pipes until it wants no more, or is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdin)
    if not (line := await reader.readline()):
        return
    supervisor = Supervisor(Plan.from_line(line))
    told_to_end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told_to_end.set)
    loop.add_signal_handler(signal.SIGCHLD, supervisor.children.reap)
    commands: asyncio.Queue[Command] = asyncio.Queue()
    tasks = [
        asyncio.create_task(told_to_end.wait(), name="SIGTERM"),
        asyncio.create_task(_until_orphaned(parent), name="parent"),
        asyncio.create_task(_listen(reader, commands), name="listen"),
        asyncio.create_task(_obey(supervisor, commands, stdout), name="obey"),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await supervisor.end()
    for task in done:
        task.result()  # a mistake of ours shows itself on standard error


async def _until_orphaned(parent: int) -> None:
    """Wait for the parent's death, even if a fork of it still holds the pipe open."""
    while os.getppid() == parent:  # noqa: ASYNC110  the system has no event that is portable
        await asyncio.sleep(PARENT_POLL_S)


async def _listen(reader: asyncio.StreamReader, commands: asyncio.Queue[Command]) -> None:
    async for line in reader:
        command = Command(**json.loads(line))
        if command.do == "end":
            return
        commands.put_nowait(command)


async def _obey(
    supervisor: Supervisor, commands: asyncio.Queue[Command], stdout: IO[bytes]
) -> None:
    answer = await supervisor.start()
    while True:
        stdout.write(answer.to_line())
        stdout.flush()
        answer = await supervisor.obey(await commands.get())


def main(parent: int) -> None:
    """Run the supervisor of the process `parent` on the standard pipes."""
    os.umask(0o077)
    adopt_orphans()
    asyncio.run(supervise(parent, sys.stdin.buffer, sys.stdout.buffer))
