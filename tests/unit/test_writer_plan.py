"""The planner, by table, and against a small model of what Postgres does with one statement."""

from __future__ import annotations

import copy
import datetime as dt
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.writer.facts import ColumnFacts, TableFacts
from runner.writer.plan import Profile, Scope, Wave, plan, profile_of
from runner.writer.units import Operation, UnitBuilder, decode_operations, parse_shape

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

INT, TEXT, NUMBER = ColumnFacts("int8"), ColumnFacts("text"), ColumnFacts("numeric", scale=2)
PLAIN = TableFacts(
    oid=1,
    schema="public",
    name="t",
    columns={"id": INT, "n": INT, "s": TEXT, "d": NUMBER, "code": ColumnFacts("citext")},
    primary_key=("id",),
)


def operations(*calls: Callable[[UnitBuilder], None]) -> list[Operation]:
    unit = UnitBuilder()
    for call in calls:
        call(unit)
    return decode_operations(unit.encode())


def profiles(some: Sequence[Operation], tables: Mapping[str, TableFacts]) -> dict[str, Profile]:
    found = {}
    for text, _ in some:
        shape = parse_shape(text)
        facts = None if shape.kind == "execute" else tables[shape.table]
        found[text] = profile_of(text, shape, facts)
    return found


def planned(facts: TableFacts, *calls: Callable[[UnitBuilder], None]) -> list[Wave]:
    some = operations(*calls)
    return plan(some, profiles(some, {"t": facts, "u": replace(PLAIN, oid=2, name="u")}))


def summary(waves: Sequence[Wave]) -> list[list[tuple[str, list[list[Any]]]]]:
    return [[(group.profile.shape.kind, group.rows) for group in wave.groups] for wave in waves]


def insert(key: int, table: str = "t", **row: Any) -> Callable[[UnitBuilder], None]:
    return lambda unit: unit.insert(table, id=key, **row)


def add(key: int, n: Any = 1, **options: Any) -> Callable[[UnitBuilder], None]:
    return lambda unit: unit.add("t", key={"id": key}, **options, n=n)


def add_d(key: int, d: Any) -> Callable[[UnitBuilder], None]:
    return lambda unit: unit.add("t", key={"id": key}, d=d)


def update(key: int, **values: Any) -> Callable[[UnitBuilder], None]:
    return lambda unit: unit.update("t", key={"id": key}, **values)


def delete(key: int) -> Callable[[UnitBuilder], None]:
    return lambda unit: unit.delete("t", key={"id": key})


def raw(unit: UnitBuilder) -> None:
    unit.execute("SELECT 1")


def append(unit: UnitBuilder) -> None:
    unit.insert("t", s="x")


@pytest.mark.parametrize(
    ("calls", "waves"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([insert(1), insert(2)], 1, id="different keys share"),
        pytest.param([insert(1), update(1, s="a")], 2, id="one key is in order"),
        pytest.param([insert(1), update(2, s="a"), delete(3)], 1, id="kinds share"),
        pytest.param([add(1), add(1), add(1)], 1, id="additions merge"),
        pytest.param([add(1), update(1, s="a"), add(1)], 3, id="not past another operation"),
        pytest.param([add(1), add(1, missing="insert")], 2, id="not across shapes"),
        pytest.param([insert(1), insert(1, "u")], 1, id="tables are apart"),
        pytest.param([insert(1), raw, insert(2)], 3, id="raw SQL is a barrier"),
        pytest.param([append, append, insert(1)], 1, id="new rows share"),
        pytest.param([append, update(1, s="a")], 2, id="a new row may be the one"),
        pytest.param([update(1, s="a"), append], 1, id="but not the other way round"),
        pytest.param([add(1, missing="insert"), append], 2, id="an upsert makes rows too"),
        pytest.param([update(1, id=2), insert(3)], 2, id="a change of key takes the table"),
        pytest.param([add_d(1, Decimal("1.10")), add_d(1, Decimal("0.20"))], 1, id="exact"),
        pytest.param([add_d(1, Decimal("0.005")), add_d(1, Decimal("0.005"))], 2, id="rounded"),
        pytest.param([add_d(1, 0.5), add_d(1, 0.5)], 2, id="floats into numeric"),
        pytest.param(
            [add_d(1, Decimal("1E+3000")), add_d(1, Decimal("0.25"))], 2, id="too many digits"
        ),
        pytest.param([insert(1), append], 1, id="a new row beside a named one"),
        pytest.param([append, add(1)], 2, id="the new row may be counted"),
        pytest.param([append, lambda u: u.upsert("t", {"id": 1, "n": 2})], 2, id="or overwritten"),
        pytest.param([append, delete(1), append], 2, id="or deleted"),
        pytest.param(
            [
                lambda unit: unit.update("t", key={"s": "a"}, n=1),
                lambda unit: unit.update("t", key={"id": 1}, n=2),
            ],
            2,
            id="by another key",
        ),
        pytest.param(
            [
                lambda unit: unit.update("t", key={"id": "1"}, n=1),
                lambda unit: unit.update("t", key={"id": 2}, n=2),
            ],
            2,
            id="a key of another class",
        ),
    ],
)
def test_how_many_waves(calls: list[Callable[[UnitBuilder], None]], waves: int) -> None:
    assert len(planned(PLAIN, *calls)) == waves


