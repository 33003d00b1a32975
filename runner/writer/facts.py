"""What the planner knows about a table: plain values, taken from the catalogue."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ColumnFacts", "TableFacts"]

# A key may be compared in Python where Postgres's equality of the type is Python's equality of
# these classes. Not so, for instance, for citext, char(n), interval or numeric.
KEY_CLASSES: Mapping[str, type] = {
    "int2": int,
    "int4": int,
    "int8": int,
    "uuid": uuid.UUID,
    "text": str,
    "varchar": str,
    "date": dt.date,
    "timestamp": dt.datetime,
    "timestamptz": dt.datetime,
    "bool": bool,
    "bytea": bytes,
}

# Types whose values asyncpg takes as sequences: in an array they would read as dimensions.
_SEQUENCES = frozenset({"point", "line", "lseg", "box", "path", "polygon", "circle"})
# Sums of floats depend on the order: they are added one by one.
_MERGED = frozenset({"int2", "int4", "int8", "numeric"})


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """One column.

    Attributes:
        base: the name of the type, below any domain.
        kind: Postgres's ``typtype`` of that type: b, c, e, r or m.
        is_array: whether the type, below any domain, is an array.
        is_domain: whether the column's own type is a domain.
        bounded: whether the type has a precision of its own, and values are rounded to it.
        length: of a varchar with a length, that length.
        deterministic: whether equal text is the same text in this collation.
        scale: of a numeric with a scale, the digits after the point.
        numbered: whether the database numbers the rows in it, by a sequence.
    """

    base: str
    kind: str = "b"
    is_array: bool = False
    is_domain: bool = False
    bounded: bool = False
    length: int | None = None
    deterministic: bool = True
    scale: int | None = None
    numbered: bool = False

    @property
    def key_class(self) -> type | None:
        """The class that values must have to be compared as keys in Python, or None."""
        if self.is_domain or self.is_array or self.bounded or not self.deterministic:
            return None
        return KEY_CLASSES.get(self.base)

    @property
    def is_plain(self) -> bool:
        """Whether an array of such values can be given to ``unnest``."""
        return self.kind in "be" and not self.is_array and self.base not in _SEQUENCES

    @property
    def is_json(self) -> bool:
        """Whether a dict or a list is to be written as JSON."""
        return self.base in ("json", "jsonb") and not self.is_array

    @property
    def is_summed(self) -> bool:
        """Whether additions may be summed in Python with the same result."""
        return self.base in _MERGED and not self.is_array and not self.is_domain


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFacts:
    """One table.

    Attributes:
        oid: what tells tables apart, however they are spelt.
        partitions: the oids of its partitions.
        version: what `version_sql` counted for these when the facts were read.
        schema: its schema.
        name: its name.
        columns: its columns by name.
        primary_key: the columns of the primary key, () without one.
        unique_columns: columns in another unique index or exclusion constraint.
        checked: columns that may refuse a value: a CHECK, a generated column or the expression
            of an index looks at them, or their domain has a CHECK.
        is_alone: statements on it may touch other tables, or see each other: triggers, rules,
            row-level security, views, foreign tables, inheritance, a CHECK by a function.
        is_deferred: constraints of it other than foreign keys are looked at when a transaction
            ends.
        acts_on_delete: foreign keys elsewhere act, or look at once, when a row is deleted.
        acts_on_update: foreign keys elsewhere act, or look at once, when a key is changed.
        references: its foreign keys: their columns, and the oid of the table they refer to.
        referenced_by: the oids of tables that refer to it.
    """

    oid: int
    partitions: tuple[int, ...] = ()
    version: int = 0
    schema: str
    name: str
    columns: Mapping[str, ColumnFacts]
    primary_key: tuple[str, ...] = ()
    unique_columns: frozenset[str] = field(default_factory=frozenset)
    checked: frozenset[str] = field(default_factory=frozenset)
    is_alone: bool = False
    is_deferred: bool = False
    acts_on_delete: bool = False
    acts_on_update: bool = False
    references: tuple[tuple[frozenset[str], int], ...] = ()
    referenced_by: tuple[int, ...] = ()


def version_sql(tables: str, partitions: str) -> str:
    """Return the expression that counts what Postgres knows of tables, up to each change of it.

    Every change of a table, its columns, indexes, constraints, triggers or partitions writes a
    row of the catalogue anew, by a later transaction, or takes one away: the sum of their numbers
    changes. VACUUM and ANALYZE write in place. The sum over some tables is the sum of theirs.

    Args:
        tables: an array of their oids, as SQL.
        partitions: the same of their partitions, whose columns are those of the tables, and whose
            constraints show as indexes, triggers and in pg_class.
    """
    places = (
        ("pg_class", "oid", f"{tables} || {partitions}"),
        ("pg_index", "indrelid", f"{tables} || {partitions}"),
        ("pg_trigger", "tgrelid", f"{tables} || {partitions}"),
        ("pg_inherits", "inhparent", f"{tables} || {partitions}"),
        ("pg_attribute", "attrelid", tables),
        ("pg_constraint", "conrelid", tables),
    )
    rows = " UNION ALL ".join(
        f"SELECT xmin FROM pg_catalog.{name} WHERE {column} = ANY({oids})"  # noqa: S608  names of ours
        for name, column, oids in places
    )
    return f"(SELECT coalesce(sum(xmin::text::bigint), 0)::bigint FROM ({rows}) AS rows)"  # noqa: S608  names of ours
