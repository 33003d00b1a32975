"""Put the operations of a batch into waves, so that few statements do what many would.

Each wave is one statement whose parts all see the same rows: an operation may share a wave
only with operations that it cannot be told apart from in exact order. Every operation gets
the first wave after those that it depends on:

- by a primary key of a simple type: after the last operation on that key. Two additions of
  one shape to one key become one;
- an insert that leaves its key to the database: after upserts of that table, and operations
  by key come after it;
- anything else by its table: after everything on that table, and everything on it comes after;
- what may touch other tables (triggers, cascades, raw SQL): the same for all tables.

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
    from collections.abc import Callable, Mapping, Sequence

    from runner.writer.facts import TableFacts
    from runner.writer.units import Operation, Shape

__all__ = ["Group", "Profile", "Scope", "Wave", "plan", "profile_of"]

Row = list[Any]
_EXACT = DecimalContext(prec=2_000, traps=[])


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


@dataclass(slots=True)
class Group:
    """Rows of one shape in one wave."""

    profile: Profile
    rows: list[Row]


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
        upserts=shape.kind == "upsert" or shape.missing == "insert",
    )


def plan(operations: Sequence[Operation], profiles: Mapping[str, Profile]) -> list[Wave]:
    """Return the waves of these operations, in order."""
    planner = _Planner()
    for text, values in operations:
        profile = profiles[text]
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
    keys = facts.unique_columns.union(facts.primary_key)
    return facts.acts_on_update and not changed.isdisjoint(keys)


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
    """Where the last operation on a key went."""

    wave: int
    profile: Profile
    row: Row


@dataclass(slots=True)
class _Table:
    """Where the operations on one table went: waves, -1 for none."""

    floor: int = 0
    last: int = -1
    last_append: int = -1
    last_upsert: int = -1
    keys: dict[Any, _Place] = field(default_factory=dict)


class _Planner:
    def __init__(self) -> None:
        self._tables: dict[int, _Table] = {}
        self._groups: list[dict[str, Group]] = []
        self._alone: set[int] = set()
        self._floor = 0

    def put(self, profile: Profile, row: Row) -> None:
        scope = profile.scope
        if scope is Scope.ALL:
            self._put_alone(profile, row)
            return
        assert profile.facts is not None
        table = self._tables.get(profile.facts.oid)
        if table is None:
            table = self._tables[profile.facts.oid] = _Table()
        table.floor = max(table.floor, self._floor)
        if profile.key_of is not None:
            key = profile.key_of(row)
            if _is_simple(key, profile):
                self._put_by_key(table, profile, row, key)
            else:
                self._put_barrier(table, profile, row)
        elif scope is Scope.APPEND:
            self._put_append(table, profile, row)
        else:
            self._put_barrier(table, profile, row)

    def _put_by_key(self, table: _Table, profile: Profile, row: Row, key: Any) -> None:
        place = table.keys.get(key)
        wave = table.floor
        if not profile.is_insert and table.last_append >= wave:
            wave = table.last_append + 1
        if place is not None and place.wave >= wave:
            if place.profile is profile and profile.merges and _merge(place.row, row, profile):
                return
            wave = place.wave + 1
        if profile.merges:
            row = row.copy()  # it grows by what is merged; the operation stays as it is
        if place is None:
            table.keys[key] = _Place(wave, profile, row)
        else:
            place.wave, place.profile, place.row = wave, profile, row
        if profile.upserts and wave > table.last_upsert:
            table.last_upsert = wave
        table.last = max(table.last, wave)
        self._add(wave, profile, row)

    def _put_append(self, table: _Table, profile: Profile, row: Row) -> None:
        wave = max(table.floor, table.last_upsert + 1)
        table.last_append = max(table.last_append, wave)
        table.last = max(table.last, wave)
        self._add(wave, profile, row)

    def _put_barrier(self, table: _Table, profile: Profile, row: Row) -> None:
        wave = max(table.floor, table.last + 1)
        table.last = wave
        table.floor = wave + 1
        self._add(wave, profile, row)

    def _put_alone(self, profile: Profile, row: Row) -> None:
        wave = len(self._groups)
        self._floor = wave + 1
        self._alone.add(wave)
        self._add(wave, profile, row)

    def _add(self, wave: int, profile: Profile, row: Row) -> None:
        while wave >= len(self._groups):
            self._groups.append({})
        groups = self._groups[wave]
        group = groups.get(profile.text)
        if group is None:
            groups[profile.text] = Group(profile, [row])
        else:
            group.rows.append(row)

    def waves(self) -> list[Wave]:
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
        key = (key,)
    elif tuple(map(type, key)) != classes:
        return False
    return not profile.key_limits or all(
        limit is None or len(part) <= limit
        for part, limit in zip(key, profile.key_limits, strict=True)
    )


def _merge(row: Row, more: Row, profile: Profile) -> bool:
    """Add the deltas of ``more`` to the row; False when they cannot be summed exactly."""
    slots = range(len(profile.shape.key), profile.width)
    if profile.decimals:
        return _merge_decimals(row, more, profile)
    try:
        sums = [row[slot] + more[slot] for slot in slots]
    except TypeError:
        return False
    row[slots.start :] = sums
    return True


def _merge_decimals(row: Row, more: Row, profile: Profile) -> bool:
    sums: Row = []
    for slot in range(len(profile.shape.key), profile.width):
        left, right = row[slot], more[slot]
        if slot not in profile.decimals:
            if type(left) is not type(right):
                return False
            sums.append(left + right)
            continue
        scale = profile.decimals[slot]
        if not (_is_exact(left, scale) and _is_exact(right, scale)):
            return False
        sums.append(_EXACT.add(Decimal(left), Decimal(right)))
    row[len(profile.shape.key) :] = sums
    return True


def _is_exact(value: Any, scale: int | None) -> bool:
    """Say whether a numeric column keeps this value as it is, each time it is added."""
    if type(value) is int:
        return scale is None or scale >= 0
    if not isinstance(value, Decimal):
        return False  # a float: asyncpg writes out all its binary digits
    if scale is None or not value.is_finite():
        return value.is_finite()
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and exponent >= -scale
