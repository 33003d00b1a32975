"""Apply units in one transaction, together with the position that says so.

What can be is one statement: a WITH whose branches take arrays, whose ledger branch records
the units, and whose last part compares and advances the position. Its main query looks at
the position first, so that a writer whose term is over learns of that, and of nothing else.
"""

from __future__ import annotations

import collections
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.writer.failures import DUPLICATE, FENCED, MISSING, PASSED, BadValue
from runner.writer.plan import Scope, Wave, plan
from runner.writer.queries import query
from runner.writer.statements import raw_row
from runner.writer.tallying import Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from asyncpg import Connection, Record
    from asyncpg.prepared_stmt import PreparedStatement

    from runner.writer.catalogue import Known
    from runner.writer.entries import Unit
    from runner.writer.plan import Group, Profile, Row
    from runner.writer.statements import Statements
    from runner.writer.units import Operation

__all__ = ["Applier", "Office", "Step", "prepare_steps", "reset_steps", "steps_in_order"]

BRANCHES_AT_MOST = 16
STATEMENTS_KEPT = 200

# The session plans for structured statements: look rows up by index, whatever the statistics of
# a table that grows by thousands of rows a second say. Raw SQL and triggers get the defaults.
PLANNER_SETTINGS = {
    "plan_cache_mode": ("force_generic_plan", "auto"),
    "enable_seqscan": ("off", "on"),
    "enable_hashjoin": ("off", "on"),
    "enable_mergejoin": ("off", "on"),
}
_AFTER_RAW = (
    "RESET ALL; RESET SESSION AUTHORIZATION; RESET ROLE; DISCARD TEMP; CLOSE ALL; UNLISTEN *"
)
"""Undoes what raw SQL may have left in the session, also within a transaction."""


def _settings(at: int) -> str:
    calls = (
        f"set_config('{name}', '{values[at]}', true)" for name, values in PLANNER_SETTINGS.items()
    )
    return f"SELECT {', '.join(calls)}"


_OURS, _DEFAULTS = _settings(0), _settings(1)


@dataclass(slots=True)
class Office:
    """What a leader holds.

    Attributes:
        epoch: the number of its term.
        position: the last entry that it knows to be applied.
        ledger: which of the two ledgers is in use.
        lock: the number of the advisory lock.
        answered: the last entry that callers were told of when the term began.
        ledger_age_s: how long the ledger had been in use then.
        losses: how many sessions were lost at this very position before.
        redis_lost: whether the entry at the position is not in the stream any more.
    """

    epoch: int
    position: str
    ledger: int
    lock: int
    answered: str
    ledger_age_s: float = 0.0
    losses: int = 0
    redis_lost: bool = False


