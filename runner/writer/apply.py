"""Apply units in one transaction, together with the position that says so.

What can be is one statement: a WITH whose branches take arrays, whose ledger branch records
the units, and whose last part compares and advances the position. Its main query looks at
the position first, so that a writer whose term is over learns of that, and of nothing else.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from runner.writer.facts import version_sql
from runner.writer.failures import CHANGED, DUPLICATE, FENCED, MISSING, PASSED
from runner.writer.guards import AFTER_RAW, TO_DEFAULTS, TO_OURS
from runner.writer.queries import query
from runner.writer.statements import raw_row
from runner.writer.steps import Watched, watched
from runner.writer.tallying import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from asyncpg import Connection, Record
    from asyncpg.prepared_stmt import PreparedStatement

    from runner.writer.entries import Unit
    from runner.writer.office import Office
    from runner.writer.profiles import Row
    from runner.writer.statements import Statements
    from runner.writer.steps import Branch, Step

__all__ = ["Applier"]

STATEMENTS_KEPT = 200
RELEASES_AT_MOST = 100


class Applier:
    """Runs steps over the one connection, and keeps its prepared statements."""

    def __init__(self, connection: Connection[Record], office: Office) -> None:
        self._connection = connection
        self._prepared: collections.OrderedDict[str, PreparedStatement[Record]] = (
            collections.OrderedDict()
        )
        self.office = office
        self.running: tuple[Statements, Row] | None = None
        """What was being applied when a commit failed; without values when it was many rows."""

    def forget(self) -> None:
        """Drop the prepared statements: the tables have changed."""
        self._prepared.clear()

    async def commit(
        self,
        steps: Sequence[Step],
        units: Sequence[Unit],
        refused: Sequence[tuple[str, bytes]] = (),
        *,
        planned: bool = True,
    ) -> dict[str, bytes]:
        """Apply the steps, record the units and move the position behind the last of them.

        Args:
            steps: what to do.
            units: the units behind the position, in order; those without a key, and those
                that were refused, are not recorded.
            refused: entries that are refused, and why.
            planned: the steps are right only for tables that are as they were when their facts
                were read: fail with `CHANGED` if they are not.

        Returns:
            The answers of units that ask, by entry; they are kept in the same transaction.

        Raises:
            asyncpg.PostgresError, BadValue: nothing was kept.
        """
        self.running = None
        answers: dict[str, bytes] = {}
        last = units[-1].entry
        is_refused = {entry for entry, _ in refused}
        recorded = [unit.key for unit in units if unit.key and unit.entry not in is_refused]
        seen = watched(steps) if planned else Watched()
        if len(steps) <= 1 and not (steps and not steps[0].branches):
            await self._fused(steps[0].branches if steps else (), recorded, refused, last, seen)
        else:
            answers = await self._in_transaction(steps, recorded, refused, last, seen)
        self.office.position = last
        return answers

    async def _in_transaction(
        self,
        steps: Sequence[Step],
        recorded: list[bytes],
        refused: Sequence[tuple[str, bytes]],
        last: str,
        seen: Watched = Watched(),  # noqa: B008  immutable
    ) -> dict[str, bytes]:
        try:
            async with self._connection.transaction():
                tallies = await self._run(steps[:-1] if steps and steps[-1].branches else steps)
                answers = {tally.entry: tally.encode() for tally in tallies}
                for entry, answer in answers.items():
                    await self._connection.execute(query("answer"), entry, answer)
                branches = steps[-1].branches if steps else ()
                await self._fused(branches, recorded, refused, last, seen)
            return answers
        finally:
            # Also after a rollback, which gives no advisory lock back.
            if any(step.reaches_all for step in steps) and not self._connection.is_closed():
                await self._clean_session()

    async def _run(self, steps: Sequence[Step]) -> Iterable[Tally]:
        tallies: dict[str, Tally] = {}
        defaults = False
        for step in steps:
            if step.is_foreign != defaults:
                defaults = not defaults
                await self._connection.execute(TO_DEFAULTS if defaults else TO_OURS)
            if step.branches:
                await self._branches(step.branches)
            elif step.many:
                await self._many(*step.many)
            elif step.alone:
                self.running = step.alone
                tag, found = await self._alone(*step.alone)
                if step.asked:
                    unit, place = step.asked
                    tally = tallies.setdefault(unit.entry, Tally(unit))
                    wants = step.alone[0].profile.shape.returning is not None
                    tally.add(place, tag, found if wants else None)
            else:
                await self._connection.execute(step.sql)
                # To what it was when the session began: our own settings.
                defaults = defaults and step.sql != AFTER_RAW
            self.running = None
        if defaults:
            await self._connection.execute(TO_OURS)
        return tallies.values()

    async def _many(self, statements: Statements, rows: list[Row]) -> None:
        self.running = (statements, [])
        prepared = await self._prepare(statements.single)
        if statements.profile.shape.kind == "execute":
            types = prepared.get_parameters()
            rows = [raw_row(types, row) for row in rows]
        await prepared.executemany(rows)

    async def _alone(self, statements: Statements, row: Row) -> tuple[str, list[Record]]:
        """Do one operation; return the command's tag, and the rows that came back."""
        prepared = await self._prepare(statements.single)
        if statements.profile.shape.kind == "execute":
            row = raw_row(prepared.get_parameters(), row)
        rows = await prepared.fetch(*row)
        if statements.counts and prepared.get_statusmsg() == "UPDATE 0":
            await self._connection.fetchval(
                "SELECT runner.expect(0, 1, $1, $2)", MISSING, _missing_text(statements)
            )
        return prepared.get_statusmsg() or "", rows

    async def _branches(self, branches: Sequence[Branch]) -> None:
        parts, checks, args = _branch_parts(branches)
        sql = f"WITH {', '.join(parts)} SELECT {', '.join(checks) or '1'}"
        prepared = await self._prepare(sql)
        await prepared.fetch(*args)

    async def _fused(
        self,
        branches: Sequence[Branch],
        recorded: list[bytes],
        refused: Sequence[tuple[str, bytes]],
        last: str,
        seen: Watched = Watched(),  # noqa: B008  immutable
    ) -> None:
        """Run branches with the ledger, what is refused and the position in one statement."""
        parts, checks, args = _branch_parts(branches)
        at = len(args)
        active, other = self.office.ledger, 3 - self.office.ledger
        parts += [
            f"moved AS ({_move(at + 1)})",
            f"noted AS (INSERT INTO runner.ledger_{active} SELECT unnest(${at + 4}::bytea[]))",
        ]
        told: list[Any] = []
        if refused:
            told = [list(each) for each in zip(*refused, strict=True)]
            parts.append(
                f"told AS (INSERT INTO runner.rejected (entry, facts)"  # noqa: S608  numbers of ours
                f" SELECT * FROM unnest(${at + 5}::text[], ${at + 6}::bytea[]))"
            )
        # The order matters: the fence is looked at before any branch has run.
        checks = [
            _expect("SELECT count(*) FROM moved", "1", FENCED, "another term has begun"),
            _expect(
                f"SELECT count(*) FROM runner.ledger_{other} WHERE unit = ANY(${at + 4}::bytea[])",  # noqa: S608  numbers of ours
                "0",
                DUPLICATE,
                "applied before",
            ),
            *checks,
        ]
        if seen.tables:
            # Its snapshot is taken when the tables are locked: what changed before, shows.
            next_at = at + 5 + len(told)
            counted = version_sql(f"${next_at}::oid[]", f"${next_at + 1}::oid[]")
            checks.append(_expect(counted, f"${next_at + 2}", CHANGED, "tables changed"))
            told += seen
        prepared = await self._prepare(f"WITH {', '.join(parts)} SELECT {', '.join(checks)}")
        office = self.office
        await prepared.fetch(*args, last, office.epoch, office.position, recorded, *told)

    async def _prepare(self, sql: str) -> PreparedStatement[Record]:
        prepared = self._prepared.get(sql)
        if prepared is None:
            prepared = self._prepared[sql] = await self._connection.prepare(sql)
            if len(self._prepared) > STATEMENTS_KEPT:
                self._prepared.popitem(last=False)
        else:
            self._prepared.move_to_end(sql)
        return prepared

    async def _clean_session(self) -> None:
        """Undo what raw SQL may have left in the session."""
        await self._connection.execute(AFTER_RAW)
        lock = self.office.lock
        locks = await self._advisory_locks()
        for _ in range(RELEASES_AT_MOST):
            if not locks["left_over"]:
                break
            await self._connection.execute(query("give_locks_back"), lock)
            locks = await self._advisory_locks()
        else:
            raise ConnectionResetError("raw SQL took locks without end: the term is over")
        # Taken back at once, nobody can have begun a term; if somebody has, the fence tells.
        if not locks["is_held"] and not await self._connection.fetchval(query("try_lock"), lock):
            raise ConnectionResetError("raw SQL gave the writer's lock away: the term is over")

    async def _advisory_locks(self) -> Record:
        locks = await self._connection.fetchrow(query("advisory_locks"), self.office.lock)
        assert locks is not None
        return locks


