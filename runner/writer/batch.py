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
import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg
import msgspec

from runner.writer.attempts import (
    LATEST_RETRY_S,
    TRIES_TOGETHER,
    Attempts,
    Refusals,
    UnitFault,
    is_changed,
)
from runner.writer.failures import (
    LOCKED,
    TIMED_OUT,
    Fenced,
    is_duplicate,
    is_late,
    is_stale,
    rejection,
    tells_of_room,
    was_told_by_server,
)
from runner.writer.queries import query
from runner.writer.steps import prepare_steps, reset_steps, steps_in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record

    from runner.errors import WriteRejected
    from runner.writer.catalogue import Known
    from runner.writer.entries import Unit
    from runner.writer.office import Office
    from runner.writer.steps import Step

__all__ = ["Batch", "Batches", "Refusals"]

logger = logging.getLogger("runner.writer")

REFUSED_UNTIL_SINGLE = 10
DENSE = 8
"""With more than one bad unit in so many, parts that fail go unit by unit."""

TRIES_APART = 3
OPERATIONS_IN_ORDER = 50
HURRY_MS = 300
"""How long parts wait for a lock, where one was waited for in vain: to find whose lock it is."""


@dataclass(slots=True)
class Batch:
    """Units to be committed together; with steps when they could be planned ahead."""

    units: Sequence[Unit]
    steps: list[Step] | None = None


