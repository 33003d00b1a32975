"""Carry a batch to its end: commit what can be, refuse what cannot, in order.

attempt all ──ok──▶ done
│ a unit's fault
▼
fenced? ─ applied before? ─ stale schema? ── once more with what was learnt
│
▼
halve, each part a transaction with its own position; a part that fails among many bad
units goes unit by unit; a lone unit runs its operations in its own order, and what fails
then is refused; the commits of the parts reach the disk together, with the last
"""

from __future__ import annotations

import asyncio
import collections
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import asyncpg
import msgspec

from runner.errors import WriteRejected
from runner.writer.apply import (
    Applier,
    Office,
    Step,
    prepare_steps,
    reset_steps,
    steps_in_order,
)
from runner.writer.catalogue import Catalogue
from runner.writer.entries import encode_rejection
from runner.writer.failures import (
    FENCED,
    LOCKED,
    READ_ONLY,
    UNPREPARED,
    BadValue,
    Fenced,
    is_about_data,
    is_duplicate,
    is_stale,
    may_be_raised,
    rejection,
    shape_of,
    was_told_by_server,
)
from runner.writer.queries import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record

    from runner.writer.catalogue import Known
    from runner.writer.entries import Unit

__all__ = ["Batch", "Batches", "Refusals"]

logger = logging.getLogger("runner.writer")

REFUSED_UNTIL_SINGLE = 10
DENSE = 8
"""With more than one bad unit in so many, parts that fail go unit by unit."""

SOONEST_RETRY_S = 0.05
LATEST_RETRY_S = 5.0
TRIES_TOGETHER = 8
TRIES_APART = 3

Refusals = dict[str, WriteRejected]
_FAULTS = (asyncpg.PostgresError, asyncpg.InterfaceError, BadValue, ValueError, TypeError)


@dataclass(slots=True)
class Batch:
    """Units to be committed together; with steps when they could be planned ahead."""

    units: Sequence[Unit]
    steps: list[Step] | None = None


