"""Keep every place of a fleet filled with a worker process, until told to stop.

Signals: SIGTERM and SIGINT end the fleet gently, the second time at once, the third time by
force; SIGHUP replaces every process, each by one that is ready before the old one drains;
SIGUSR1 logs how the processes are. Whatever ends the supervisor itself, its members hear the end
of their sockets and end too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import deaths, reload
from .messages import BAD_SETTINGS, PLACE, RECYCLED
from .place import Place
from .process import STOP_S, Member
from .systemd import Notifier

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("runner.fleet")

LOOK_S = 0.5
MB = 1_000_000
_STOPS = ("the workers are to end", "the workers are to end at once", "the workers are killed")


@dataclass(frozen=True, slots=True)
class Plan:
    """What the supervisor is to run.

    Attributes:
        command: runs one worker.
        processes: how many of them.
        watched: folders whose Python files, when changed, replace all workers.
    """

    command: tuple[str, ...]
    processes: int
    watched: tuple[Path, ...] = ()


class Supervisor:
    """Runs a plan.

    Attributes:
        failure: why it gave up: what was wrong with the settings; "" when it did not.
        renewal: one replacement starts at a time, so there is memory for one process more.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._environment = dict(os.environ)
        self._notifier = Notifier(self._environment)
        self._members: dict[int, Member] = {}  # by pid, also those that leave
        self._places = [Place(self, number) for number in range(1, plan.processes + 1)]
        self._started = 0
        self._served = False
        self._complete = False
        self._told, self._told_at = 0, 0.0  # how often to stop, and when last
        self._stop = asyncio.Event()
        self._oom_kills = deaths.oom_kills()
        self.failure = ""
        self.renewal = asyncio.Lock()

    @property
    def _workers(self) -> str:
        return "1 worker" if self._plan.processes == 1 else f"{self._plan.processes} workers"

    async def run(self) -> None:
        """Keep the places filled until told to stop, and end them all."""
        self._listen()
        logger.info("supervisor %d starts %s", os.getpid(), self._workers)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(place.keep(), name=f"{place}") for place in self._places]
                tasks.append(group.create_task(self._say_alive(), name="systemd watchdog"))
                if self._plan.watched:
                    tasks.append(group.create_task(self._watch(), name="watch files"))
                await self._stop.wait()
                for task in tasks:
                    task.cancel()
        finally:
            await self._end_members()

    def start(self, place: int) -> Member:
        """Start one worker process for a place."""
        self._started += 1
        environment = {**self._environment, PLACE: str(place)}
        member = Member(self._started, self._plan.command, environment)
        self._members[member.pid] = member
        return member

    def retire(self, member: Member) -> None:
        """Let a member go that was replaced."""
        if self._plan.watched:
            # In development nobody waits for the long jobs of yesterday's code.
            member.tell(signal.SIGTERM)
            asyncio.get_running_loop().call_later(member.stop_s, member.kill)
        else:
            member.drain()

    def stop(self, signum: signal.Signals) -> None:
        """End the fleet: gently, the second time at once, the third time by force."""
        self._told, self._told_at = self._told + 1, time.monotonic()
        logger.info("%s: %s", signum.name, _STOPS[min(self._told, len(_STOPS)) - 1])
        self._stop.set()
        for member in self._members.values():
            if self._told < len(_STOPS):
                member.tell(signal.SIGTERM)
            else:
                member.kill()

    def gives_up(self, member: Member) -> bool:
        """Say whether one that did not start ends all: wrong settings do, before any served."""
        if member.status != BAD_SETTINGS:
            return False
        serve = self._served or any(one.serves for one in self._members.values())
        if serve or self._plan.watched:
            logger.error("the settings cannot be loaded: %s", member.why)
            return False
        self.failure = member.why or f"{member.name} {deaths.explain(BAD_SETTINGS)}"
        self._stop.set()
        return True

    def look(self) -> None:
        """Tell whether all places are filled, when that has changed."""
        complete = all(place.settled for place in self._places)
        if complete and not self._complete:
            self._served = True
            logger.info("the fleet is ready: %s", self._workers)
            self._notifier.ready(f"the fleet is ready: {self._workers}")
        elif self._complete and not complete:
            self._notifier.status("a worker is being replaced")
        self._complete = complete

    def replace_all(self, why: str) -> None:
        """Replace every worker by a new one that is ready before the old one drains."""
        logger.info("%s: all workers are replaced", why)
        self._notifier.reloading()
        for place in self._places:
            place.renew()

    def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop, signum)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        loop.add_signal_handler(signal.SIGHUP, self.replace_all, "SIGHUP")
        loop.add_signal_handler(signal.SIGUSR1, self._log_members)

    async def _say_alive(self) -> None:
        while self._notifier.watchdog_s is not None:
            self._notifier.alive()
            await asyncio.sleep(self._notifier.watchdog_s)

    async def _watch(self) -> None:
        async for changed in reload.changes(self._plan.watched):
            self.replace_all(changed)

    def _reap(self) -> None:
        """Note who has ended: our workers, and, as process 1, whoever was orphaned to us."""
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            member = self._members.pop(pid, None)
            if member is not None:
                member.ended(os.waitstatus_to_exitcode(wait_status))
                self._log_end(member)

    def _log_end(self, member: Member) -> None:
        assert member.status is not None
        if self.failure:
            return  # which is all there is to say
        if member.killed:
            logger.warning("%s had to be killed", member.name)
        elif member.leaving and member.status in (0, RECYCLED, -signal.SIGTERM):
            logger.info("%s has left", member.name)
        elif member.status == RECYCLED:
            logger.warning("%s has left: %s", member.name, member.why)
        elif member.status != BAD_SETTINGS or member.serves:  # otherwise `gives_up` tells, once
            rss = member.vitals.get("rss", 0)
            words = deaths.explain(member.status, rss=rss, oom_killed=self._was_oom())
            logger.error("%s %s%s", member.name, words, f": {member.why}" if member.why else "")

    def _was_oom(self) -> bool:
        before, self._oom_kills = self._oom_kills, deaths.oom_kills()
        return before is not None and self._oom_kills is not None and self._oom_kills > before

    def _log_members(self) -> None:
        for member in self._members.values():
            said = member.vitals
            logger.info(
                "%s: %s, %.0f s old, %.0f MB, %d threads, %d files, %d jobs",
                member.name,
                "leaves" if member.leaving else "serves" if member.serves else "starts",
                member.age_s,
                said.get("rss", 0) / MB,
                said.get("threads", 0),
                said.get("files", 0),
                said.get("jobs", 0),
            )

    async def _end_members(self) -> None:
        """Wait until all are gone; kill who takes longer than it said it would."""
        self._notifier.stopping()
        self._told_at = self._told_at or time.monotonic()
        while self._members:
            for member in self._members.values():
                if not member.told:  # it was started at the last moment, or nobody told us
                    member.tell(signal.SIGTERM)
                elif self._is_late(member):
                    logger.error("%s does not end: it is killed", member.name)
                    member.kill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await next(iter(self._members.values())).gone.wait()

    def _is_late(self, member: Member) -> bool:
        patience_s = member.stop_s if self._told < 2 else STOP_S  # noqa: PLR2004  told at once
        return not member.killed and time.monotonic() - self._told_at > patience_s