class Batches:
    """Applies batches over the connection of one term."""

    def __init__(self, connection: Connection[Record], office: Office) -> None:
        self._connection = connection
        self._office = office
        self.attempts = Attempts(connection, office)

    def take_answers(self) -> dict[str, bytes]:
        """Return what units that asked did, by entry: those committed since the last call."""
        answers, self.attempts.answers = self.attempts.answers, {}
        return answers

    def plan_ahead(self, units: Sequence[Unit]) -> Batch:
        """Plan while another batch commits: without a word to Postgres, so perhaps not at all."""
        known = self.attempts.catalogue.known(units)
        if known is None:
            return Batch(units)
        try:
            return Batch(units, prepare_steps(units, known))
        except Exception:  # noqa: BLE001  the attempt meets it again, and finds whose fault it is
            return Batch(units)

    async def apply(self, batch: Batch) -> Refusals:
        """Commit a batch and its position; return what was refused, by entry.

        Raises:
            Fenced: another term has begun.
            asyncpg.PostgresError, OSError: this session is over.
        """
        try:
            return await self.attempts.attempt(batch.units, batch.steps)
        except UnitFault as fault:
            return await self._isolate(batch.units, fault.cause)

    async def refuse(self, unit: Unit, why: WriteRejected) -> Refusals:
        """Pass a unit without trying it."""
        await self.attempts.check_epoch()
        refused = {unit.entry: why}
        await self.attempts.commit([], [unit], refused)
        return refused

    async def _isolate(self, units: Sequence[Unit], cause: BaseException) -> Refusals:
        attempts = self.attempts
        if is_stale(cause):
            await attempts.reload()
        await attempts.check_epoch()
        applied = await attempts.applied(units)
        if applied or (is_stale(cause) and not is_changed(cause)):
            units = [_without_writes(unit) if unit.key in applied else unit for unit in units]
            try:
                return await attempts.attempt(units)
            except UnitFault as fault:
                cause = fault.cause
        logger.info("looking for what was refused among %d units: %s", len(units), cause)
        # Nobody is told before the last commit, which takes those before it to the disk.
        await self._connection.execute("SET synchronous_commit TO off")
        try:
            refused = await self._halve(units, cause)
        finally:
            attempts.tries = TRIES_TOGETHER
        await self._connection.execute("SET synchronous_commit TO on; RESET lock_timeout")
        if not await self._connection.fetchval(query("flush"), self._office.epoch):
            raise Fenced("another term has begun")
        return refused

    async def _halve(self, units: Sequence[Unit], cause: BaseException) -> Refusals:
        refused: Refusals = {}
        stuck: set[str] = set()
        hurries = is_late(cause)
        parts = collections.deque(self._smaller(units, cause))
        done = 0
        while parts:
            part = parts.popleft()
            rows = self._rows_of(part[0]) if hurries and len(part) == 1 else set()
            if hurries:
                await self._wait_for_locks(briefly=len(part) > 1 or not stuck.isdisjoint(rows))
            self.attempts.tries = 1 if hurries and len(part) > 1 else TRIES_APART
            try:
                if len(part) == 1:
                    found = await self._lone(part[0])
                    stuck |= rows if any(map(_tells_of_lateness, found.values())) else set()
                else:
                    found = await self.attempts.attempt(part)
            except UnitFault as fault:
                hurries = hurries or is_late(fault.cause)
                is_dense = REFUSED_UNTIL_SINGLE <= len(refused) > done // DENSE
                smaller = [[unit] for unit in part] if is_dense else None
                parts.extendleft(reversed(smaller or self._smaller(part, fault.cause)))
            else:
                refused.update(found)
                done += len(part)
        return refused

    async def _wait_for_locks(self, *, briefly: bool) -> None:
        """Set how long to wait for locks, but where the database has a bound of its own.

        A batch has waited for long by now. Its parts show in a moment which of them would wait
        again; a unit of its own gets its time, unless another has waited for that row in vain.
        """
        await self._connection.execute("RESET lock_timeout")
        if briefly:
            await self._connection.execute(query("hurry"), str(HURRY_MS))

    def _rows_of(self, unit: Unit) -> set[str]:
        """Name what a unit writes to: rows by their keys, or raw SQL by its arguments."""
        known = self.attempts.catalogue.known([unit]) or {}
        rows: set[str] = set()
        for text, values in unit.operations if known else ():
            shape = known[text].profile.shape
            has_key = shape.kind in ("add", "update", "delete")
            rows.add(f"{shape.table} {values[: len(shape.key)] if has_key else values!r}")
        return rows

    def _smaller(self, units: Sequence[Unit], cause: BaseException) -> list[Sequence[Unit]]:
        """Part units that failed; those of a shape that is known to be slow one by one.

        To find a slow one by halves would take the timeout again for each half.
        """
        running = self.attempts.applier.running
        if running and isinstance(cause, asyncpg.PostgresError) and cause.sqlstate == TIMED_OUT:
            return _beside(units, running[0].profile.text)
        return _halves(units)

    async def _lone(self, unit: Unit) -> Refusals:
        """Run one unit in its own order, and refuse it if that fails."""
        self.attempts.applier.running = None
        try:
            known, refused = await self.attempts.learn([unit])
        except UnitFault as fault:
            known, refused = {}, {unit.entry: self._rejection(fault.cause, unit)}
        if not refused:
            cause = await self._cause(unit, known)
            while cause is not None and tells_of_room(cause) and not await self._has_room():
                logger.warning("Postgres has no room, trying again: %s", cause)
                await asyncio.sleep(LATEST_RETRY_S)
                cause = await self._cause(unit, known)
            if cause is None:
                return {}
            await self.attempts.check_epoch()
            if is_duplicate(cause) and await self.attempts.applied([unit]):
                await self.attempts.commit([], [_without_writes(unit)], {})
                return {}
            refused = {unit.entry: self._rejection(cause, unit)}
        try:
            await self.attempts.commit([], [unit], refused)
        except UnitFault as fault:
            # Nothing of the unit is in this: what fails here is the writer's own.
            raise fault.cause from None
        return refused

    async def _cause(self, unit: Unit, known: Known) -> BaseException | None:
        """Commit one unit, or return why that cannot be."""
        is_single = unit.count == 1 and unit.asks is None
        if is_single or unit.count > OPERATIONS_IN_ORDER:
            # One operation is its own order: one statement instead of a transaction. Of thousands
            # the most will pass, as they may only have had a bad neighbour: together first.
            try:
                await self.attempts.attempt([unit])
            except UnitFault as fault:
                is_told = was_told_by_server(fault.cause) and not is_changed(fault.cause)
                if is_single and is_told:
                    return fault.cause
            else:
                return None
        try:
            steps = steps_in_order(unit, known) + reset_steps(unit, known)
        except Exception as exc:  # noqa: BLE001  whatever its values made of our own code
            return exc
        try:
            await self.attempts.commit(steps, [unit], {}, planned=False)
        except UnitFault as fault:
            return fault.cause
        return None

    async def _has_room(self) -> bool:
        """Say whether rows of ours still find room; they are not kept."""
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            await self._connection.execute(query("needs_room"))
        except asyncpg.PostgresError as exc:
            if not tells_of_room(exc):
                raise
            return False
        else:
            return True
        finally:
            if not self._connection.is_closed():
                await transaction.rollback()

    def _rejection(self, cause: BaseException, unit: Unit) -> WriteRejected:
        """Say why a lone unit was refused, and what of it: the shapes of values, no values."""
        place = getattr(cause, "place", None) or self.attempts.applier.running
        if place is None and unit.count == 1:
            text, values = unit.operations[0]
            return rejection(cause, text, values)
        if place is None:
            # Postgres said it at the end, or of several rows: the first operation is where to look.
            return rejection(cause, unit.operations[0][0] if unit.operations else "")
        statements, row = place
        return rejection(cause, statements.profile.text, row)


def _tells_of_lateness(why: WriteRejected) -> bool:
    return why.sqlstate in (TIMED_OUT, LOCKED)


def _beside(units: Sequence[Unit], text: str) -> list[Sequence[Unit]]:
    """Part units in order: those with this shape one by one, those between them together."""
    parts: list[Sequence[Unit]] = []
    grouped = itertools.groupby(units, lambda u: any(shape == text for shape, _ in u.operations))
    for has, some in grouped:
        found = list(some)
        parts += [[unit] for unit in found] if has else [found]
    return parts if len(parts) > 1 else _halves(units)


def _halves(units: Sequence[Unit]) -> list[Sequence[Unit]]:
    middle = (len(units) + 1) // 2
    return [part for part in (units[:middle], units[middle:]) if part]


def _without_writes(unit: Unit) -> Unit:
    """Return a unit that was applied before: its entry is passed, and nothing is done."""
    return msgspec.structs.replace(unit, key=b"", operations=[], count=0)
