"""Dependencies are refused where nothing would provide them, and provided wherever else."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from runner import Depends, task
from runner.dependencies import overriding
from runner.errors import ArgumentsError, SettingsError, TaskError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def get_unit() -> str:
    return "kg"


def plain(_ctx: Any, weight: int, *, unit: str = Depends(get_unit)) -> str:
    return f"{weight} {unit}"


async def waits(_ctx: Any, weight: int, *, unit: str = Depends(get_unit)) -> str:
    return f"{weight} {unit}"


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        (plain, {"executor": "process"}, "'plain' runs in a process, where nothing"),
        (waits, {"executor": "process"}, "'waits' runs in a process, where nothing"),
        (waits, {"max_running": 1, "max_running_key": "unit"}, "the key 'unit' .* is provided"),
    ],
)
def test_dependency_is_refused_where_nothing_provides_it(
    function: Callable[..., Any], options: dict[str, Any], text: str
) -> None:
    declare: Any = task
    with pytest.raises(SettingsError, match=text):
        declare(**options)(function)


async def test_dependency_is_provided_in_the_loop() -> None:
    declare: Any = task
    assert await declare(waits)({}, 3) == "3 kg"


NOTES: list[str] = []


@pytest.fixture(autouse=True)
def _no_notes() -> None:
    NOTES.clear()


class Scale:
    """A class may be a provider; what it takes may be provided."""

    def __init__(self, unit: Annotated[str, Depends(get_unit)]) -> None:
        self.unit = unit


class Weighs:
    """So may an object that can be called."""

    kind: str = "scale"

    def __call__(self, unit: Annotated[str, Depends(get_unit)]) -> str:
        return f"weighs in {unit}"


def get_word(word: str, unit: str = Depends(get_unit)) -> str:
    return f"{word} {unit}"


def noted(provider: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a provider as decorators do."""

    @functools.wraps(provider)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        NOTES.append("called")
        return provider(*args, **kwargs)

    return wrapper


def through(provider: Callable[..., AsyncIterator[Any]]) -> Callable[..., AsyncIterator[Any]]:
    @functools.wraps(provider)
    async def wrapper() -> AsyncIterator[Any]:
        async with contextlib.aclosing(provider()) as values:  # type: ignore[type-var]
            async for value in values:
                yield value

    return wrapper


async def get_stream() -> AsyncIterator[str]:
    yield "stream"
    NOTES.append("stream closes")


def get_file() -> Iterator[str]:
    yield "file"
    NOTES.append("file closes")


@task
async def many_kinds(
    _ctx: Any,
    *,
    scale: Annotated[Scale, Depends(Scale)],
    weighs: Annotated[str, Depends(Weighs())],
    word: Annotated[str, Depends(functools.partial(get_word, "a"))],
    stream: Annotated[str, Depends(noted(get_stream))],
    other: Annotated[str, Depends(through(get_stream))],
    file: Annotated[str, Depends(noted(get_file))],
) -> list[str]:
    return [scale.unit, weighs, word, stream, other, file]


async def test_whatever_can_be_called_provides() -> None:
    call: Any = many_kinds
    assert await call({}) == ["kg", "weighs in kg", "a kg", "stream", "stream", "file"]
    assert NOTES == ["called", "called", "file closes", "stream closes", "stream closes"]


def test_function_in_a_thread_is_provided_by_hand_too() -> None:
    declare: Any = task
    assert declare(plain)({}, 3) == "3 kg"
    with overriding({get_unit: get_file}):
        assert declare(plain)({}, 3) == "3 file"
    assert NOTES == ["file closes"]
    with overriding({get_unit: get_stream}), pytest.raises(TaskError, match="get_stream is async"):
        declare(plain)({}, 3)


def needs_two(one: int, other: int) -> int:
    return one + other


def needs_a_name(*, name: str) -> str:
    return name


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("declare", "text"),
    [
        (lambda: Depends(needs_two), "needs_two takes nothing or the context, but needs 'other'"),
        (lambda: Depends(needs_a_name), "takes nothing or the context, but needs 'name'"),
        (lambda: Depends(Unhashable()), "cannot be told apart from others"),
    ],
)
def test_provider_that_cannot_be_called_is_refused(declare: Any, text: str) -> None:
    with pytest.raises(SettingsError, match=text):

        @task
        async def function(_ctx: Any, value: int = declare()) -> None: ...


async def no_context(unit: str = Depends(get_unit)) -> str:
    return unit


async def by_place(_ctx: Any, unit: str = Depends(get_unit), /) -> str:
    return unit


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (no_context, "the first parameter is the context, and 'unit' is provided"),
        (by_place, "'unit' is provided by its name, so it cannot stand before a /"),
    ],
)
def test_parameter_that_cannot_be_provided_is_refused(
    function: Callable[..., Any], text: str
) -> None:
    declare: Any = task
    with pytest.raises(SettingsError, match=text):
        declare(function)


async def takes_all(_ctx: Any, *, unit: str = Depends(get_unit), **others: Any) -> Any:
    return unit, others


def test_nobody_passes_by_keyword_what_is_provided() -> None:
    declare: Any = task
    declared = declare(takes_all)
    declared.call(colour="red")
    with pytest.raises(ArgumentsError, match="'unit' is provided"):
        declared.call(unit="lb")
    with pytest.raises(ArgumentsError, match="'unit' is provided"):
        declare(waits).call(1, unit="lb")


def swallows() -> Iterator[str]:
    with contextlib.suppress(BaseException):
        yield "value"


async def swallows_in_the_loop() -> AsyncIterator[str]:
    with contextlib.suppress(BaseException):
        yield "value"


async def fails(_ctx: Any, value: str = Depends(swallows_in_the_loop)) -> None:
    raise ValueError(value)


def fails_in_a_thread(_ctx: Any, value: str = Depends(swallows)) -> None:
    raise ValueError(value)


@pytest.mark.parametrize("function", [fails, fails_in_a_thread])
async def test_what_a_failed_job_has_dropped_is_not_kept(function: Callable[..., Any]) -> None:
    """Its traceback may hold the frames of the call, but these hold no traceback."""
    declare: Any = task
    gc.collect()
    gc.disable()
    try:
        try:
            done = declare(function)({}, value=Dropped())
            if inspect.isawaitable(done):
                await done
        except ValueError:
            pass
        assert Dropped.count == 0
    finally:
        gc.enable()


class Dropped:
    """Counts its objects."""

    count = 0

    def __init__(self) -> None:
        Dropped.count += 1

    def __del__(self) -> None:
        Dropped.count -= 1


async def test_provider_makes_no_success_of_a_failure() -> None:
    declare: Any = task
    with pytest.raises(ValueError, match="value"):
        await declare(fails)({})
    with pytest.raises(ValueError, match="value"):
        declare(fails_in_a_thread)({})
