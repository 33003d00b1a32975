"""A place in the fleet: one worker is always at work in it.

::

    empty ──starts──▶ ready ──watches over──▶ replaced: the new one is ready, the old one drains
      ▲                              │
      └──── pause, longer each time ─┴ died
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .process import Member

logger = logging.getLogger("runner.fleet")

SOONEST_S, LATEST_S = 0.2, 30.0
"""How long a place stays empty after its worker has died: at first, and at most."""
HEALTHY_S = 60.0
"""One that has lived so long died of something new: the pause is the first again."""
START_S = 60.0
"""How long a replacement may take to be ready before it is given up."""


class Fleet(Protocol):
    """What a place needs of its supervisor."""

    renewal: asyncio.Lock

    def start(self, place: int) -> Member:
        """Start one worker process for a place."""
        ...

    def retire(self, member: Member) -> None:
        """Let a member go that was replaced."""
        ...

    def gives_up(self, member: Member) -> bool:
        """Say whether one that did not start ends all."""
        ...

    def look(self) -> None:
        """Hear that a place has changed."""
        ...


class Place:
    """Where one worker is always at work.

    Attributes:
        settled: somebody serves here, and is not about to be replaced.
    """

    def __init__(self, fleet: Fleet, number: int) -> None:
        self._fleet = fleet
        self._number = number
        self._renewal = asyncio.Event()
        self._pause_s = SOONEST_S
        self._leavers: list[Member] = []
        self.settled = False

    def __str__(self) -> str:
        return f"place {self._number}"

    def renew(self) -> None:
        """Replace whoever is here by a new process."""
        self._settle(settled=False)
        self._renewal.set()

    async def keep(self) -> None:
        """Keep somebody at work here, until cancelled."""
        while True:
            member: Member | None = await self._fill()
            while member is not None:
                self._settle(settled=not self._renewal.is_set())
                member = await self._next(member)
            self._settle(settled=False)

    def _settle(self, *, settled: bool) -> None:
        self.settled = settled
        self._fleet.look()

    async def _fill(self) -> Member:
        """Start workers until one is ready."""
        while True:
            member = self._start()
            if member is None:
                await self._pause()
                continue
            while not await self._is_ready(member) and not self._renewal.is_set():
                logger.warning(
                    "%s is not ready, %.0f s after its start: its module may wait for something",
                    member.name,
                    member.age_s,
                )
            if member.serves and member.status is None:
                return member
            if member.status is None:  # a newer one is wanted before this one was ready
                member.kill()
            elif self._fleet.gives_up(member):
                await asyncio.Event().wait()  # until cancelled
            else:
                await self._pause(member)

    def _start(self) -> Member | None:
        """Start a worker; None where the system has no process for it."""
        self._renewal.clear()  # whoever starts now is new
        try:
            return self._fleet.start(self._number)
        except OSError as exc:
            logger.error("%s: no process can be started (%s); trying again", self, exc)  # noqa: TRY400  the message says it
            return None

    async def _is_ready(self, member: Member) -> bool:
        """Wait until a worker serves or has ended, for a while, or until a newer one is wanted."""
        await self._first_of(member.ready, self._renewal, timeout_s=START_S)
        return member.ready.is_set()

    async def _first_of(self, *events: asyncio.Event, timeout_s: float | None = None) -> None:
        """Wait until one of several events is set."""
        waits = [asyncio.create_task(event.wait(), name=f"{self} waits") for event in events]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _next(self, member: Member) -> Member | None:
        """Wait until somebody else is to be here, and return who; None: nobody is."""
        await self._first_of(member.wants_out, self._renewal)
        await self._let_leave(member)
        if member.status is not None:
            await self._pause(member)
            return None
        if self._renewal.is_set():
            return await self._replace(member, must=False)
        logger.info("%s is replaced: %s", member.name, member.why)
        return await self._replace(member, must=True)

    async def _let_leave(self, member: Member) -> None:
        """Wait for all who were here before a member that is to be recycled.

        Where long jobs keep each of them for hours, and limits are reached in minutes, there
        would soon be more processes that leave than the machine can hold.
        """
        while True:
            self._leavers = [one for one in self._leavers if one.status is None]
            if not self._leavers or member.status is not None or self._renewal.is_set():
                return
            leaver = self._leavers[0]
            logger.info("%s goes on until %s has left: %s", member.name, leaver.name, member.why)
            await self._first_of(leaver.gone, member.gone, self._renewal)

    async def _replace(self, member: Member, *, must: bool) -> Member | None:
        """Return a new worker that serves, and let the old one go; None: nobody is here.

        Args:
            member: the old one.
            must: try until there is a new one. Otherwise, when it does not start, the old one
                stays.
        """
        while True:
            async with self._fleet.renewal:
                new = self._start()
                if new is not None:
                    await self._is_ready(new)
            if new is not None:
                if new.serves and new.status is None:
                    self._fleet.retire(member)
                    self._leavers.append(member)
                    return new
                self._fleet.gives_up(new)  # says why
                new.kill()
            if member.status is not None:
                return None
            if self._renewal.is_set():
                continue  # a newer one was wanted before this one was ready
            if new is not None:
                logger.error("%s was not ready in time: %s stays", new.name, member.name)
            if not must:
                return member
            await self._pause(new)

    async def _pause(self, member: Member | None = None) -> None:
        """Wait after one has died, longer each time, but not when all are to be replaced."""
        if member is not None and member.age_s > HEALTHY_S:
            self._pause_s = SOONEST_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s):
                await self._renewal.wait()
        self._pause_s = min(self._pause_s * 2, LATEST_S)
