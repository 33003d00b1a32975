"""Put the operations of a batch into waves, so that few statements do what many would.

Each wave is one statement whose parts all see the same rows: an operation may share a wave
only with operations that it cannot be told apart from in exact order. Every operation gets
the first wave after those that it depends on:

- by a primary key of a simple type: after the last operation on that key. Additions of one
  shape to one key become one, or three when they go up and down: to the highest sum on the
  way, to the lowest and to the last, so that a sum that does not fit is found;
- an insert that leaves its key to the database: after upserts of that table, and operations
  by key come after it; it may pass those that came before, if it does not get one of their keys;
- of one unit, rows that the database numbers after those of other columns before them;
- anything else by its table: after everything on that table, and everything on it comes after;
- what may touch other tables (triggers, cascades, raw SQL): the same for all tables.

Foreign keys are looked at when a statement ends. A row may share the wave of the row that it
refers to, and not come before it; a row goes with those that refer to it, and not before them.

The planner is pure. Facts about tables come in with the profiles of the shapes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from decimal import Context as DecimalContext
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from runner.writer.facts import TableFacts
    from runner.writer.units import Operation, Shape

__all__ = ["Group", "Profile", "Scope", "Wave", "plan", "profile_of"]

Row = list[Any]
_EXACT = DecimalContext(prec=2_000, traps=[])
DIGITS_AT_MOST = 900
"""Before and behind the point: whatever is summed of such numbers, `_EXACT` holds."""


class Scope(enum.Enum):
    """How far an operation may reach."""

    KEY = "the row of one primary key"
    APPEND = "a new row whose key is not known here"
    TABLE = "any row of its table"
    ALL = "any table"


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A shape, and what the planner may do with operations of it.

    Attributes:
        text: the shape as it travels; equal texts are equal shapes.
        shape: the shape, read.
        facts: its table; None for raw SQL.
        width: how many values make one row.
        scope: how far an operation reaches.
        key_of: takes the primary key out of a row; None unless the scope is the key.
        key_classes: the class that each part of the key must have, or the scope is the table.
        key_limits: how long each part of the key may be, or None for any length.
        merges: additions to one key become one.
        decimals: slots that are summed as decimals, with the digits after the point that the
            column keeps, or None for all.
        is_insert: it makes rows and changes none.
        upserts: it makes rows or changes them.
        refers_to: oids of tables whose rows it may come to refer to.
        referred_by: oids of tables that may have to let go of what it takes away.
        makes: it may make what others refer to.
        frees: it may let go of what it refers to.
        draws: the database gives its rows a key that is a whole number, and tells which.
        numbers: the database numbers the rows that it makes.
    """

    text: str
    shape: Shape
    facts: TableFacts | None
    width: int
    scope: Scope
    key_of: Callable[[Row], Any] | None = None
    key_classes: tuple[type, ...] = ()
    key_limits: tuple[int | None, ...] = ()
    merges: bool = False
    decimals: Mapping[int, int | None] = field(default_factory=dict)
    is_insert: bool = False
    upserts: bool = False
    refers_to: tuple[int, ...] = ()
    referred_by: tuple[int, ...] = ()
    makes: bool = False
    frees: bool = False
    draws: bool = False
    numbers: bool = False


@dataclass(slots=True)
class Group:
    """Rows of one shape in one wave.

    Attributes:
        profile: the shape.
        rows: the rows.
        written, unlike: so many of these keys, from the first, were written to before the rows
            were made, and will be behind them: none of the rows may get such a key.
    """

    profile: Profile
    rows: list[Row]
    written: Sequence[Any] = ()
    unlike: int = 0


@dataclass(slots=True)
class Wave:
    """What one statement does; with ``alone`` it is a single operation, as it was written."""

    groups: list[Group]
    alone: bool = False


def profile_of(text: str, shape: Shape, facts: TableFacts | None) -> Profile:
    """Decide how far operations of a shape reach."""
    if facts is None:
        return Profile(text, shape, None, 0, Scope.ALL)
    slots, classes = _key_places(shape, facts)
    scope = _scope(shape, facts, by_key=bool(slots))
    upserts = shape.kind == "upsert" or shape.missing == "insert"
    fresh = shape.kind == "insert" or upserts
    changed = _changed_columns(shape)
    repointed = [oid for columns, oid in facts.references if columns & changed]
    takes = shape.kind == "delete" or not changed.isdisjoint(_keys(facts))
    merges, decimals = _merging(shape, facts) if scope is Scope.KEY else (False, {})
    return Profile(
        text=text,
        shape=shape,
        facts=facts,
        width=len(shape.columns),
        scope=scope,
        key_of=itemgetter(*slots) if scope is Scope.KEY else None,
        key_classes=classes,
        key_limits=_key_limits(facts),
        merges=merges,
        decimals=decimals,
        is_insert=shape.kind == "insert",
        upserts=upserts,
        refers_to=tuple({oid for _, oid in facts.references} if fresh else set(repointed)),
        referred_by=facts.referenced_by if takes else (),
        makes=bool(facts.referenced_by) and (fresh or takes),
        frees=bool(facts.references) and (shape.kind == "delete" or bool(repointed)),
        draws=scope is Scope.APPEND and _draws(shape, facts),
        numbers=fresh and _is_numbered(shape, facts),
    )


