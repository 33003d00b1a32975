"""Which calls are the same, and which options contradict each other."""

from __future__ import annotations

import doctest
import enum
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import runner.unique
from runner import Context, Debounce, Throttle, Unique, task
from runner.errors import ArgumentsError, SettingsError
from runner.unique import Place, Rule, canonical, place_of, rule_of

if TYPE_CHECKING:
    import random


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Item:
    sku: str
    tags: set[str]


@task(unique=True)
async def place(
    _ctx: Context, /, order: Any, note: str = "", *more: int, at: int = 0, **others: Any
) -> None: ...


def place_for(rule: Rule, *args: Any, **kwargs: Any) -> Place:
    return place_of(rule, place.name, lambda: place.signature.bound(args, kwargs))


ALL = Unique().rule()

# What tells arguments apart.

DIFFERENT = [
    1,
    1.0,
    True,
    "1",
    b"1",
    None,
    0,
    0.0,
    False,
    "",
    b"",
    [],
    {},
    [[]],
    [1],
    ["1"],
    [1, 1],
    [[1], 1],
    [1, [1]],
    {1},
    {"1"},
    {"1": 1},
    {1: 1},
    {1: "1"},
    {"1": {"1": 1}},
    {"1": None},
    Decimal("1.0"),
    datetime(2024, 1, 1, tzinfo=UTC),
]

SAME: list[tuple[Any, Any]] = [
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ({"a": {"x": 1, "y": [1, 2]}, "b": 2}, {"b": 2, "a": {"y": [1, 2], "x": 1}}),
    ({1: 1, "1": 2}, {"1": 2, 1: 1}),
    ({3, 1, 2}, {2, 3, 1}),
    ({"a", "b"}, frozenset({"b", "a"})),
    ({1, "1"}, {"1", 1}),
    ({frozenset({1, 2}), frozenset({3})}, {frozenset({3}), frozenset({2, 1})}),
    ((1, 2), [1, 2]),
    (Colour.RED, "red"),
    (uuid.UUID(int=5), str(uuid.UUID(int=5))),
    (Item("a", {"x", "y"}), Item("a", {"y", "x"})),
]


def test_different_values_are_different_bytes() -> None:
    assert len({canonical(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_different_arguments_have_different_places() -> None:
    digests = {place_for(ALL, value).digest for value in DIFFERENT if not _is_odd(value)}
    assert len(digests) == sum(not _is_odd(value) for value in DIFFERENT)


def _is_odd(value: Any) -> bool:
    return isinstance(value, dict) and 1 in value


@pytest.mark.parametrize(("left", "right"), SAME, ids=range(len(SAME)))
def test_values_that_travel_alike_are_the_same(left: Any, right: Any) -> None:
    assert canonical(left) == canonical(right)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-9, 9), inner),
    max_leaves=20,
)


def shuffled(value: Any, chance: random.Random) -> Any:
    """Return an equal value whose dicts were filled in another order."""
    if isinstance(value, dict):
        pairs = [(name, shuffled(item, chance)) for name, item in value.items()]
        chance.shuffle(pairs)
        return dict(pairs)
    if isinstance(value, list):
        return [shuffled(item, chance) for item in value]
    return value


def exactly(value: Any) -> Any:
    """Return a value that is equal only where type and contents are."""
    if isinstance(value, dict):
        return "dict", frozenset((exactly(k), exactly(v)) for k, v in value.items())
    if isinstance(value, list):
        return "list", tuple(map(exactly, value))
    return type(value).__name__, repr(value)


@given(PLAIN, st.randoms(use_true_random=False))
def test_order_of_a_dict_does_not_count(value: Any, chance: random.Random) -> None:
    assert canonical(shuffled(value, chance)) == canonical(value)


@given(PLAIN, PLAIN)
def test_bytes_are_equal_where_values_are(left: Any, right: Any) -> None:
    assert (canonical(left) == canonical(right)) == (exactly(left) == exactly(right))