def _branch_parts(
    branches: Sequence[Branch],
) -> tuple[list[str], list[str], list[Any]]:
    parts: list[str] = []
    checks: list[str] = []
    args: list[Any] = []
    for number, (statements, arrays, rows, unlike) in enumerate(branches):
        parts.append(statements.branch(number, len(args) + 1, gives_key=bool(unlike)))
        args.extend(arrays)
        if unlike:
            args.append(unlike)
            met = f"SELECT count(*) FROM b{number} WHERE key = ANY(${len(args)}::bigint[])"  # noqa: S608  numbers of ours
            checks.append(_expect(met, "0", PASSED, "a new row has passed what came before it"))
        if statements.counts:
            args.append(rows)
            counted = f"SELECT count(*) FROM b{number}"  # noqa: S608  a number of ours
            checks.append(_expect(counted, f"${len(args)}", MISSING, _missing_text(statements)))
    return parts, checks, args


def _move(first: int) -> str:
    return (
        f"UPDATE runner.writer SET position = ${first}"  # noqa: S608  numbers of ours
        f" WHERE epoch = ${first + 1} AND position = ${first + 2} RETURNING 1"
    )


def _expect(counted: str, expected: str, code: str, message: str) -> str:
    return f"runner.expect(({counted}), {expected}, '{code}', {_literal(message)})"


def _missing_text(statements: Statements) -> str:
    shape = statements.profile.shape
    return (
        f"add to {shape.table!r}: there is no row with this {', '.join(shape.key)}; "
        f"insert it first, or add with missing='insert' or missing='ignore'"
    )


def _literal(text: str) -> str:
    return "E'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