def plan(
    operations: Sequence[Operation], profiles: Mapping[str, Profile], firsts: Collection[int] = ()
) -> list[Wave]:
    """Return the waves of these operations, in order.

    Args:
        operations: of one unit after the other.
        profiles: of all their shapes.
        firsts: the places of those with which a unit begins.
    """
    planner = _Planner()
    for place, (text, values) in enumerate(operations):
        profile = profiles[text]
        if place in firsts:
            planner.begin_unit()
        if len(values) == profile.width or profile.facts is None:
            planner.put(profile, values)
        else:
            for at in range(0, len(values), profile.width):
                planner.put(profile, values[at : at + profile.width])
    return planner.waves()


def _scope(shape: Shape, facts: TableFacts, *, by_key: bool) -> Scope:
    changed = _changed_columns(shape)
    if facts.is_alone or _acts_elsewhere(shape, facts, changed):
        return Scope.ALL
    if shape.kind == "insert":
        # Where keys cannot be compared, everything but an insert takes the whole table.
        return Scope.KEY if by_key else Scope.APPEND
    if not by_key or set(shape.key) != set(facts.primary_key):
        return Scope.TABLE
    if facts.unique_columns and (
        shape.kind == "delete" or not facts.unique_columns.isdisjoint(changed)
    ):
        return Scope.TABLE
    if not changed.isdisjoint(facts.primary_key):
        return Scope.TABLE
    return Scope.KEY


def _changed_columns(shape: Shape) -> frozenset[str]:
    """Return the columns of existing rows that an operation may change."""
    match shape.kind:
        case "upsert":
            return frozenset(shape.overwritten)
        case "add" | "update":
            return frozenset(shape.columns[len(shape.key) :])
        case _:
            return frozenset()


def _acts_elsewhere(shape: Shape, facts: TableFacts, changed: frozenset[str]) -> bool:
    if shape.kind == "delete":
        return facts.acts_on_delete
    return facts.acts_on_update and not changed.isdisjoint(_keys(facts))


def _is_numbered(shape: Shape, facts: TableFacts) -> bool:
    return any(c.numbered and name not in shape.columns for name, c in facts.columns.items())


def _draws(shape: Shape, facts: TableFacts) -> bool:
    if len(facts.primary_key) != 1 or shape.returning is not None:
        return False
    key = facts.primary_key[0]
    given = (facts.columns.get(name) for name in shape.columns)
    return (
        key not in shape.columns
        and facts.columns[key].key_class is int
        and all(column is not None and column.is_plain for column in given)
    )


def _keys(facts: TableFacts) -> frozenset[str]:
    return facts.unique_columns.union(facts.primary_key)


def _key_places(shape: Shape, facts: TableFacts) -> tuple[tuple[int, ...], tuple[type, ...]]:
    """Return where the primary key lies, or nothing when it cannot be compared in Python."""
    slots: list[int] = []
    classes: list[type] = []
    columns = shape.columns if shape.kind in ("insert", "upsert") else shape.key
    for name in facts.primary_key:
        column = facts.columns.get(name)
        kind = column.key_class if column else None
        if name not in columns or kind is None:
            return (), ()
        slots.append(columns.index(name))
        classes.append(kind)
    return tuple(slots), tuple(classes)


def _key_limits(facts: TableFacts) -> tuple[int | None, ...]:
    columns = (facts.columns.get(name) for name in facts.primary_key)
    limits = tuple(column.length if column else None for column in columns)
    return limits if any(limit is not None for limit in limits) else ()


def _merging(shape: Shape, facts: TableFacts) -> tuple[bool, dict[int, int | None]]:
    if shape.kind != "add":
        return False, {}
    decimals: dict[int, int | None] = {}
    for slot in range(len(shape.key), len(shape.columns)):
        name = shape.columns[slot]
        column = facts.columns.get(name)
        if column is None or name in facts.checked or not column.is_summed:
            return False, {}
        if column.base == "numeric":
            decimals[slot] = column.scale
    return True, decimals


@dataclass(slots=True)
class _Place:
    """Where the last operation on a key went: its wave, or its first and last."""

    wave: int
    last: int
    profile: Profile
    row: Row
    course: _Course | None = None


