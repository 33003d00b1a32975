"""Try to commit units together: plan, apply, and wait while the server is at fault.

An attempt ends in one of four ways: the units are committed; `UnitFault` says that one of them
prevents it; `Fenced` that another term has begun; any other error that the session is over.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn

import asyncpg

from runner.errors import WriteRejected
from runner.writer.apply import Applier
from runner.writer.catalogue import Catalogue
from runner.writer.entries import encode_rejection
from runner.writer.failures import (
    CHANGED,
    FENCED,
    LOCKED,
    READ_ONLY,
    UNPREPARED,
    BadValue,
    Fenced,
    is_about_data,
    is_late,
    may_be_raised,
)
from runner.writer.queries import query
from runner.writer.steps import prepare_steps, raw_texts, watched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record

    from runner.writer.catalogue import Known
    from runner.writer.entries import Unit
    from runner.writer.office import Office
    from runner.writer.steps import Step

__all__ = ["Attempts", "Refusals", "UnitFault", "is_changed"]

logger = logging.getLogger("runner.writer")

SOONEST_RETRY_S = 0.05
LATEST_RETRY_S = 5.0
TRIES_TOGETHER = 8
PLANS_AT_MOST = 5
PLANS_BESIDE_RAW = 2

Refusals = dict[str, WriteRejected]
_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, BadValue, ValueError, TypeError)


class UnitFault(Exception):  # noqa: N818  says where to look next, never leaves the writer
    """Raised when units, and not the server, are why an attempt failed."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Attempts:
    """Commits units over the connection of one term.

    Attributes:
        applier: runs the statements.
        catalogue: what is known of the tables.
        tries: how often a commit is tried that fails by what passes, but may be a unit's doing.
        answers: what units that asked did, by entry.
    """

    def __init__(self, connection: Connection[Record], office: Office) -> None:
        self._connection = connection
        self._office = office
        self.catalogue = Catalogue(connection)
        self.applier = Applier(connection, office)
        self.tries = TRIES_TOGETHER
        self.answers: dict[str, bytes] = {}

    async def attempt(self, units: Sequence[Unit], steps: list[Step] | None = None) -> Refusals:
        """Commit units, with the steps if they were planned ahead; return those that cannot be.

        Raises:
            UnitFault: one of them prevents it.
        """
        plans = 0
        while True:
            try:
                return await self._attempt_once(units, steps)
            except UnitFault as fault:
                plans += 1
                if not is_changed(fault.cause) or plans >= self._plans_at_most(units):
                    raise
                # A migration came between the look at the tables and the locks on them.
                await self.reload()
                steps = None

    def _plans_at_most(self, units: Sequence[Unit]) -> int:
        """Return how often to plan; raw SQL may itself be what changes a table each time."""
        known = self.catalogue.known(units) or {}
        is_raw = any(
            known[t].profile.facts is None for u in units for t, _ in u.operations if known
        )
        return PLANS_BESIDE_RAW if is_raw else PLANS_AT_MOST

    async def _attempt_once(self, units: Sequence[Unit], steps: list[Step] | None) -> Refusals:
        refused: Refusals = {}
        if steps is None:
            known, refused = await self.learn(units)
            try:
                steps = prepare_steps([u for u in units if u.entry not in refused], known)
            except Exception as exc:
                raise UnitFault(exc) from exc
        await self.commit(steps, units, refused)
        return refused

    async def learn(self, units: Sequence[Unit]) -> tuple[Known, Refusals]:
        """Make all shapes known, and return which units can never work."""
        refused = {u.entry: WriteRejected(u.problem) for u in units if u.problem}
        texts = {text for unit in units for text, _ in unit.operations}
        known, bad = await self._know(texts)
        if bad:
            for unit in units:
                why = next((bad[text] for text, _ in unit.operations if text in bad), None)
                if why is not None:
                    refused[unit.entry] = why
        return known, refused

    async def _know(self, texts: set[str]) -> tuple[Known, Refusals]:
        """Make shapes known; wait for a migration that locks their tables."""
        delay_s = SOONEST_RETRY_S
        while True:
            try:
                return await self.catalogue.know(texts)
            except _FAULTS as exc:
                if not (self._is_passing(exc) or self._is_late(exc)):
                    self._fail(exc)
                await self._is_kept_out(exc, (), "\n".join(texts))
                logger.warning("Postgres cannot tell of tables now, trying again: %s", exc)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LATEST_RETRY_S)

    async def commit(
        self,
        steps: Sequence[Step],
        units: Sequence[Unit],
        refused: Refusals,
        *,
        planned: bool = True,
    ) -> None:
        """Commit, again and again while the server is at fault and the session lives.

        Raises:
            UnitFault: one of the units prevents it.
        """
        facts = [(entry, encode_rejection(why)) for entry, why in refused.items()]
        delay_s, tries = SOONEST_RETRY_S, 0
        while True:
            try:
                self.answers |= await self.applier.commit(steps, units, facts, planned=planned)
            except _FAULTS as exc:
                tries += 1
                if isinstance(exc, asyncpg.PostgresError) and exc.sqlstate == UNPREPARED:
                    # A unit has taken the prepared statements away, ours among them.
                    await self.reload()
                seen = watched(steps)
                oids = (*seen.tables, *seen.partitions)
                if await self._is_kept_out(exc, oids, raw_texts(steps)):
                    tries = 0
                elif not self._is_passing(exc):
                    await self._look_behind(exc)
                    self._fail(exc)
                elif tries >= self.tries and may_be_raised(exc):
                    raise UnitFault(exc) from exc
                logger.warning("Postgres cannot commit now, trying again: %s", exc)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, LATEST_RETRY_S)
            else:
                return

    async def _is_kept_out(self, exc: BaseException, oids: Sequence[int], texts: str) -> bool:
        """Say whether others lock a whole table, as a migration does: no unit is to blame then.

        Args:
            exc: what happened.
            oids: the tables.
            texts: what may name more of them.
        """
        if not self._is_late(exc):
            return False
        locked = await self._connection.fetchrow(query("locked_table"), oids, texts)
        if locked is None:
            return False
        logger.warning("the table %s is locked by the session %s", locked["name"], locked["pid"])
        return True

    def _is_late(self, exc: BaseException) -> bool:
        return is_late(exc) and not self._connection.is_closed()

    async def _look_behind(self, exc: BaseException) -> None:
        """See whether what would end the term is true; a unit may have raised it, or caused it."""
        if not isinstance(exc, asyncpg.PostgresError) or self._connection.is_closed():
            return
        if exc.sqlstate == FENCED:
            await self.check_epoch()
            raise UnitFault(exc) from exc
        if exc.sqlstate == READ_ONLY and await self._connection.fetchval(query("takes_writes")):
            raise UnitFault(exc) from exc

    def _is_passing(self, exc: BaseException) -> bool:
        """Say whether the same batch may pass later in this session."""
        return (
            isinstance(exc, asyncpg.PostgresError)
            and not self._connection.is_closed()
            and (exc.sqlstate or "").startswith(("40", "53", "58", LOCKED))
            and not is_about_data(exc)
        )

    def _fail(self, exc: BaseException) -> NoReturn:
        """Raise what an error means: fenced, the session's end, or a unit's fault."""
        if isinstance(exc, asyncpg.PostgresError) and exc.sqlstate == FENCED:
            raise Fenced(str(exc)) from exc
        if self._connection.is_closed():
            raise exc
        if isinstance(exc, asyncpg.PostgresError) and not is_about_data(exc):
            raise exc
        raise UnitFault(exc) from exc

    async def check_epoch(self) -> None:
        """Look whether an error is only the trace of another leader's work.

        Raises:
            Fenced: it is.
        """
        if await self._connection.fetchval(query("epoch")) != self._office.epoch:
            raise Fenced("another term has begun")

    async def applied(self, units: Sequence[Unit]) -> set[bytes]:
        """Return which of these units are in the ledger already."""
        keys = [unit.key for unit in units if unit.key]
        rows = await self._connection.fetch(query("applied"), keys)
        return {row["unit"] for row in rows}

    async def reload(self) -> None:
        """Forget what is known of the tables, and the statements."""
        self.applier.forget()
        await self.catalogue.reload()


def is_changed(exc: BaseException) -> bool:
    """Say whether tables were not as they were planned for."""
    return isinstance(exc, asyncpg.PostgresError) and exc.sqlstate == CHANGED