@pytest.mark.parametrize(
    ("change", "calls", "waves"),
    [
        ({"unique_columns": frozenset({"s"})}, [insert(1), insert(2)], 1),
        ({"unique_columns": frozenset({"s"})}, [insert(1), delete(2)], 2),
        ({"unique_columns": frozenset({"s"})}, [insert(1), update(2, s="a")], 2),
        ({"unique_columns": frozenset({"s"})}, [insert(1), update(2, n=1)], 1),
        ({"unique_columns": frozenset({"s"})}, [delete(2), insert(1)], 2),
        ({"unique_columns": frozenset({"s"})}, [delete(1), delete(2)], 2),
        ({"checked": frozenset({"n"})}, [add(1), add(1)], 2),
        ({"is_alone": True}, [insert(1), insert(2)], 2),
        ({"is_alone": True}, [insert(1, "u"), insert(1), insert(2, "u")], 3),
        ({"acts_on_delete": True}, [insert(1, "u"), delete(1)], 2),
        ({"acts_on_delete": True}, [insert(1), update(2, s="a")], 1),
        ({"acts_on_update": True}, [insert(1, "u"), update(1, id=2)], 2),
        ({"primary_key": ()}, [insert(1), insert(1)], 1),
        ({"primary_key": ()}, [update(1, s="a"), update(2, s="a")], 2),
        ({"primary_key": ("code",)}, [update(1, s="a"), update(2, s="a")], 2),
    ],
)
def test_facts_of_a_table_make_barriers(
    change: dict[str, Any], calls: list[Callable[[UnitBuilder], None]], waves: int
) -> None:
    assert len(planned(replace(PLAIN, **change), *calls)) == waves


@pytest.mark.parametrize(
    ("column", "waves"),
    [
        (ColumnFacts("int2"), 1),
        (ColumnFacts("float8"), 2),  # their sum depends on the order
        (ColumnFacts("float4"), 2),
    ],
)
def test_floats_are_not_summed(column: ColumnFacts, waves: int) -> None:
    facts = replace(PLAIN, columns={**PLAIN.columns, "n": column})
    assert len(planned(facts, add(1), add(1))) == waves


PARENT = replace(PLAIN, oid=2, name="u", referenced_by=(1,))
CHILD = replace(PLAIN, references=((frozenset({"n"}), 2),))


def kinds(*calls: Callable[[UnitBuilder], None]) -> list[list[tuple[str, str]]]:
    some = operations(*calls)
    waves = plan(some, profiles(some, {"t": CHILD, "u": PARENT}))
    return [
        sorted((group.profile.shape.kind, group.profile.shape.table) for group in wave.groups)
        for wave in waves
    ]


def test_a_child_shares_the_wave_of_its_parent_and_does_not_come_before_it() -> None:
    assert kinds(insert(1, "u"), insert(1, n=1)) == [[("insert", "t"), ("insert", "u")]]
    late = kinds(lambda u: u.delete("u", key={"id": 1}), insert(1, "u"), insert(1, n=1))
    assert late == [[("delete", "u")], [("insert", "t"), ("insert", "u")]]
    moved = kinds(lambda u: u.delete("u", key={"id": 1}), insert(1, "u"), update(1, n=1))
    assert moved == [[("delete", "u")], [("insert", "u"), ("update", "t")]]
    # A column that refers to nothing waits for nothing.
    other = kinds(lambda u: u.delete("u", key={"id": 1}), insert(1, "u"), update(1, s="a"))
    assert other == [[("delete", "u"), ("update", "t")], [("insert", "u")]]


