"""Declaring a task, writing a call down, and holding it to the signature."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from arq.cron import cron
from arq.worker import func

from runner import RetryPolicy, options, task
from runner.arguments import Signature
from runner.errors import ArgumentsError, DecodeError, SettingsError
from runner.tasks import BoundTask, SyncTask, Task
from runner.worker import as_function

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers


@dataclass
class Item:
    sku: str


@task
async def place(
    _ctx: Any, order: int, items: list[Item], note: str = "", *, at: datetime | None = None
) -> str:
    """Place an order."""
    return f"{order} {len(items)} {note} {at}"


async def test_task_is_callable_as_the_function_it_is() -> None:
    assert await place({}, 1, [], note="n") == "1 0 n None"


def test_task_passes_for_its_function() -> None:
    assert inspect.iscoroutinefunction(place)
    assert place.__qualname__ == "place"
    assert place.__doc__ == "Place an order."
    assert func(place, name="p").name == "p"
    assert cron(place, minute=1).name == "cron:place"


def test_task_is_named_by_its_function_unless_it_says_otherwise() -> None:
    @task(name="orders.place")
    async def other(_ctx: Any) -> None: ...

    assert (place.name, other.name) == ("place", "orders.place")


def test_options_become_arqs_function() -> None:
    @task(retries=4, timeout=timedelta(minutes=1), keep_result=7)
    async def declared(_ctx: Any) -> None: ...

    function = as_function(declared)
    assert (function.timeout_s, function.keep_result_s, function.max_tries) == (60, 7, 5)
    assert as_function(place).max_tries is None
    assert as_function(print) is print


def test_plain_function_is_called_as_it_is_and_runs_in_a_thread() -> None:
    @task
    def plain(_ctx: Any, number: int) -> int:
        return number

    assert plain({}, 7) == 7
    assert (type(plain), plain.executor) == (SyncTask, "thread")
    assert not inspect.iscoroutinefunction(plain)
    assert as_function(plain).coroutine is plain


@pytest.mark.parametrize(
    "options",
    [
        {"retries": -1},
        {"timeout": 0},
        {"timeout": -1},
        {"expires": 0},
        {"keep_result": -1},
        {"max_crashes": -1},
        {"on_write_error": "again"},
        {"timeout": timedelta(0)},
        {"expires": timedelta(seconds=-1)},
        {"retries": "x"},
        {"retries": 1.5},
        {"retries": True},
        {"timeout": "x"},
        {"timeout": float("inf")},
        {"timeout": float("nan")},
        {"timeout": True},
        {"backoff": 3},
        {"backoff": 0},
        {"backoff": RetryPolicy},
        {"name": 3},
        {"name": 0},
        {"name": ""},
        {"queue": 3},
        {"queue": ""},
        {"max_crashes": "x"},
        {"keep_result": "x"},
        {"keep_result_forever": 1},
        {"expires": "x"},
    ],
)
def test_option_that_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    async def plain(_ctx: Any) -> None: ...

    ((name, value),) = options.items()
    said = re.escape(f"plain': {name} is {value!r}, but must be ")
    with pytest.raises(SettingsError, match=said):
        task(**options)(plain)


def test_option_at_the_edge_is_taken() -> None:
    @task(retries=0, keep_result=0, max_crashes=0, timeout=0.05, expires=timedelta(seconds=1))
    async def plain(_ctx: Any) -> None: ...

    options = plain.task_options
    assert (options.retries, options.keep_result, options.max_crashes) == (0, 0, 0)
    assert (options.timeout, options.expires) == (0.05, 1)


def test_every_option_of_a_task_has_a_rule() -> None:
    known = {*options.RULES, *options.NO_RULE}
    assert known == set(inspect.signature(task).parameters) - {"function"}


def test_call_is_written_down_and_not_made() -> None:
    call = place.call(1, [], note="x")
    assert (call.task, call.args, call.kwargs) == (place, (1, []), {"note": "x"})
    assert call.options.key is None


def test_options_travel_with_the_call() -> None:
    bound = place.options(delay=timedelta(seconds=90), key="k", queue="q", expires=5)
    assert isinstance(bound, BoundTask)
    options = bound.call(1, []).options
    assert (options.delay, options.key, options.queue, options.expires) == (90, "k", "q", 5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"delay": 1, "at": datetime.now(tz=UTC)}, "either delay or at"),
        ({"at": datetime(2024, 1, 1)}, "time zone"),  # noqa: DTZ001  the point of the case
        ({"key": ""}, "key must not be empty"),
        ({"key": "\ud800"}, "key .* is no text"),
        ({"delay": float("nan")}, "delay"),
        ({"expires": float("inf")}, "expires"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ArgumentsError, match=why):
        place.options(**options)


@pytest.mark.parametrize(
    ("args", "kwargs", "named"),
    [
        ((), {}, "order"),
        ((1,), {}, "items"),
        ((1, [], "n", "too many"), {}, "too many positional"),
        ((1, []), {"note": "a", "nota": "b"}, "nota"),
        ((1, []), {"order": 2}, "order"),
    ],
)
def test_call_that_does_not_bind_names_the_parameter(
    args: tuple[Any, ...], kwargs: dict[str, Any], named: str
) -> None:
    with pytest.raises(ArgumentsError, match=rf"^place\(order.*: .*{named}"):
        place.call(*args, **kwargs)


def test_arguments_are_turned_into_what_the_annotations_say() -> None:
    args, kwargs = place.signature.convert(
        (1, [{"sku": "a"}]), {"at": "2024-05-01T00:00:00Z", "note": "n"}
    )
    assert args == (1, [Item("a")])
    assert kwargs == {"at": datetime(2024, 5, 1, tzinfo=UTC), "note": "n"}


@pytest.mark.parametrize(
    ("args", "named"),
    [((1, [{"sk": "a"}]), "items"), (("x", []), "order"), ((1, [], 5), "note")],
)
def test_argument_that_does_not_convert_is_named(args: tuple[Any, ...], named: str) -> None:
    with pytest.raises(DecodeError, match=f"parameter '{named}'"):
        place.signature.convert(args, {})


def test_annotation_that_only_type_checkers_know_leaves_the_value_alone() -> None:
    @task
    async def typed(_ctx: Any, price: OnlyForTypeCheckers, number: UUID) -> None: ...

    number = UUID(int=5)
    args, _ = typed.signature.convert(("1.5", str(number)), {})
    assert args == ("1.5", number)


def test_rest_arguments_are_turned_too() -> None:
    @task  # type: ignore[arg-type]  # ParamSpec: the context has a name that **items could take
    async def rest(_ctx: Any, *ids: UUID, **items: Item) -> None: ...

    number = UUID(int=7)
    args, kwargs = rest.signature.convert((str(number),), {"a": {"sku": "x"}})
    assert args == (number,)
    assert kwargs == {"a": Item("x")}


def test_function_without_annotations_gets_what_travelled() -> None:
    async def bare(_ctx, a, b=2):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return a, b

    declared: Task[..., Any] = task(bare)
    assert declared.signature.convert(([1], {"x": 2}), {}) == (([1], {"x": 2}), {})


def test_policy_is_the_tasks_own() -> None:
    policy = RetryPolicy(base=9)

    @task(retries=1, backoff=policy)
    async def declared(_ctx: Any) -> None: ...

    assert declared.task_options.policy == RetryPolicy(base=9, retries=1)


def test_a_signature_is_shown_as_it_is_declared() -> None:
    async def pay(_ctx: object, order_id: int, note: str = "none") -> str:
        return f"{order_id} {note}"

    assert str(Signature(pay)) == "(order_id: int, note: str = 'none') -> str"