@given(st.sets(st.text() | st.integers(-9, 9)), st.randoms(use_true_random=False))
def test_order_of_a_set_does_not_count(members: set[Any], chance: random.Random) -> None:
    listed = sorted(members, key=repr)
    chance.shuffle(listed)
    assert canonical(set(listed)) == canonical(members)
    assert canonical(members) != canonical(list(members))


def test_depth_costs_nothing() -> None:
    deep: Any = "x" * 100
    for _ in range(150):
        deep = {"a": deep}
    assert len(canonical(deep)) < 200


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (((5,), {}), ((), {"order": 5})),
        (((5, "x"), {}), ((5,), {"note": "x"})),
        (((5,), {}), ((5, ""), {})),
        (((5,), {}), ((5,), {"at": 0})),
        (((5,), {"a": 1, "b": 2}), ((5,), {"b": 2, "a": 1})),
    ],
)
def test_however_a_call_is_spelled_it_is_the_same(one: Any, other: Any) -> None:
    assert place_for(ALL, *one[0], **one[1]) == place_for(ALL, *other[0], **other[1])


def test_rest_of_the_places_and_names_counts() -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((5, "x"), {}),
        ((5, "x", 1), {}),
        ((5, "x", 1, 2), {}),
        ((5, "x"), {"other": 1}),
    ]
    assert len({place_for(ALL, *args, **kwargs).digest for args, kwargs in calls}) == 4


def test_named_parameters_alone_count_where_some_are_named() -> None:
    rule = Unique(by="order").rule()
    assert place_for(rule, 5, "a") == place_for(rule, 5, "b", 1, at=7)
    assert place_for(rule, 5) != place_for(rule, 6)
    several = Unique(by=("note", "order")).rule()
    assert several == Unique(by=["order", "note"]).rule()
    assert place_for(several, 5, "a", 1) == place_for(several, 5, "a")
    assert place_for(several, 5, "a") != place_for(several, 5, "b")
    assert place_for(Unique(by=()).rule(), 5) == place_for(Unique(by=()).rule(), 6, "b")


def test_options_tasks_and_keys_have_places_of_their_own() -> None:
    rules = [
        ALL,
        Debounce(1).rule(),
        Throttle(1).rule(),
        Unique(key="5").rule(),
        Unique(key="6").rule(),
        Unique(by=()).rule(),
    ]
    digests = {place_for(rule, "5").digest for rule in rules}
    digests.add(place_of(ALL, "another", lambda: {"order": "5"}).digest)
    assert len(digests) == len(rules) + 1


def test_how_long_and_what_then_are_no_part_of_the_place() -> None:
    rules = [
        Unique(until="start").rule(),
        Unique(until="end", second="refuse").rule(),
        Unique(until=5).rule(),
    ]
    assert len({place_for(rule, 5).digest for rule in rules}) == 1


def test_digest_of_a_huge_key_is_small() -> None:
    huge = Unique(key="\0" * 1_000_000).rule()
    assert len(place_for(huge, 5).digest) == 16


def test_arguments_that_cannot_be_compared_are_named_at_the_caller() -> None:
    with pytest.raises(ArgumentsError, match=r"place: .* cannot be compared .* give it a key"):
        place_for(ALL, object())
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ArgumentsError, match="cannot be compared"):
        place_for(ALL, loop)
    assert len(place_for(Unique(key="k").rule(), object()).digest) == 16