@dataclass(slots=True)
class _Course:
    """How the sums of additions that go up and down went."""

    high: Row
    low: Row
    sums: Row


@dataclass(slots=True)
class _Table:
    """Where the operations on one table went: waves, -1 for none."""

    floor: int = 0
    last: int = -1
    last_append: int = -1
    last_upsert: int = -1
    last_made: int = -1
    last_freed: int = -1
    last_written: int = -1
    written: list[Any] = field(default_factory=list)
    keys: dict[Any, _Place] = field(default_factory=dict)


class _Planner:
    def __init__(self) -> None:
        self._tables: dict[int, _Table] = {}
        self._groups: list[dict[str, Group]] = []
        self._alone: set[int] = set()
        self._courses: list[_Place] = []
        self._floor = 0
        self._numbered: dict[int, tuple[Profile, int]] = {}

    def begin_unit(self) -> None:
        """Hear that the operations from here on are another unit's."""
        self._numbered.clear()

    def put(self, profile: Profile, row: Row) -> None:
        if profile.scope is Scope.ALL:
            self._put_alone(profile, row)
            return
        assert profile.facts is not None
        table = self._tables.get(profile.facts.oid)
        if table is None:
            table = self._tables[profile.facts.oid] = _Table()
        # A million times a minute: comparisons, where max() would read better.
        floor = table.floor
        if floor < self._floor:
            floor = table.floor = self._floor
        if profile.refers_to or profile.referred_by:
            floor = self._floor_by_references(profile, floor)
        if profile.numbers:
            floor = self._floor_by_numbers(profile, floor)
        if profile.key_of is not None and _is_simple(key := profile.key_of(row), profile):
            wave = self._put_by_key(table, floor, profile, row, key)
        elif profile.scope is Scope.APPEND:
            wave = self._put_append(table, floor, profile, row)
        else:
            wave = self._put_barrier(table, floor, profile, row)
        table.last = max(table.last, wave)
        if profile.makes or profile.frees or profile.numbers:
            self._note(table, profile, wave)

    def _note(self, table: _Table, profile: Profile, wave: int) -> None:
        assert profile.facts is not None
        if profile.numbers:
            self._numbered[profile.facts.oid] = (profile, wave)
        if profile.makes and wave > table.last_made:
            table.last_made = wave
        if profile.frees and wave > table.last_freed:
            table.last_freed = wave

    def _floor_by_numbers(self, profile: Profile, floor: int) -> int:
        """Let the rows of one unit be numbered as it makes them, also those of other columns."""
        assert profile.facts is not None
        before, wave = self._numbered.get(profile.facts.oid, (profile, 0))
        return max(floor, wave if before is profile else wave + 1)

    def _floor_by_references(self, profile: Profile, floor: int) -> int:
        for oid in profile.refers_to:
            other = self._tables.get(oid)
            if other is not None and other.last_made > floor:
                floor = other.last_made
        for oid in profile.referred_by:
            other = self._tables.get(oid)
            if other is not None and other.last_freed > floor:
                floor = other.last_freed
        return floor

    def _put_by_key(self, table: _Table, floor: int, profile: Profile, row: Row, key: Any) -> int:
        place = table.keys.get(key)
        wave = floor
        if not profile.is_insert and table.last_append >= wave:
            wave = table.last_append + 1
        if place is not None and place.last >= wave:
            can_merge = place.profile is profile and profile.merges and place.wave >= wave
            if can_merge and self._merge(place, row):
                return place.last
            wave = place.last + 1
        if profile.merges:
            row = row.copy()  # it grows by what is merged; the operation stays as it is
        table.keys[key] = _Place(wave, wave, profile, row)
        if wave and not profile.is_insert:
            table.written.append(key)
            table.last_written = max(table.last_written, wave)
        if profile.upserts and wave > table.last_upsert:
            table.last_upsert = wave
        self._add(wave, profile, row)
        return wave

    def _put_append(self, table: _Table, floor: int, profile: Profile, row: Row) -> int:
        wave = max(floor, table.last_upsert + 1)
        if wave < table.last_written and not profile.draws:
            wave = table.last_written
        table.last_append = max(table.last_append, wave)
        group = self._add(wave, profile, row)
        if wave < table.last_written:
            # It may get a key that was written to before, in vain, by what runs behind it now.
            group.written, group.unlike = table.written, len(table.written)
        return wave

    def _put_barrier(self, table: _Table, floor: int, profile: Profile, row: Row) -> int:
        wave = max(floor, table.last + 1)
        table.floor = wave + 1
        self._add(wave, profile, row)
        return wave

    def _put_alone(self, profile: Profile, row: Row) -> None:
        wave = len(self._groups)
        self._floor = wave + 1
        self._alone.add(wave)
        self._add(wave, profile, row)

    def _merge(self, place: _Place, more: Row) -> bool:
        """Add what ``more`` adds to the place; False when it cannot be summed exactly."""
        profile, row = place.profile, place.row
        first = len(profile.shape.key)
        if place.course is None and profile.width == first + 1 and not profile.decimals:
            # Nearly all of them: one whole number goes on as it went.
            one, other = row[first], more[first]
            if type(one) is int is type(other) and (one > 0 < other or one < 0 > other):
                row[first] = one + other
                return True
        return self._merge_columns(place, more[first:], first)

    def _merge_columns(self, place: _Place, deltas: Row, first: int) -> bool:
        course = place.course
        before = place.row[first:] if course is None else course.sums
        sums = _summed(before, deltas, place.profile, first)
        if sums is None:
            return False
        if course is None:
            if _same_way(before, deltas):
                place.row[first:] = sums
                return True
            course = place.course = self._fork(place, before)
        course.sums = sums
        course.high = list(map(max, course.high, sums))
        course.low = list(map(min, course.low, sums))
        place.row[first:] = course.high
        return True

    def _fork(self, place: _Place, sums: Row) -> _Course:
        """Keep two waves more for additions that turned round."""
        assert place.profile.facts is not None
        self._courses.append(place)
        place.last = place.wave + 2
        self._reach(place.last)
        table = self._tables[place.profile.facts.oid]
        assert place.profile.key_of is not None
        table.written.append(place.profile.key_of(place.row))
        table.last_written = max(table.last_written, place.last)
        if place.profile.upserts:
            table.last_upsert = max(table.last_upsert, place.last)
        return _Course(sums, sums, sums)

    def _follow(self, place: _Place) -> None:
        """Add the rows that go from the highest sum to the lowest, and to the last."""
        assert place.course is not None
        course, key = place.course, place.row[: len(place.profile.shape.key)]
        for wave, to, since in (
            (place.wave + 1, course.low, course.high),
            (place.wave + 2, course.sums, course.low),
        ):
            deltas = list(map(_less, to, since))
            if any(deltas):
                self._add(wave, place.profile, key + deltas)

    def _add(self, wave: int, profile: Profile, row: Row) -> Group:
        if wave >= len(self._groups):
            self._reach(wave)
        groups = self._groups[wave]
        group = groups.get(profile.text)
        if group is None:
            group = groups[profile.text] = Group(profile, [row])
        else:
            group.rows.append(row)
        return group

    def _reach(self, wave: int) -> None:
        while wave >= len(self._groups):
            self._groups.append({})

    def waves(self) -> list[Wave]:
        for place in self._courses:
            self._follow(place)
        return [
            Wave(list(groups.values()), alone=number in self._alone)
            for number, groups in enumerate(self._groups)
            if groups
        ]


