"""Decide how far operations of a shape reach: over one row, a table, or everything."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from runner.writer.facts import TableFacts
    from runner.writer.units import Shape

__all__ = ["Profile", "Row", "Scope", "is_simple", "profile_of"]

Row = list[Any]


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


def is_simple(key: Any, profile: Profile) -> bool:
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
