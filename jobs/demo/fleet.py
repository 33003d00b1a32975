"""The worker and writer processes of a run: start, watch, kill on purpose, stop.

    start ──▶ running ──▶ ended ──▶ killed by us?   start it again
                 │                  ended by itself? say so, start it again, three times at most
                 └── stop: SIGTERM to all, SIGKILL to those that stay

Each process leads its own session, so that Ctrl-C at the terminal reaches the demo alone and
the demo can stop them in order; `child` ends them when the demo itself is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from jobs.demo.options import ROOT
from jobs.demo.report import place
from runner import embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

SETTINGS: Final = "settings.WorkerSettings"
MOST_FAILURES = 3
STOP_S = 15.0
KILL_EVERY_S = (2.0, 3.0)
FIRST_KILLS = (0.25, 0.5)
LOOK_EVERY_S = 0.02
WRITER: Final = "writer"
TAIL_LINES = 25


class FleetError(RuntimeError):
    """Raised when a process keeps ending by itself; ends with the tail of its log."""


@dataclass(slots=True, kw_only=True)
class Member:
    """One process of the fleet and its successors."""

    name: str
    command: tuple[str, ...]
    log: Path
    process: asyncio.subprocess.Process | None = None
    killed: bool = False
    failures: int = 0

    @property
    def alive(self) -> bool:
        """Whether the process runs, as far as we have heard."""
        return self.process is not None and self.process.returncode is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process if it runs."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(number)


@dataclass(slots=True, kw_only=True)
class Fleet:
    """The worker processes and the writer process.

    Attributes:
        environment: what the processes find in their environment beyond ours.
        logs: the folder of their logs.
        say: tells the person at the terminal.
        members: one for each process.
        kills: when processes were killed on purpose, by the monotonic clock.
    """

    environment: Mapping[str, str]
    logs: Path
    say: Callable[[str], None]
    members: list[Member] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def plan(self, workers: int) -> None:
        """Plan so many workers and one writer, or nothing; `keep_running` starts them."""
        if workers:
            self.logs.mkdir(parents=True, exist_ok=True)
        for number in range(1, workers + 1):
            self._add(f"worker-{number}", "arq", SETTINGS)
        if workers:
            self._add(WRITER, "runner.cli", "writer", SETTINGS)

    def _add(self, name: str, *command: str) -> None:
        log = self.logs / f"{name}.log"
        log.write_bytes(b"")
        self.members.append(Member(name=name, command=command, log=log))

    async def keep_running(self, member: Member) -> None:
        """Start a process, and start it again when it ends, until the fleet stops.

        Raises:
            FleetError: it ended by itself too often.
        """
        while not self._stopping.is_set():
            member.killed = False
            member.process = await self._start(member)
            code = await member.process.wait()
            if not self._stopping.is_set() and not member.killed:
                self._count_failure(member, code)

    async def _start(self, member: Member) -> asyncio.subprocess.Process:
        arguments = (embedded.TIED, str(os.getpid()), *member.command)
        with member.log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def _count_failure(self, member: Member, code: int) -> None:
        member.failures += 1
        ended = _ending(code)
        if member.failures > MOST_FAILURES:
            raise FleetError(
                f"{member.name} ended by itself {member.failures} times, last {ended}; "
                f"the end of {place(member.log)}:\n{tail(member.log)}",
            )
        self.say(
            f"{member.name} ended by itself {ended}; starting it again (see {place(member.log)})"
        )

    async def kill_now_and_then(
        self,
        seed: int,
        *,
        leader: Callable[[], str],
        sent: Callable[[], float],
    ) -> None:
        """Kill a worker, then the writer, then a worker, ... every few seconds.

        The first two do not wait for the time when the run is a short one: they are killed as
        soon as a quarter and half of the work is sent.

        Args:
            seed: of the choice among workers, and of the times.
            leader: returns the name of the elected writer, which may be in any process.
            sent: returns which part of the work is sent.
        """
        chance = random.Random(seed)  # noqa: S311  not for secrets
        workers = [member for member in self.members if member.name != WRITER]
        for turn in itertools.count():
            until = time.monotonic() + chance.uniform(*KILL_EVERY_S)
            enough = FIRST_KILLS[turn] if turn < len(FIRST_KILLS) else math.inf
            while time.monotonic() < until and sent() < enough:  # noqa: ASYNC110  two conditions
                await asyncio.sleep(LOOK_EVERY_S)
            elected = self._elected(leader())
            victim = elected if turn % 2 else chance.choice(workers)
            if victim.alive:
                self._kill(victim, "the elected writer" if victim is elected else "")

    def _elected(self, leader: str) -> Member:
        """Return the process whose candidate is elected; else the one that only writes."""
        for member in self.members:
            if member.process is not None and str(member.process.pid) in _numbers(leader):
                return member
        return next(member for member in self.members if member.name == WRITER)

    def _kill(self, member: Member, office: str) -> None:
        member.killed = True
        member.signal(signal.SIGKILL)
        self.kills.append(time.monotonic())
        self.say(f"SIGKILL to {member.name}" + (f", {office}" if office else ""))

    async def stop(self) -> None:
        """Stop all: SIGTERM, and SIGKILL to those that are still there after a while."""
        self._stopping.set()
        try:
            for member in self.members:
                member.signal(signal.SIGTERM)
            async with asyncio.timeout(STOP_S):
                await self._all_ended()
        except TimeoutError:
            left = [member.name for member in self.members if member.alive]
            self.say(f"{', '.join(left)} did not stop within {STOP_S:.0f} s: killed")
        finally:  # also when a second Ctrl-C ends the waiting
            for member in self.members:
                member.signal(signal.SIGKILL)
        await self._all_ended()

    async def _all_ended(self) -> None:
        for member in self.members:
            if member.process is not None:
                await member.process.wait()


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(text.splitlines()[-lines:]) or "(it is empty)"


def _ending(code: int) -> str:
    return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


def _numbers(name: str) -> list[str]:
    return "".join(char if char.isdigit() else " " for char in name).split()