def test_a_parent_is_not_deleted_before_its_children() -> None:
    gone = kinds(update(1, s="a"), delete(1), lambda u: u.delete("u", key={"id": 1}))
    assert gone == [[("update", "t")], [("delete", "t"), ("delete", "u")]]


def test_merged_additions_are_summed_and_the_operations_stay_as_they_were() -> None:
    some = operations(add(1, 2), add(2, 5), add(1, 7))
    known = profiles(some, {"t": PLAIN})
    for _ in range(2):
        assert summary(plan(some, known)) == [[("add", [[1, 9], [2, 5]])]]


def test_additions_that_go_up_and_down_go_to_the_highest_the_lowest_and_the_last_sum() -> None:
    waves = planned(
        PLAIN, add(1, 2), add(1, -7), add(1, 9), add(2, 1), add(1, -1), update(1, s="a")
    )
    assert summary(waves) == [
        [("add", [[1, 4], [2, 1]])],
        [("add", [[1, -9]])],
        [("add", [[1, 8]])],
        [("update", [[1, "a"]])],
    ]
    # 4 is the highest of 2, -5, 4 and 3, and -5 the lowest.


def test_additions_that_end_at_their_lowest_sum_take_two_statements() -> None:
    assert summary(planned(PLAIN, add(1, 2), add(1, -3), add(1, -1))) == [
        [("add", [[1, 2]])],
        [("add", [[1, -4]])],
    ]


def test_sums_of_decimals_are_exact() -> None:
    waves = planned(PLAIN, add_d(1, Decimal(10) ** 40), add_d(1, Decimal("0.01")))
    assert str(waves[0].groups[0].rows[0][1]) == "1" + "0" * 40 + ".01"


def test_rows_with_other_columns_are_another_shape() -> None:
    waves = planned(PLAIN, insert(1, n=1), insert(2))
    assert len(waves) == 1
    assert len(waves[0].groups) == 2


def test_one_table_under_two_names_is_one_table() -> None:
    some = operations(insert(1), lambda unit: unit.delete("public.t", key={"id": 1}))
    assert len(plan(some, profiles(some, {"t": PLAIN, "public.t": PLAIN}))) == 2


@pytest.mark.parametrize(
    ("column", "scope"),
    [
        (ColumnFacts("int4"), Scope.KEY),
        (ColumnFacts("uuid"), Scope.KEY),
        (ColumnFacts("varchar", length=3), Scope.KEY),
        (ColumnFacts("timestamptz"), Scope.KEY),
        (ColumnFacts("timestamptz", bounded=True), Scope.TABLE),
        (ColumnFacts("bpchar", bounded=True), Scope.TABLE),
        (ColumnFacts("citext"), Scope.TABLE),
        (ColumnFacts("numeric"), Scope.TABLE),
        (ColumnFacts("interval"), Scope.TABLE),
        (ColumnFacts("float8"), Scope.TABLE),
        (ColumnFacts("text", deterministic=False), Scope.TABLE),
        (ColumnFacts("text", is_domain=True), Scope.TABLE),
        (ColumnFacts("int4", is_array=True), Scope.TABLE),
    ],
)
def test_which_keys_may_be_compared_in_python(column: ColumnFacts, scope: Scope) -> None:
    facts = replace(PLAIN, columns={**PLAIN.columns, "id": column})
    some = operations(update(1, s="a"))
    assert profiles(some, {"t": facts})[some[0][0]].scope is scope


def test_a_text_longer_than_its_column_takes_the_whole_table() -> None:
    facts = replace(PLAIN, columns={**PLAIN.columns, "id": ColumnFacts("varchar", length=2)})

    def set_s(key: str) -> Callable[[UnitBuilder], None]:
        return lambda unit: unit.update("t", key={"id": key}, s="x")

    assert len(planned(facts, set_s("ab"), set_s("cd"))) == 1
    assert len(planned(facts, set_s("ab"), set_s("ab  "))) == 2