class _UnitFault(Exception):  # noqa: N818  says where to look next, never leaves this module
    """Raised when units, and not the server, are why an attempt failed."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Batches:
    """Applies batches over the connection of one term."""

    def __init__(self, connection: Connection[Record], office: Office) -> None:
        self._connection = connection
        self._office = office
        self._catalogue = Catalogue(connection)
        self._applier = Applier(connection, office)
        self._tries = TRIES_TOGETHER
        self._answers: dict[str, bytes] = {}

    def take_answers(self) -> dict[str, bytes]:
        """Return what units that asked did, by entry: those committed since the last call."""
        answers, self._answers = self._answers, {}
        return answers

    def plan_ahead(self, units: Sequence[Unit]) -> Batch:
        """Plan while another batch commits: without a word to Postgres, so perhaps not at all."""
        known = self._catalogue.known(units)
        if known is None:
            return Batch(units)
        try:
            return Batch(units, prepare_steps(units, known))
        except _FAULTS:
            return Batch(units)  # the attempt will find the same, and then whose fault it is

    async def apply(self, batch: Batch) -> Refusals:
        """Commit a batch and its position; return what was refused, by entry.

        Raises:
            Fenced: another term has begun.
            asyncpg.PostgresError, OSError: this session is over.
        """
        try:
            return await self._attempt(batch.units, batch.steps)
        except _UnitFault as fault:
            return await self._isolate(batch.units, fault.cause)

    async def refuse(self, unit: Unit, why: WriteRejected) -> Refusals:
        """Pass a unit without trying it."""
        await self._check_epoch()
        refused = {unit.entry: why}
        await self._commit([], [unit], refused)
        return refused

    async def _isolate(self, units: Sequence[Unit], cause: BaseException) -> Refusals:
        if is_stale(cause):
            await self._reload()
        await self._check_epoch()
        applied = await self._applied(units)
        if applied or is_stale(cause):
            units = [_without_writes(unit) if unit.key in applied else unit for unit in units]
            try:
                return await self._attempt(units)
            except _UnitFault as fault:
                cause = fault.cause
        logger.info("looking for what was refused among %d units: %s", len(units), cause)
        self._tries = TRIES_APART
        try:
            return await self._halve(units)
        finally:
            self._tries = TRIES_TOGETHER

    async def _halve(self, units: Sequence[Unit]) -> Refusals:
        refused: Refusals = {}
        parts = collections.deque(_halves(units))
        done = 0
        # Nobody is told before the last commit, which takes those before it to the disk.
        await self._connection.execute("SET synchronous_commit TO off")
        while parts:
            part = parts.popleft()
            try:
                if len(part) == 1:
                    refused.update(await self._lone(part[0]))
                else:
                    refused.update(await self._attempt(part))
                done += len(part)
            except _UnitFault:
                is_dense = REFUSED_UNTIL_SINGLE <= len(refused) > done // DENSE
                smaller = [[unit] for unit in part] if is_dense else _halves(part)
                parts.extendleft(reversed(smaller))
        await self._connection.execute("SET synchronous_commit TO on")
        if not await self._connection.fetchval(query("flush"), self._office.epoch):
            raise Fenced("another term has begun")
        return refused

    async def _lone(self, unit: Unit) -> Refusals:
        """Run one unit in its own order, and refuse it if that fails."""
        known, refused = await self._learn([unit])
        if not refused:
            cause = await self._cause(unit, known)
            if cause is None:
                return {}
            await self._check_epoch()
            if is_duplicate(cause) and await self._applied([unit]):
                await self._commit([], [_without_writes(unit)], {})
                return {}
            refused = {unit.entry: self._rejection(cause, unit)}
        try:
            await self._commit([], [unit], refused)
        except _UnitFault as fault:
            # Nothing of the unit is in this: what fails here is the writer's own.
            raise fault.cause from None
        return refused

    async def _cause(self, unit: Unit, known: Known) -> BaseException | None:
        """Commit one unit, or return why that cannot be."""
        if unit.count == 1 and unit.asks is None:
            # One operation is its own order: one statement instead of a transaction.
            try:
                await self._attempt([unit])
            except _UnitFault as fault:
                if was_told_by_server(fault.cause):
                    return fault.cause
            else:
                return None
        try:
            steps = steps_in_order(unit, known) + reset_steps(unit, known)
            await self._commit(steps, [unit], {})
        except _UnitFault as fault:
            return fault.cause
        except _FAULTS as exc:
            return exc
        return None

    def _rejection(self, cause: BaseException, unit: Unit) -> WriteRejected:
        """Say why a lone unit was refused, and what of it: the shapes of values, no values."""
        place = getattr(cause, "place", None) or self._applier.running
        if place is None and unit.count == 1:
            text, values = unit.operations[0]
            refused = rejection(cause, text)
            refused.parameters = tuple(shape_of(value) for value in values)
            return refused
        if place is None:
            # Postgres said it at the end, or of several rows: the first operation is where to look.
            return rejection(cause, unit.operations[0][0] if unit.operations else "")
        statements, row = place
        refused = rejection(cause, statements.profile.text)
        refused.parameters = tuple(shape_of(value) for value in row)
        return refused

    async def _attempt(self, units: Sequence[Unit], steps: list[Step] | None = None) -> Refusals:
        """Try to commit units together; raise `_UnitFault` when one of them prevents it."""
        refused: Refusals = {}
        if steps is None:
            known, refused = await self._learn(units)
            try:
                steps = prepare_steps([u for u in units if u.entry not in refused], known)
            except _FAULTS as exc:
                raise _UnitFault(exc) from exc
        await self._commit(steps, units, refused)
        return refused

    async def _learn(self, units: Sequence[Unit]) -> tuple[Known, Refusals]:
        """Make all shapes known, and return which units can never work."""
        refused = {u.entry: WriteRejected(u.problem) for u in units if u.problem}
        texts = {text for unit in units for text, _ in unit.operations}
        try:
            known, bad = await self._catalogue.know(texts)
        except asyncpg.PostgresError as exc:
            self._fail(exc)
        if bad:
            for unit in units:
                why = next((bad[text] for text, _ in unit.operations if text in bad), None)
                if why is not None:
                    refused[unit.entry] = why
        return known, refused

    async def _commit(
        self, steps: Sequence[Step], units: Sequence[Unit], refused: Refusals
    ) -> None:
        """Commit, again and again while the server is at fault and the session lives."""
        facts = [(entry, encode_rejection(why)) for entry, why in refused.items()]
        delay_s, tries = SOONEST_RETRY_S, 0
        while True:
            try:
                self._answers |= await self._applier.commit(steps, units, facts)
            except _FAULTS as exc:
                tries += 1
                if isinstance(exc, asyncpg.PostgresError) and exc.sqlstate == UNPREPARED:
                    # A unit has taken the prepared statements away, ours among them.
                    await self._reload()
                if not self._is_passing(exc):
                    await self._look_behind(exc)
                    self._fail(exc)
                if tries >= self._tries and may_be_raised(exc):
                    raise _UnitFault(exc) from exc
                logger.warning("Postgres cannot commit now, trying again: %s", exc)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, LATEST_RETRY_S)
            else:
                return

    async def _look_behind(self, exc: BaseException) -> None:
        """See whether what would end the term is true; a unit may have raised it, or caused it."""
        if not isinstance(exc, asyncpg.PostgresError) or self._connection.is_closed():
            return
        if exc.sqlstate == FENCED:
            await self._check_epoch()
            raise _UnitFault(exc) from exc
        if exc.sqlstate == READ_ONLY and await self._connection.fetchval(query("takes_writes")):
            raise _UnitFault(exc) from exc

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
        raise _UnitFault(exc) from exc

    async def _check_epoch(self) -> None:
        """Look whether an error is only the trace of another leader's work."""
        if await self._connection.fetchval(query("epoch")) != self._office.epoch:
            raise Fenced("another term has begun")

    async def _applied(self, units: Sequence[Unit]) -> set[bytes]:
        keys = [unit.key for unit in units if unit.key]
        rows = await self._connection.fetch(query("applied"), keys)
        return {row["unit"] for row in rows}

    async def _reload(self) -> None:
        self._applier.forget()
        await self._catalogue.reload()


def _halves(units: Sequence[Unit]) -> list[Sequence[Unit]]:
    middle = (len(units) + 1) // 2
    return [part for part in (units[:middle], units[middle:]) if part]


def _without_writes(unit: Unit) -> Unit:
    """Return a unit that was applied before: its entry is passed, and nothing is done."""
    return msgspec.structs.replace(unit, key=b"", operations=[], count=0)
