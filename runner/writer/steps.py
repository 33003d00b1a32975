"""Turn units into steps: the calls to Postgres that do what their operations say.

Steps of planned units are right only for tables that are as their facts say. Those of one unit
in its own order are right for any.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from runner.writer.failures import BadValue
from runner.writer.guards import AFTER_RAW
from runner.writer.plan import Wave, plan
from runner.writer.profiles import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runner.writer.catalogue import Known
    from runner.writer.entries import Unit
    from runner.writer.facts import TableFacts
    from runner.writer.plan import Group
    from runner.writer.profiles import Profile, Row
    from runner.writer.statements import Statements
    from runner.writer.units import Operation

__all__ = [
    "Branch",
    "Step",
    "Watched",
    "prepare_steps",
    "raw_texts",
    "reset_steps",
    "steps_in_order",
    "watched",
]

BRANCHES_AT_MOST = 16


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

    @property
    def is_foreign(self) -> bool:
        """Whether it may run SQL that is not ours: raw SQL, or triggers of a table."""
        if self.sql:
            return True
        return (self.alone is not None and self.asked is None) or self.reaches_all

    @property
    def reaches_all(self) -> bool:
        """Whether it may touch any table, and what the session is set to."""
        statements, _ = self.many or self.alone or (None, None)
        return statements is not None and statements.profile.scope is Scope.ALL


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
    return [Step(sql=AFTER_RAW)] if lingers else []


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


class Watched(NamedTuple):
    """Tables that something is about, their partitions, and what was counted for them."""

    tables: Sequence[int] = ()
    partitions: Sequence[int] = ()
    version: int = 0


def watched(steps: Sequence[Step]) -> Watched:
    """Return the tables that the steps are about.

    Shapes of one table may have been learnt before a change of it and behind it: then its versions
    are summed, and that is the version of no moment.
    """
    found: dict[tuple[int, int], TableFacts] = {}
    for step in steps:
        for statements, *_ in step.branches or filter(None, (step.many or step.alone,)):
            facts = statements.profile.facts
            if facts is not None:
                found[facts.oid, facts.version] = facts
    return Watched(
        tables=[facts.oid for facts in found.values()],
        partitions=[oid for facts in found.values() for oid in facts.partitions],
        version=sum(facts.version for facts in found.values()),
    )


def raw_texts(steps: Sequence[Step]) -> str:
    """Return the raw SQL of the steps: the tables that it is about are not known."""
    found = (step.many or step.alone for step in steps)
    texts = {each[0].single for each in found if each and each[0].profile.facts is None}
    return "\n".join(sorted(texts))