class Branch(NamedTuple):
    """One branch of a WITH: its statement, its arrays, and how many rows these hold.

    ``unlike`` are keys that none of the rows may get from the database.
    """

    statements: Statements
    arrays: list[Any]
    rows: int
    unlike: list[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One call to Postgres.

    Exactly one of the four is meant: branches of a WITH with their arrays, rows for
    ``executemany``, one row alone, or a statement of our own. ``asked`` says who wants to know
    what that row did: a unit, and the place of the operation in it.
    """

    branches: Sequence[Branch] = ()
    many: tuple[Statements, list[Row]] | None = None
    alone: tuple[Statements, Row] | None = None
    sql: str = ""
    asked: tuple[Unit, int] | None = None


def prepare_steps(units: Sequence[Unit], known: Known) -> list[Step]:
    """Plan units and put their values into arrays; raise `BadValue` for one that cannot be.

    What Postgres would look at when a unit commits, it must look at between the units, and what
    raw SQL leaves in the session must not reach the next one: such units are run in their own
    order, and what comes before them is planned apart from what comes behind.
    """
    if not any(statements.flush or statements.lingers for statements in known.values()):
        return _in_runs(_planned_units(units, known))
    steps: list[Step] = []
    for is_apart, some in itertools.groupby(units, lambda unit: _is_apart(unit, known)):
        if not is_apart:
            steps += _planned_units(list(some), known)
            continue
        for unit in some:
            flush = next((s.flush for s in _statements(unit, known) if s.flush), "")
            steps += (*steps_in_order(unit, known), *((Step(sql=flush),) if flush else ()))
            steps += reset_steps(unit, known)
    return _in_runs(steps)


def _statements(unit: Unit, known: Known) -> Iterable[Statements]:
    return (known[text] for text, _ in unit.operations)


def _is_apart(unit: Unit, known: Known) -> bool:
    return any(statements.flush or statements.lingers for statements in _statements(unit, known))


def reset_steps(unit: Unit, known: Known) -> list[Step]:
    """Return what undoes what this unit may leave in the session, if it may."""
    lingers = any(statements.lingers for statements in _statements(unit, known))
    return [Step(sql=_AFTER_RAW)] if lingers else []


def _in_runs(steps: Iterable[Step]) -> list[Step]:
    """Let rows of one statement that follow each other travel together, in their order."""
    found: list[Step] = []
    for run, some in itertools.groupby(steps, _run_of):
        alike = list(some)
        if not run or len(alike) == 1:
            found += alike
            continue
        statements = alike[0].alone[0] if alike[0].alone else None
        assert statements is not None
        found.append(Step(many=(statements, [step.alone[1] for step in alike if step.alone])))
    return found


def _run_of(step: Step) -> int:
    """Name the statement of a step of which nothing need be known but that it passes, or 0."""
    if step.alone is None or step.asked is not None or step.alone[0].counts:
        return 0
    return id(step.alone[0])


def _planned_units(units: Sequence[Unit], known: Known) -> list[Step]:
    """Plan units together.

    An operation whose unit asks what it did, and that must be run to know, is a step of its
    own: what comes before it in the batch is planned apart from what comes behind it.
    """
    profiles = {text: statements.profile for text, statements in known.items()}
    steps: list[Step] = []
    together: list[Operation] = []
    firsts: set[int] = set()
    for unit in units:
        firsts.add(len(together))
        if unit.asks is None:
            together += unit.operations
            continue
        for place, operation in enumerate(unit.operations):
            if known[operation[0]].tells:
                if together:
                    steps += _planned(together, profiles, known, firsts)
                    together, firsts = [], set()
                steps += _asked_steps(unit, place, known)
            else:
                together.append(operation)
    return steps + _planned(together, profiles, known, firsts)


def _planned(
    operations: Sequence[Operation],
    profiles: Mapping[str, Profile],
    known: Known,
    firsts: set[int],
) -> list[Step]:
    steps: list[Step] = []
    for wave in plan(operations, profiles, firsts):
        steps.extend(_wave_steps(wave, known))
    return steps


def _asked_steps(unit: Unit, place: int, known: Known) -> list[Step]:
    text, values = unit.operations[place]
    statements = known[text]
    return [Step(alone=(statements, row), asked=(unit, place)) for row in _rows(statements, values)]


def _wave_steps(wave: Wave, known: Known) -> list[Step]:
    if wave.alone:
        group = wave.groups[0]
        statements = known[group.profile.text]
        return [Step(alone=(statements, statements.row(row))) for row in group.rows]
    before: list[Step] = []
    after: list[Step] = []
    branches: list[Branch] = []
    groups = wave.groups
    if len(groups) <= BRANCHES_AT_MOST:
        groups = sorted(groups, key=lambda group: group.profile.text)
    for group in groups:
        statements = known[group.profile.text]
        if statements.is_plain:
            unlike = list(group.written[: group.unlike])
            arrays = statements.arrays(group.rows)
            branches.append(Branch(statements, arrays, len(group.rows), unlike))
        else:
            steps = after if group.profile.refers_to and not group.profile.makes else before
            steps.extend(_slow_steps(group, statements))
    together = [
        Step(branches=branches[at : at + BRANCHES_AT_MOST])
        for at in range(0, len(branches), BRANCHES_AT_MOST)
    ]
    return [*before, *together, *after]


def steps_in_order(unit: Unit, known: Known) -> list[Step]:
    """Return the operations of one unit as they were written; equal ones in a row together."""
    steps: list[Step] = []
    for place, (text, values) in enumerate(unit.operations):
        statements = known[text]
        if unit.asks is not None and statements.tells:
            steps += _asked_steps(unit, place, known)
            continue
        rows = _rows(statements, values)
        if len(rows) > 1 and not statements.counts:
            steps.append(Step(many=(statements, rows)))
        else:
            steps.extend(Step(alone=(statements, row)) for row in rows)
    return steps


def _rows(statements: Statements, values: list[Any]) -> list[Row]:
    """Return the rows that lie behind each other in the values, as asyncpg takes them."""
    width = len(statements.columns) or len(values) or 1
    rows: list[Row] = []
    for at in range(0, len(values) or 1, width):
        row = values[at : at + width]
        try:
            rows.append(statements.row(row))
        except BadValue as exc:
            exc.place = (statements, row)
            raise
    return rows


def _slow_steps(group: Group, statements: Statements) -> list[Step]:
    """Values that no array of scalars can hold: one by one where rows must be counted."""
    rows = [statements.row(row) for row in group.rows]
    if statements.counts or len(rows) == 1:
        return [Step(alone=(statements, row)) for row in rows]
    return [Step(many=(statements, rows))]


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
    ) -> dict[str, bytes]:
        """Apply the steps, record the units and move the position behind the last of them.

        Args:
            steps: what to do.
            units: the units behind the position, in order; those without a key, and those
                that were refused, are not recorded.
            refused: entries that are refused, and why.

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
        if len(steps) <= 1 and not (steps and not steps[0].branches):
            await self._fused(steps[0].branches if steps else (), recorded, refused, last)
        else:
            answers = await self._in_transaction(steps, recorded, refused, last)
        self.office.position = last
        return answers

    async def _in_transaction(
        self,
        steps: Sequence[Step],
        recorded: list[bytes],
        refused: Sequence[tuple[str, bytes]],
        last: str,
    ) -> dict[str, bytes]:
        try:
            async with self._connection.transaction():
                tallies = await self._run(steps[:-1] if steps and steps[-1].branches else steps)
                answers = {tally.entry: tally.encode() for tally in tallies}
                for entry, answer in answers.items():
                    await self._connection.execute(query("answer"), entry, answer)
                branches = steps[-1].branches if steps else ()
                await self._fused(branches, recorded, refused, last)
            return answers
        finally:
            # Also after a rollback, which gives no advisory lock back.
            if any(_reaches_all(step) for step in steps) and not self._connection.is_closed():
                await self._clean_session()

    async def _run(self, steps: Sequence[Step]) -> Iterable[Tally]:
        tallies: dict[str, Tally] = {}
        defaults = False
        for step in steps:
            if _is_foreign(step) != defaults:
                defaults = not defaults
                await self._connection.execute(_DEFAULTS if defaults else _OURS)
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
                defaults = defaults and step.sql != _AFTER_RAW
            self.running = None
        if defaults:
            await self._connection.execute(_OURS)
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
        await self._connection.execute(_AFTER_RAW)
        lock = self.office.lock
        held = await self._connection.fetchval(query("holds_lock"), lock)
        # Taken back at once, nobody can have begun a term; if somebody has, the fence tells.
        if not held and not await self._connection.fetchval(query("try_lock"), lock):
            raise ConnectionResetError("raw SQL gave the writer's lock away: the term is over")


def _is_foreign(step: Step) -> bool:
    """Say whether a step may run SQL that is not ours: raw SQL, or triggers of a table."""
    if step.sql:
        return True
    return (step.alone is not None and step.asked is None) or _reaches_all(step)


def _reaches_all(step: Step) -> bool:
    statements, _ = step.many or step.alone or (None, None)
    return statements is not None and statements.profile.scope is Scope.ALL


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