def _is_simple(key: Any, profile: Profile) -> bool:
    """Say whether equality of this key in Python is equality in Postgres."""
    classes = profile.key_classes
    if len(classes) == 1:
        if type(key) is not classes[0]:
            return False
        if not profile.key_limits:
            return True
        key = (key,)
    elif tuple(map(type, key)) != classes:
        return False
    return not profile.key_limits or all(
        limit is None or len(part) <= limit
        for part, limit in zip(key, profile.key_limits, strict=True)
    )


def _summed(left: Row, right: Row, profile: Profile, first: int) -> Row | None:
    """Return the sums of deltas; None when they cannot be summed exactly."""
    sums: Row = []
    for slot, (one, other) in enumerate(zip(left, right, strict=True), start=first):
        if slot not in profile.decimals:
            if type(one) is not int or type(other) is not int:
                return None
            sums.append(one + other)
            continue
        scale = profile.decimals[slot]
        if not (_is_exact(one, scale) and _is_exact(other, scale)):
            return None
        sums.append(_EXACT.add(Decimal(one), Decimal(other)))
    return sums


def _same_way(sums: Row, deltas: Row) -> bool:
    """Say whether all columns go on in the direction in which they went."""
    return all(
        one >= 0 <= other or one <= 0 >= other for one, other in zip(sums, deltas, strict=True)
    )


def _less(one: Any, other: Any) -> Any:
    if isinstance(one, int):
        return one - other
    return _EXACT.subtract(one, other)


def _is_exact(value: Any, scale: int | None) -> bool:
    """Say whether a numeric column keeps this value as it is, each time it is added."""
    if type(value) is int:
        return scale is None or scale >= 0
    if not isinstance(value, Decimal):
        return False  # a float: asyncpg writes out all its binary digits
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or max(value.adjusted(), -exponent) > DIGITS_AT_MOST:
        return False  # NaN and infinity among them
    return scale is None or exponent >= -scale