def test_keys_of_several_columns_are_taken_together() -> None:
    facts = replace(
        PLAIN,
        columns={**PLAIN.columns, "hour": ColumnFacts("timestamptz")},
        primary_key=("s", "hour"),
    )
    hour = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

    def count(s: str, at: dt.datetime) -> Callable[[UnitBuilder], None]:
        return lambda unit: unit.add("t", key={"hour": at, "s": s}, missing="insert", n=1)

    later = hour + dt.timedelta(hours=1)
    waves = planned(facts, count("a", hour), count("b", hour), count("a", later), count("a", hour))
    assert summary(waves) == [[("add", [[hour, "a", 2], [hour, "b", 1], [later, "a", 1]])]]


# The model: rows by id, n and a unique s. One wave sees the rows as they were before it.


class Refused(Exception):  # noqa: N818
    """A constraint was violated."""


Rows = dict[int, tuple[int, str]]


def _write(rows: Rows, key: int, value: tuple[int, str], *, unique: bool) -> None:
    if unique and any(other != key and row[1] == value[1] for other, row in rows.items()):
        raise Refused
    rows[key] = value


def run_row(profile: Profile, row: list[Any], rows: Rows, seen: Rows, done: set[int]) -> None:
    """Do one operation in a statement that has seen and done this much."""
    assert profile.facts is not None
    shape, key, unique = profile.shape, row[0], bool(profile.facts.unique_columns)
    if shape.kind in ("insert", "upsert"):
        if key in rows and (shape.kind == "insert" or key in done):
            raise Refused
        _write(rows, key, (row[1], rows[key][1] if key in rows else row[2]), unique=unique)
    elif key not in seen:
        if shape.kind == "add":
            raise Refused
        return
    elif key in done:
        return  # the same statement has changed the row: Postgres passes it over
    elif shape.kind == "delete":
        rows.pop(key, None)
    elif shape.kind == "add":
        rows[key] = (rows[key][0] + row[1], rows[key][1])
    else:
        _write(rows, key, (rows[key][0], row[1]), unique=unique)
    done.add(key)


def run_waves(waves: list[Wave], rows: Rows, *, backwards: bool) -> Rows:
    rows = copy.copy(rows)
    for wave in waves:
        seen, done = copy.copy(rows), set[int]()
        for group in reversed(wave.groups) if backwards else wave.groups:
            for row in group.rows:
                run_row(group.profile, row, rows, seen, done)
    return rows


KEYS = st.integers(0, 2)
WORDS = st.sampled_from("abc")


@st.composite
def calls(draw: st.DrawFn) -> Callable[[UnitBuilder], None]:
    key, n, s = draw(KEYS), draw(st.integers(1, 3)), draw(WORDS)
    kind = draw(st.sampled_from(["insert", "upsert", "add", "update", "delete"]))
    match kind:
        case "insert":
            return insert(key, n=n, s=s)
        case "upsert":
            return lambda unit: unit.upsert("t", {"id": key, "n": n, "s": s}, update=["n"])
        case "add":
            return add(key, n)
        case "update":
            return update(key, s=s)
        case _:
            return delete(key)


@pytest.mark.parametrize("unique", [frozenset[str](), frozenset({"s"})])
@settings(max_examples=500, deadline=None)
@given(
    made=st.lists(calls(), min_size=2, max_size=5),
    start=st.dictionaries(KEYS, st.tuples(st.integers(0, 3), WORDS), max_size=3).filter(
        lambda rows: len({row[1] for row in rows.values()}) == len(rows)
    ),
    backwards=st.booleans(),
)
def test_waves_do_what_exact_order_does_or_fail(
    unique: frozenset[str],
    made: list[Callable[[UnitBuilder], None]],
    start: Rows,
    backwards: bool,
) -> None:
    some = operations(*made)
    known = profiles(some, {"t": replace(PLAIN, unique_columns=unique)})
    try:
        fused = run_waves(plan(some, known), start, backwards=backwards)
    except Refused:
        return  # then the batch is run in exact order
    exact = copy.copy(start)
    for text, row in some:
        run_row(known[text], row, exact, copy.copy(exact), set())
    assert fused == exact


