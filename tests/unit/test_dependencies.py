"""Dependencies are refused where nothing would provide them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from runner import Depends, task
from runner.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable


def get_unit() -> str:
    return "kg"


def plain(_ctx: Any, weight: int, *, unit: str = Depends(get_unit)) -> str:
    return f"{weight} {unit}"


async def waits(_ctx: Any, weight: int, *, unit: str = Depends(get_unit)) -> str:
    return f"{weight} {unit}"


@pytest.mark.parametrize(
    ("function", "options", "text"),
    [
        (plain, {}, "'plain' runs in a thread, where nothing provides 'unit'"),
        (plain, {"runs_in": "process"}, "'plain' runs in a process, where nothing"),
        (waits, {"runs_in": "process"}, "'waits' runs in a process, where nothing"),
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