# Options.


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Unique(by="a", key="b"), "either by or key"),
        (lambda: Unique(key=""), "not empty"),
        (lambda: Unique(key=5), "not empty"),  # type: ignore[arg-type]
        (lambda: Unique(by=5), "a parameter's name"),  # type: ignore[arg-type]
        (lambda: Unique(by=("a", "")), "a parameter's name"),
        (lambda: Unique(until="ende"), "did you mean 'end'"),  # type: ignore[arg-type]
        (lambda: Unique(until=0), "from 0.001 s"),
        (lambda: Unique(until=float("inf")), "from 0.001 s"),
        (lambda: Unique(until=True), "from 0.001 s"),
        (lambda: Unique(until=None), "from 0.001 s"),  # type: ignore[arg-type]
        (lambda: Unique(second="drop"), "must be one of"),  # type: ignore[arg-type]
        (lambda: Unique(second="replaces"), "did you mean 'replace'"),  # type: ignore[arg-type]
        (lambda: Unique(until=5, second="replace"), "goes with until"),
        (lambda: Debounce(0), "wait"),
        (lambda: Debounce(timedelta(days=9999)), "ten years"),
        (lambda: Debounce(5, max_wait=4), "less than"),
        (lambda: Debounce(5, max_wait=float("nan")), "max_wait"),
        (lambda: Throttle(-1), "period"),
        (lambda: Throttle(5, second="replace"), "must be one of"),  # type: ignore[arg-type]
    ],
)
def test_rule_that_makes_no_sense_is_refused(make: Any, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        make()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"unique": True, "debounce": 5}, "one of unique, debounce and throttle, not unique and"),
        ({"unique": False, "throttle": 5}, "one of"),
        ({"debounce": 5, "throttle": 5}, "one of"),
        ({"unique": "key"}, "True, False or Unique"),
        ({"unique": Unique(by="ordre")}, "did you mean 'order'"),
        ({"debounce": "5"}, "wait"),
        ({"throttle": Throttle(5, by="x")}, "no parameter"),
    ],
)
def test_declaration_and_call_refuse_what_contradicts_itself(
    options: dict[str, Any], why: str
) -> None:
    async def declared(_ctx: Context, order: int) -> None: ...

    with pytest.raises(SettingsError, match=why) as caught:
        task(**options)(declared)
    assert "declared" in str(caught.value)
    with pytest.raises(ArgumentsError, match=why):
        task(declared).options(**options)


def test_names_are_free_where_a_task_takes_any() -> None:
    place.options(unique=Unique(by="whatever"))


@pytest.mark.parametrize("when", [{"delay": 5}, {"at": datetime(2099, 1, 1, tzinfo=UTC)}])
def test_debounce_alone_says_when_a_job_starts(when: dict[str, Any]) -> None:
    @task(debounce=5)
    async def late(_ctx: Context) -> None: ...

    with pytest.raises(ArgumentsError, match="debounce says when"):
        late.options(**when)
    with pytest.raises(ArgumentsError, match="debounce says when"):
        place.options(debounce=5, **when)
    late.options(unique=False, **when)


@pytest.mark.parametrize("option", [{"debounce": 5}, {"unique": Unique(second="replace")}])
def test_job_with_a_name_of_its_own_is_not_replaced(option: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError, match="takes a key of its own"):
        place.options(key="k", **option)


def test_rules_are_what_was_given() -> None:
    assert rule_of(None, None, None) is None
    assert rule_of(False, None, None) is False
    assert rule_of(True, None, None) == ALL
    assert rule_of(None, timedelta(seconds=2), None) == Debounce(2).rule()
    assert rule_of(None, None, 1.5) == Throttle(1.5).rule()
    assert Throttle(1.5).rule().ms == 1500
    assert Debounce(1, max_wait=timedelta(minutes=1)).rule().most_ms == 60_000


def test_job_without_a_rule_asks_for_no_place() -> None:
    @task
    async def plain(_ctx: Context) -> None: ...

    assert plain.task_options.unique is None
    assert plain.options(delay=1).options.unique is None
    assert place.options(unique=False).options.unique is False


def test_examples_in_docstrings_are_valid() -> None:
    found = doctest.DocTestFinder(exclude_empty=True).find(
        runner.unique, globs={"task": task, "Context": Context, **vars(runner.unique)}
    )
    examples = [example for example in found if example.examples]
    assert len(examples) == 3
    for example in examples:
        assert doctest.DocTestRunner().run(example).failed == 0