def test_an_addition_does_not_join_those_before_a_new_row() -> None:
    waves = summary(planned(PLAIN, add(1, 2), add(1, -1), append, add(1, 5)))
    assert waves[-1] == [("add", [[1, 5]])]
    assert waves[0] == [("add", [[1, 2]]), ("insert", [["x"]])]


def test_a_new_row_comes_after_the_last_of_additions_that_may_make_it() -> None:
    some = [add(1, 2, missing="insert"), add(1, -1, missing="insert"), append]
    assert summary(planned(PLAIN, *some))[-1] == [("insert", [["x"]])]


def test_an_upsert_by_another_key_takes_the_table() -> None:
    def put(key: int) -> Callable[[UnitBuilder], None]:
        row = {"id": key, "n": 1, "s": "a"}
        return lambda unit: unit.upsert("t", row, key=["s"], update=["n"])

    facts = replace(PLAIN, unique_columns=frozenset({"s"}))
    assert len(planned(facts, put(1), put(2))) == 2


def test_a_key_with_a_part_of_another_class_takes_the_table() -> None:
    facts = replace(PLAIN, primary_key=("s", "id"))

    def set_n(key: Any) -> Callable[[UnitBuilder], None]:
        return lambda unit: unit.update("t", key={"s": "a", "id": key}, n=1)

    assert len(planned(facts, set_n(1), set_n(2))) == 1
    assert len(planned(facts, set_n(1), set_n(Decimal(2)))) == 2


def test_a_row_does_not_come_before_the_deletion_of_what_it_refers_to() -> None:
    made = kinds(insert(1, "u"), lambda u: u.delete("u", key={"id": 1}), insert(1, n=1))
    assert made == [[("insert", "u")], [("delete", "u"), ("insert", "t")]]


def test_a_parent_is_not_deleted_before_its_children_refer_to_another() -> None:
    gone = kinds(update(1, s="a"), update(1, n=2), lambda u: u.delete("u", key={"id": 1}))
    assert gone == [[("update", "t")], [("delete", "u"), ("update", "t")]]


def test_whole_numbers_that_a_column_rounds_are_not_summed() -> None:
    facts = replace(PLAIN, columns={**PLAIN.columns, "d": ColumnFacts("numeric", scale=-2)})
    assert len(planned(facts, add_d(1, 50), add_d(1, 50))) == 2


def test_a_new_row_that_passes_an_operation_must_not_get_its_key() -> None:
    first, second = planned(PLAIN, append, update(7, s="a"), append, update(8, s="a"))
    (group,) = first.groups
    assert (len(group.rows), list(group.written)[: group.unlike]) == (2, [7])
    assert second.groups[0].rows == [[7, "a"], [8, "a"]]
    waves = planned(PLAIN, add(7, 1, missing="ignore"), add(7, -2, missing="ignore"), append)
    group = waves[0].groups[1]
    assert list(group.written)[: group.unlike] == [7]


def test_a_new_row_of_which_no_key_is_told_passes_nothing() -> None:
    facts = replace(PLAIN, columns={**PLAIN.columns, "id": TEXT})

    def set_s(key: str) -> Callable[[UnitBuilder], None]:
        return lambda unit: unit.update("t", key={"id": key}, s="a")

    assert len(planned(facts, append, set_s("x"), append, set_s("y"))) == 3


def test_rows_of_one_unit_are_numbered_as_it_makes_them() -> None:
    numbered = {**PLAIN.columns, "id": replace(INT, numbered=True)}
    facts = replace(PLAIN, columns=numbered)

    def make(**row: Any) -> Callable[[UnitBuilder], None]:
        return lambda unit: unit.insert("t", **row)

    some = operations(*(make(s="a"), make(s="b", n=1), make(s="c", n=2), make(s="d")) * 2)
    known = profiles(some, {"t": facts})
    assert len(plan(some[:4], known)) == 3
    assert len(plan(some, known)) == 5
    # Nobody can tell which of two units made its rows first.
    assert len(plan(some, known, {0, 4})) == 3
    assert len(plan(some[:1] + some[1:2], known, {0, 1})) == 1
    named = operations(insert(1), insert(2, n=1))
    assert len(plan(named, profiles(named, {"t": facts}))) == 1
